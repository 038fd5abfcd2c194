"""Time passive triage of 8 GPUs, the window apart, with a fake driver; and of this host if it has GPUs.

The fake driver answers at once, and then as slowly as a real H100's was measured (about 30 ms a GPU and sweep). Also shown: the
time from SIGSTOP of a rank to the verdict nccl_hang, and what the judgement alone costs. Goals: under 1 s besides the window;
hang to verdict under 30 s.
"""

import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from aiohttp import web

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.triage.judge import judge

SOURCE = Path(__file__).resolve().parents[1] / "tests" / "data" / "fake_nvml" / "fake_nvml.c"
ROUNDS = 5
WINDOW_S = 1.0
REAL_CALL_US = 200


def fake_driver(folder: Path, latency_us: int) -> None:
    """Build the fake library and put it on the loader's path."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "install gcc"
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    (folder / "fake_nvml.conf").write_text(f"gpus=8\nlatency_us={latency_us}\n")
    os.environ["LD_LIBRARY_PATH"] = str(folder)


def time_triage(target: TriageTarget, limits: TriageThresholds) -> tuple[list[float], str]:
    """Return the seconds of each triage besides the window, and the last verdict."""
    took, words = [], ""
    for _ in range(ROUNDS):
        began = time.perf_counter()
        snapshot = asyncio.run(collect(target, limits))
        verdict = judge(snapshot, limits)
        took.append(time.perf_counter() - began - limits.window_s)
        words = f"{verdict.verdict.value} ({verdict.cause})"
    began = time.perf_counter()
    judge(snapshot, limits)
    print(f"    judgement alone {1000 * (time.perf_counter() - began):.1f} ms")
    return took, words


def show(name: str, took: list[float], words: str) -> None:
    print(
        f"{name}: median {statistics.median(took):.2f} s, worst {max(took):.2f} s besides the window; {words}"
    )


async def hang_to_verdict(limits: TriageThresholds) -> float:
    """Stop a rank of a small tree under an engine that stalls, and run triage until it reports a hang. Return the seconds."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            text="vllm:num_requests_running 2\nvllm:num_requests_waiting 0\nvllm:generation_tokens_total 9\n"
        )

    async def completions(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/v1/completions", completions)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    rank = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import time; time.sleep(600)", "--rank", "0"
    )
    try:
        os.kill(rank.pid, signal.SIGSTOP)
        began = time.perf_counter()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        target = TriageTarget(expect_gpus=0, engine_url=url, model="m", pids=(rank.pid,), ranks=1)
        while judge(await collect(target, limits), limits).cause != "nccl_hang":
            pass
        return time.perf_counter() - began
    finally:
        rank.kill()
        await rank.wait()
        await runner.cleanup()


def main() -> None:
    limits = TriageThresholds(window_s=WINDOW_S)
    real = (
        subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        if shutil.which("nvidia-smi")
        else None
    )
    if real is not None and real.returncode == 0:
        print(real.stdout.strip())
        show("this host", *time_triage(TriageTarget(), limits))
    print(f"hang to verdict, default window: {asyncio.run(hang_to_verdict(TriageThresholds())):.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "kernel.log"
        log.touch()
        for latency_us in (0, REAL_CALL_US):
            fake_driver(Path(folder), latency_us)
            target = TriageTarget(expect_gpus=8, kernel_log=log)
            took, words = time_triage(target, limits)
            show(f"8 fake GPUs, {latency_us} us a call", took, words)
            assert statistics.median(took) < 1, "goal: under 1 s besides the window"


if __name__ == "__main__":
    main()
