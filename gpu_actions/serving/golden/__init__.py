"""Golden prompts: answers that an engine gave on a good day, and the judgement whether it still gives them.

An engine can answer quickly and wrongly, after a corrupted load of its weights, say. No counter shows that; its answers do.
"""
