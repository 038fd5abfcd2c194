"""Time the deep probe from its start to its figures, start-up and measuring apart.

On a host with two or more GPUs it runs over NCCL, healthy and again as an authentic PCIe-only failover
(NCCL_P2P_DISABLE=1), and with a rank that never joins; elsewhere over gloo, labelled so. Goal: under 10 s on 2 GPUs.
"""

import argparse
import asyncio
import time

from gpu_actions.snapshot.collectors.deep import DeepReading, run_probe
from gpu_actions.snapshot.collectors.nvml import collect_nvml


def show(name: str, reading: DeepReading, seconds: float) -> None:
    started = "-" if reading.startup_s is None else f"{reading.startup_s:.1f} s"
    busbw = "-" if reading.busbw_gbps is None else f"{reading.busbw_gbps:.1f} GB/s"
    versions = f"torch {reading.torch_version}, NCCL {reading.nccl_version or '-'}"
    print(f"{name} ({reading.backend}, {reading.world_size} ranks, {versions})")
    print(
        f"  {reading.outcome} in {seconds:.1f} s, start-up {started}, measuring {reading.measure_s or 0:.1f} s {reading.detail}"
    )
    print(f"  all-reduce of {reading.message_bytes / 2**20:.0f} MiB: busbw {busbw}")
    for pair in reading.pairs:
        print(f"  copy {pair.source} -> {pair.target}: {pair.gbps:.1f} GB/s")
    for gpu in reading.gpus:
        print(
            f"  GPU {gpu.index} {gpu.uuid}: "
            + (f"{gpu.gemm_tflops:.1f} TFLOP/s" if gpu.gemm_tflops else gpu.error or "-")
        )


async def timed(name: str, **options: object) -> tuple[DeepReading, float]:
    began = time.perf_counter()
    reading = await run_probe(**options)  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    show(name, reading, seconds)
    return reading, seconds


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="message of the all-reduce")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    reading = await collect_nvml(expect_gpus=None, window_s=0.2, stall_s=5) if _has_driver() else None
    gpus = len(reading.gpus) if reading is not None else 0
    backend = "nccl" if gpus >= 2 else "gloo"
    world_size = gpus if gpus >= 2 else 2
    size = options.mib * 2**20 if backend == "nccl" else 4 * 2**20
    common = {"world_size": world_size, "backend": backend, "message_bytes": size, "deadline_s": 120.0}
    worst = 0.0
    for number in range(options.rounds):
        _, seconds = await timed(f"healthy, round {number + 1}", **common)
        worst = max(worst, seconds)
    if backend == "nccl":
        await timed("PCIe only", **common, environment={"NCCL_P2P_DISABLE": "1"})
    await timed("a rank that never joins", **{**common, "deadline_s": 20.0}, hang_rank=1)
    print(f"worst healthy round {worst:.1f} s (goal on 2 GPUs: under 10 s)")


def _has_driver() -> bool:
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    asyncio.run(main())
