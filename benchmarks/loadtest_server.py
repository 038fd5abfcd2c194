"""The server that the load generators are measured against, on core 1. It can log its own times."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SERVER = Path(__file__).parents[1] / "tests" / "gpu_actions" / "loadtest" / "truth_server.py"
TTFT_MS, ITL_MS, CHUNKS = 20.0, 5.0, 16


def start_server(log: Path | None) -> "subprocess.Popen[bytes]":
    """Start a server on core 1. With a log it writes when each request came and when its first token left."""
    options = {"ttft_ms": TTFT_MS, "itl_ms": ITL_MS, **({"log": str(log)} if log else {})}
    argv = ["taskset", "-c", "1", sys.executable, str(SERVER), json.dumps(options)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def port_of(server: "subprocess.Popen[bytes]") -> int:
    """Return the port that the server prints once it listens."""
    assert server.stdout is not None
    return int(server.stdout.readline())


def log_entries(log: Path, start: int) -> list[dict[str, Any]]:
    """Return the log entries after its first `start` bytes. Times are monotonic seconds."""
    with log.open() as lines:
        lines.seek(start)
        return [json.loads(line) for line in lines]


def quantile(values: list[float], share: float) -> float:
    """Return the value below which a share of the values is; infinite without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")
