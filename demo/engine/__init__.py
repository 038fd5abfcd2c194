"""The reference engine: a small OpenAI-compatible server with real tensor parallelism, for drills, the demo and tests."""
