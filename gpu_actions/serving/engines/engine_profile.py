"""Where an engine writes its profiler's traces, found out from its process: engines do not say it over HTTP.

vLLM has it in `--profiler-config` (from 0.13) or VLLM_TORCH_PROFILER_DIR, SGLang in SGLANG_TORCH_PROFILER_DIR (default /tmp).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import psutil

from gpu_actions.system.listening import listening_process

TRACE_PATTERNS = ("*.pt.trace.json*", "*.trace.json*", "*.trace.gz")
DIRECTORY_VARIABLES = ("VLLM_TORCH_PROFILER_DIR", "SGLANG_TORCH_PROFILER_DIR")


def profile_folder(argv: Sequence[str], environment: dict[str, str], cwd: Path) -> Path | None:
    """Give the folder that a command line or an environment sets for torch profiler traces; None when neither does."""
    found = _from_arguments(argv) or next(
        (environment[name] for name in DIRECTORY_VARIABLES if environment.get(name)), None
    )
    return None if found is None else cwd / found


def _from_arguments(argv: Sequence[str]) -> str | None:
    for position, part in enumerate(argv):
        name, has_value, raw = part.partition("=")
        name = name.replace("_", "-")
        if not has_value:
            raw = argv[position + 1] if position + 1 < len(argv) else ""
        if name in {"--profiler-config.torch-profiler-dir", "--profile-dir"}:
            return raw or None
        if name == "--profiler-config":
            try:
                folder = json.loads(raw).get("torch_profiler_dir")
            except (json.JSONDecodeError, AttributeError):
                continue
            if folder:
                return str(folder)
    return None


def folder_of_listener(port: int) -> Path | None:
    """Give the trace folder of the engine that listens on `port`; None when it cannot be known."""
    process = listening_process(port)
    if process is None:
        return None
    try:
        return profile_folder(process.cmdline(), process.environ(), Path(process.cwd()))
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return None


def traces_since(folder: Path, since_s: float) -> tuple[Path, ...]:
    """Give the trace files below `folder` that were written at or after a Unix time, oldest first."""
    found = {
        path: path.stat().st_mtime
        for pattern in TRACE_PATTERNS
        for path in (*folder.glob(pattern), *folder.glob(f"*/{pattern}"))
        if path.is_file()
    }
    return tuple(sorted((path for path, at in found.items() if at >= since_s), key=found.__getitem__))
