"""Traces of real GPUs, summarised: the torch profiler of the live engine under load, and Nsight Systems where it is found."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NSYS_PLACES = (
    "/usr/local/cuda*/bin/nsys",
    "/opt/nvidia/nsight-systems/*/bin/nsys",
    "/opt/nvidia/nsight-compute/*/host/target-linux-*/nsys",
    "/usr/local/cuda*/nsight-*/**/nsys",
)
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
    return record


def find_nsys() -> str | None:
    """Return nsys on PATH, or in the folders of CUDA and Nsight."""
    places = (path for place in NSYS_PLACES for path in sorted(Path("/").glob(place.lstrip("/"))))
    found = [str(path) for path in places if os.access(path, os.X_OK)]
    return shutil.which("nsys") or (found[-1] if found else None)


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
