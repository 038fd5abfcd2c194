"""The reference engine: a small OpenAI-compatible server on torch alone, with real tensor parallelism, for drills, the
demonstration and tests. vLLM and SGLang serve production. Start it with `python -m demo.engine`."""
