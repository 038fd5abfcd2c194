"""Compare whole load-test tools as people run them: our command, aiperf, guidellm. One core for all processes of each.

A tool's lateness comes from the server, which logs when each request arrived: all are asked for a constant rate,
so the n-th is due n/rate after the first; the fit is the most favourable one (no request counts as early). The first second
is left out. CPU a request is the difference between a long and a short run, so a tool's start-up is not in it.
A tool comes from an environment of its own, named by a variable: AIPERF=DIR/bin/aiperf, GUIDELLM=DIR/bin/guidellm.
Run by `loadtest_clients.py` after its own table, or alone: `PYTHONPATH=. python benchmarks/loadtest_tools.py`.
"""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.loadtest_server import CHUNKS, log_entries, port_of, quantile, start_server
from tests.scenarios.vllm import make_tiny_llama

LADDER = (25, 50, 100, 200, 300, 400, 700, 1000, 1500, 2000, 2500, 3000)
SECONDS = 5.0
LONG_SECONDS = 15.0
RATE = 100.0
LATENESS_LIMIT_MS = 5.0
PROMPT_TOKENS = 32


@dataclass(frozen=True)
class Tool:
    """A tool: its command for a rate and a length, and where it writes TTFT p50 and p99 (ms)."""

    name: str
    argv: Callable[[str, float, float, Path], list[str]]
    reported: Callable[[Path], tuple[float, float]]
    variable: str = ""

    @property
    def program(self) -> str:
        return os.environ.get(self.variable, "")


def our_argv(url: str, rate: float, seconds: float, out: Path) -> list[str]:
    return [
        sys.executable, "-m", "gpu_actions.loadtest", "--url", url, "--model", "truth", "--target-qps", str(rate),
        "--duration", str(seconds), "--arrival", "constant", "--warmup-s", "0", "--processes", "1", "--max-new-tokens",
        str(CHUNKS), "--prompt-unit", "bytes", "--prompt-len-min", str(PROMPT_TOKENS), "--prompt-len-max",
        str(PROMPT_TOKENS), "--quiet", "--report", str(out), "--output-json", str(out / "result.json"),
    ]  # fmt: skip


def our_report(out: Path) -> tuple[float, float]:
    ttft = json.loads((out / "result.json").read_text())["latency"]["ttft"]
    return ttft["p50"]["value_ms"], ttft["p99"]["value_ms"]


def aiperf_argv(url: str, rate: float, seconds: float, out: Path) -> list[str]:
    return [
        os.environ["AIPERF"], "profile", "--model", "truth", "--url", url, "--endpoint-type", "completions", "--streaming",
        "--tokenizer", str(tokenizer(os.environ["AIPERF"])), "--request-rate", str(rate), "--arrival-pattern", "constant",
        "--benchmark-duration", str(seconds), "--isl", str(PROMPT_TOKENS), "--osl", str(CHUNKS), "--extra-inputs",
        "ignore_eos:true", "--use-legacy-max-tokens", "--use-server-token-count", "--ui", "none", "--no-server-metrics",
        "--no-gpu-telemetry", "--workers-max", "1", "--artifact-dir", str(out),
    ]  # fmt: skip


def aiperf_report(out: Path) -> tuple[float, float]:
    ttft = json.loads((out / "profile_export_aiperf.json").read_text())["time_to_first_token"]
    return ttft["p50"], ttft["p99"]


def guidellm_argv(url: str, rate: float, seconds: float, out: Path) -> list[str]:
    return [
        os.environ["GUIDELLM"], "run", "--backend",
        f"kind=openai_http,target={url},model=truth,request_format=/v1/completions,validate_backend=false,http2=false",
        "--profile", f"kind=constant,rate={rate}", "--constraint", f"kind=max_duration,seconds={seconds}",
        "--tokenizer", f"kind=hf_auto,model={tokenizer(os.environ['GUIDELLM'])}",
        "--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={CHUNKS}",
        "--output", f"kind=json,path={out / 'result.json'}", "--disable-console",
    ]  # fmt: skip


def guidellm_report(out: Path) -> tuple[float, float]:
    metrics = json.loads((out / "result.json").read_text())["benchmarks"][0]["metrics"]
    percentiles = metrics["time_to_first_token_ms"]["successful"]["percentiles"]
    return percentiles["p50"], percentiles["p99"]


TOOLS = (
    Tool("ours", our_argv, our_report),
    Tool("aiperf", aiperf_argv, aiperf_report, "AIPERF"),
    Tool("guidellm", guidellm_argv, guidellm_report, "GUIDELLM"),
)


@functools.cache
def tokenizer(program: str) -> Path:
    """Make a byte tokenizer once, with the tool's own transformers and without a download. It is removed at exit."""
    folder = tempfile.mkdtemp(prefix="gpu-oncall-tokenizer-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_tiny_llama(program, Path(folder))
    return Path(folder)


@dataclass(frozen=True)
class Measured:
    """One run of a tool at one rate."""

    requests: int
    late_p99_ms: float
    cpu_s: float
    p50_error_ms: float
    p99_error_ms: float


def lateness_ms(arrived: list[float], rate: float) -> list[float]:
    """Return how late each request arrived (ms), under the most favourable fit of a constant rate, without the first second."""
    rest = sorted(at for at in arrived if at >= min(arrived) + 1.0)
    offsets = [at - number / rate for number, at in enumerate(rest)]
    return [(offset - min(offsets)) * 1e3 for offset in offsets]


def measure(tool: Tool, port: int, log: Path, rate: float, seconds: float) -> Measured:
    """Run a tool with all its processes on core 0. Raises SystemExit with its last words when it fails."""
    before = log.stat().st_size
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        argv = ["taskset", "-c", "0", *tool.argv(f"http://127.0.0.1:{port}", rate, seconds, out)]
        environment = {**os.environ, "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
        with (out / "output").open("wb") as output:
            process = subprocess.Popen(argv, stdout=output, stderr=output, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in (0, 1, 3):  # ours: 1 failed its limits, 3 void
            raise SystemExit(f"{tool.name} at {rate}: {(out / 'output').read_text()[-600:]}")
        p50, p99 = tool.reported(out)
    entries: list[dict[str, Any]] = log_entries(log, before)
    truth = [(entry["first"] - entry["arrived"]) * 1e3 for entry in entries]
    return Measured(
        requests=len(entries),
        late_p99_ms=quantile(lateness_ms([entry["arrived"] for entry in entries], rate), 0.99),
        cpu_s=usage.ru_utime + usage.ru_stime,
        p50_error_ms=p50 - quantile(truth, 0.5),
        p99_error_ms=p99 - quantile(truth, 0.99),
    )


def highest_rate(tool: Tool, port: int, log: Path) -> tuple[float, float]:
    """Return the highest rate that the tool sustains, and its p99 lateness there. A failed rate is tried twice, as machines
    are shared."""
    best, late = 0.0, 0.0
    for rate in LADDER:
        for _ in range(2):
            run = measure(tool, port, log, rate, SECONDS)
            if run.late_p99_ms < LATENESS_LIMIT_MS and run.requests >= 0.98 * rate * SECONDS:
                best, late = rate, run.late_p99_ms
                break
        else:
            return best, late
    return best, late


def table() -> None:
    """Measure every installed tool and print a line for each."""
    heads = (
        f"{'late p99':>10}{f'late at {RATE:g}/s':>15}{'CPU/request':>13}{'p50 error':>11}{'p99 error':>11}"
    )
    print(f"{'tool':<10}{'highest QPS':>12}{heads}   (CPU and errors at {RATE:g}/s)")
    for tool in TOOLS:
        if tool.variable and not Path(tool.program).is_file():
            print(f"{tool.name:<10}missing: {tool.variable} does not name its program")
            continue
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "truth.jsonl"
            server = start_server(log)
            try:
                port = port_of(server)
                best, late = highest_rate(tool, port, log)
                short, long = (measure(tool, port, log, RATE, s) for s in (SECONDS, LONG_SECONDS))
            finally:
                server.kill()
                server.wait()
        cpu_ms = (long.cpu_s - short.cpu_s) / (long.requests - short.requests) * 1e3
        print(
            f"{tool.name:<10}{best:>12g}{late:>8.2f}ms{long.late_p99_ms:>13.1f}ms{cpu_ms:>11.2f}ms"
            f"{long.p50_error_ms:>9.2f}ms{long.p99_error_ms:>9.2f}ms",
            flush=True,
        )


if __name__ == "__main__":
    table()
