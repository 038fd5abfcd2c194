"""The real vLLM on the CPU with a tiny model: how the heavy test and the benchmarks make and start it.

Its program is named by GPU_ONCALL_VLLM (`make test-vllm` installs one). The model has random weights and a byte tokenizer, so
nothing is downloaded.
"""

import os
import subprocess
from pathlib import Path

VLLM = os.environ.get("GPU_ONCALL_VLLM", "")
TINY_LLAMA = Path(__file__).parents[1] / "data" / "tiny_llama.py"
MAKE_TIMEOUT_S = 300


def make_tiny_llama(program: str, folder: Path) -> None:
    """Write the tiny model and its tokenizer, with the transformers beside a program. Raises RuntimeError."""
    argv = [str(Path(program).with_name("python")), str(TINY_LLAMA), str(folder)]
    made = subprocess.run(argv, capture_output=True, text=True, timeout=MAKE_TIMEOUT_S, check=False)
    if made.returncode:
        raise RuntimeError(made.stderr[-2000:])


def vllm_argv(model: Path, *, name: str, port: int, batch: int, alias: str = "") -> tuple[str, ...]:
    """The command that serves the tiny model on the CPU. Asked for it by its alias, it answers with its name."""
    names = (name, alias) if alias else (name,)
    return (
        VLLM, "serve", str(model), "--served-model-name", *names, "--load-format", "dummy", "--host", "127.0.0.1",
        "--port", str(port), "--max-num-seqs", str(batch), "--max-model-len", "1024", "--dtype", "bfloat16",
        "--enforce-eager",
    )  # fmt: skip


def vllm_environment(home: Path) -> dict[str, str]:
    """What it needs of an environment to stay small and offline."""
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HOME": str(home),
    }
