"""Servers with known behaviour for the tests, each in a separate process that ends with the test."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpu_actions.loadtest.spec import LoadSpec

SERVER = Path(__file__).with_name("truth_server.py")


@dataclass(frozen=True)
class Truth:
    """A running server. `log` has one JSON line per finished request."""

    port: int
    log: Path
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def spec(self, **fields: object) -> LoadSpec:
        """Return a short load on this server, from one process, without NVML."""
        defaults: dict[str, object] = {
            "url": self.url, "model": "truth", "duration_s": 2, "target_qps": 30, "max_new_tokens": 8, "warmup_s": 0.5,
            "timeout_s": 10, "measure_energy": False, "processes": 1, "seed": 7,
        }  # fmt: skip
        return LoadSpec.model_validate({**defaults, **fields})

    def logged(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


StartServer = Callable[..., Truth]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start a server with `start_server(ttft_ms=20, lie="stall")`. It ends after the test."""
    with contextlib.ExitStack() as stack:
        started = 0

        def start(**options: object) -> Truth:
            nonlocal started
            started += 1
            log = tmp_path / f"truth-{started}.jsonl"
            process = subprocess.Popen(
                [sys.executable, str(SERVER), json.dumps({"log": str(log), **options})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
            assert process.stdout is not None
            return Truth(port=int(process.stdout.readline()), log=log, process=process)

        yield start
