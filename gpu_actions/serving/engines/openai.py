"""Any other OpenAI-compatible server. Its metrics page is read in whichever known engine's dialect it uses."""

from gpu_actions.serving.engines.base import HttpEngine


class OpenAiEngine(HttpEngine):
    """A server of unknown make: completions only, and metrics if its page is one that another kind exports."""

    kind = "openai"
    profiler_hint = "no profiler is known for the kind openai: set engine.kind to the engine that really runs"
