"""Golden prompts: answers that an engine gave on a good day, and the judgement whether it still gives them.

An engine can answer quickly and wrongly, for example after its weights were corrupted while loading. No counter shows that;
its answers do.
"""
