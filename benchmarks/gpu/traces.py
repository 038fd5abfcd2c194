"""Traces of real GPUs, summarised: the torch profiler of the live engine under load, and Nsight Systems where it is found."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.hang_faults import NO_MULTICAST
from gpu_actions.plan import Plan
from gpu_actions.serving.interfaces import EngineError
from gpu_actions.trace.in_plan import trace_steps
from gpu_actions.trace.nsys import find_nsys
from gpu_actions.walk import walk
from tests.gpu_actions.site import make_site

WORK = """
import torch
a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
for _ in range(20):
    a @ a
torch.cuda.synchronize()
"""


async def traces(validation: Any) -> dict[str, Any]:
    """Profile the engine with as many ranks as there are GPUs (at most two), then a matrix product under nsys."""
    record: dict[str, Any] = {}
    ranks = min(2, validation.gpus) or 1
    async with validation.engine(ranks, "--profiler-dir", str(validation.work / "profiles")) as (
        _,
        engine,
        _,
    ):
        await engine.start_profile(max_iterations=200)  # takes seconds on a GPU: CUPTI starts
        until = time.monotonic() + 4

        async def stream(number: int) -> None:
            while time.monotonic() < until:
                await engine.complete(f"trace {number}", max_tokens=32, timeout_s=20)

        await asyncio.gather(*(stream(number) for number in range(4)))
        files = await engine.stop_profile()
    record["torch"] = await asyncio.to_thread(summarise, files, validation.out / "trace_torch")
    nsys = find_nsys()
    record["nsys_program"] = nsys
    if nsys is not None:
        record["nsys"] = await asyncio.to_thread(
            run_nsys, nsys, Path(validation.work), validation.out / "trace_nsys"
        )
        record["nsys_live"] = await live(nsys, Path(validation.work), ranks)
    return record


def run_nsys(nsys: str, work: Path, out: Path) -> dict[str, Any]:
    """Trace a matrix product, export it and summarise it. What does not work is returned as nsys's own words."""
    report, export = work / "report.nsys-rep", work / "report.sqlite"
    profile = [
        nsys,
        "profile",
        "--trace=cuda",
        "--sample=none",
        "--cpuctxsw=none",
        "-o",
        str(report),
        "-f",
        "true",
    ]
    for command in (
        [*profile, sys.executable, "-c", WORK],
        [nsys, "export", "--type", "sqlite", "-o", str(export), "--force-overwrite", "true", str(report)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        written = sorted(path.name for path in work.glob("report*"))
        if done.returncode != 0 or not written:
            return {
                "failed": " ".join(command[:2]),
                "written": written,
                "words": (done.stderr + done.stdout)[-900:],
            }
    return summarise((export,), out)


async def live(nsys: str, work: Path, ranks: int) -> dict[str, Any]:
    """Trace an engine that was launched under nsys, as a fallback does by plan: start, load, stop, export, table."""
    argv = [nsys, "launch", "--session-new=tp", "--trace=cuda,nvtx", sys.executable, "-m", "demo.engine"]
    engine = {"kind": "reference", "argv": [*argv, "--model-name", "m", "--tensor-parallel-size", str(ranks)]}
    folder = work / "nsys_live"
    folder.mkdir()
    site = make_site(
        folder,
        tp_engine=engine,
        trace={"in_plans": True, "duration_s": 3},
        ready_timeout_s=180,
        unit={"env": {"PYTHONPATH": os.environ.get("PYTHONPATH", str(Path.cwd())), **NO_MULTICAST}},
    )
    try:
        await site.up()
        plan = Plan(action="fallback", host="test", title="t", steps=trace_steps(site.host, site.host.tp))
        end = await walk(plan, site.host, run_id="fb-live", workdir=folder / "run")
        after = await site.host.tp.engine.complete("still here", max_tokens=2, timeout_s=60)
    except EngineError as error:
        return {"failed": str(error), "log": (await site.host.tp.unit.log_tail(3000))[-3000:]}
    finally:
        await site.down()
    last = end.steps[-1].outcome
    return {
        "said": [step.outcome.summary for step in end.steps],
        "seconds": {step.outcome.step_id: round(step.seconds, 1) for step in end.steps},
        "artifacts": {one.name: one.size_bytes for one in end.steps[-1].artifacts},
        "summary": last.data.get("summary"),
        "tokens_after": after.completion_tokens,
    }


def summarise(files: Any, out: Path) -> dict[str, Any]:
    """Run the child on the files. Keep its summary and its picture under `out`."""
    began = time.monotonic()
    picture = out.with_suffix(".png")
    done = subprocess.run(
        [sys.executable, "-m", "gpu_actions.trace", "--top", "5", "--picture", str(picture), *map(str, files)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    out.with_suffix(".json").write_text(done.stdout)
    sizes = [Path(file).stat().st_size for file in files]
    return {"bytes": sizes, "seconds": round(time.monotonic() - began, 2), "summary": json.loads(done.stdout)}
