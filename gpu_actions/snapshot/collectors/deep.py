"""The deep probe: all-reduce, copies and a GEMM on all GPUs, in a group of ranks that is killed at its deadline.

Free memory is checked first, from the snapshot: beside a running tier there is usually none, and the probe must not take the
tier down. NVLS is off (`NCCL_NVLS_ENABLE=0`): floors and baselines are figures of NCCL's rings.
"""

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.snapshot.child_lines import lines_of
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.nvml import NvmlReading
from gpu_actions.system.processes import child_environment
from gpu_actions.system.redact import redacted_tail

FOLDER_PREFIX = "gpu-oncall-deep-"
LEFTOVER_AGE_S = 3600.0
CHILD = "gpu_actions.snapshot.collectors.deep_child"
ENVIRONMENT = {
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_RAS_ENABLE": "0",  # the tier's own RAS keeps its port
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's order, so that figures name the right GPU
    "CUDA_MODULE_LOADING": "LAZY",
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class DeepGpu(Frozen):
    """Figures of one rank's GPU; None if the rank did not get that far."""

    index: int
    uuid: str = ""
    gemm_tflops: float | None = None
    memory_gbps: float | None = Field(default=None, description="copy within its memory, read plus written")
    to_gpu_gbps: float | None = Field(
        default=None, description="copy from pinned host memory, while no other GPU copies"
    )
    from_gpu_gbps: float | None = Field(default=None, description="copy to pinned host memory, alone")
    to_gpu_together_gbps: float | None = Field(
        default=None, description="the same while all GPUs copy at once: what they share"
    )
    from_gpu_together_gbps: float | None = None

    @property
    def host_link_gbps(self) -> float | None:
        """The slower direction between the host and the GPU."""
        rates = [rate for rate in (self.to_gpu_gbps, self.from_gpu_gbps) if rate is not None]
        return min(rates, default=None)

    wrong_sum: float | None = Field(default=None, description="a wrong result of its all-reduce of ones")
    error: str = ""


class DeepPair(Frozen):
    """A measured copy from one GPU to another."""

    source: int
    target: int
    gbps: float = Field(ge=0)
    corrupt: bool = Field(default=False, description="the data that arrived differs from what was sent")


class DeepReading(Frozen):
    """Figures of the deep probe. With the backend gloo they are those of CPU tensors, not of a GPU."""

    backend: Literal["nccl", "gloo"]
    outcome: Literal["ok", "timeout", "failed"]
    detail: str = ""
    world_size: int = 0
    message_bytes: int = 0
    allreduce_ms: float | None = None
    busbw_gbps: float | None = None
    gpus: tuple[DeepGpu, ...] = ()
    pairs: tuple[DeepPair, ...] = ()
    startup_s: float | None = None
    measure_s: float | None = None
    nccl_version: str = ""
    torch_version: str = ""


class RankLog:
    """The records of one rank so far, by event."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.records: dict[str, dict[str, Any]] = {}

    def get(self, event: str, field: str) -> Any:
        return self.records.get(event, {}).get(field)


def check_headroom(nvml: NvmlReading | None, *, free_gib: float) -> int:
    """Return the number of GPUs to probe. Raises CollectorFailed if memory is short or a GPU cannot be probed."""
    if nvml is None or not nvml.gpus:
        raise CollectorFailed("no GPU was read, so none can be probed")
    if nvml.hung_call is not None:
        raise CollectorFailed(f"the driver hangs in {nvml.hung_call}: the probe would hang as well")
    bad = [gpu for gpu in nvml.gpus if gpu.error is not None]
    if bad:
        raise CollectorFailed(f"{bad[0].label} cannot be used: {bad[0].error}")
    partitioned = [gpu for gpu in nvml.gpus if gpu.mig]
    if partitioned:
        raise CollectorFailed(f"{partitioned[0].label} is partitioned (MIG): collectives do not apply")
    short = [gpu for gpu in nvml.gpus if gpu.memory_free_mib is None or gpu.memory_free_mib < free_gib * 1024]
    if short:
        there = short[0].memory_free_mib
        words = "unknown" if there is None else f"{there / 1024:.1f} GiB"
        raise CollectorFailed(
            f"not enough free memory on {len(short)} GPUs ({short[0].label}: {words}, {free_gib:g} GiB needed): "
            "the tier holds it; run the deep triage again once the tier is stopped"
        )
    return len(nvml.gpus)


async def collect_deep(source: Source) -> DeepReading:
    """Run the probe on all GPUs. Raises CollectorSkipped if it was not requested or there are no GPUs."""
    limits = source.limits
    if not source.deep:
        raise CollectorSkipped("the deep probe was not requested")
    if source.target.expect_gpus == 0:
        raise CollectorSkipped("this host has no GPUs (hosts.gpus = 0)")
    world_size = check_headroom(source.readings.get("nvml"), free_gib=limits.deep_free_gib)
    return await run_probe(
        world_size,
        backend="nccl",
        deadline_s=limits.deep_deadline_s,
        message_bytes=limits.deep_message_mib * 2**20,
    )


async def run_probe(
    world_size: int,
    *,
    backend: Literal["nccl", "gloo"],
    deadline_s: float,
    message_bytes: int,
    environment: dict[str, str] | None = None,
    hang_rank: int = -1,
    spoil: str = "",
) -> DeepReading:
    """Start `world_size` ranks, wait for them until the deadline, and kill what is left.

    busbw = bytes / seconds x 2(n-1)/n, as in nccl-tests. For tests, `hang_rank` never enters the all-reduce, and
    `spoil` (SOURCE:TARGET) corrupts a copy.
    """
    began = time.monotonic()
    logs = {rank: RankLog(rank) for rank in range(-1, world_size)}
    errors: list[str] = []
    await asyncio.to_thread(_remove_leftovers)
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
        values = {
            "world-size": world_size,
            "backend": backend,
            "store": Path(folder) / "store",
            "message-bytes": message_bytes,
            "timeout-s": deadline_s,
            "hang-rank": hang_rank,
            "spoil": spoil,
        }
        argv = [sys.executable, "-m", CHILD, *[f"--{name}={value}" for name, value in values.items()]]
        env = {**child_environment(), **ENVIRONMENT, **(environment or {})}
        async with aclosing(lines_of(argv, deadline_s=deadline_s, env=env, errors=errors)) as lines:
            async for line in lines:
                record = record_of(line)
                if record is not None and record["rank"] in logs:
                    logs[record["rank"]].records[record["event"]] = record
                    if record["event"] == "error":
                        break  # the others would wait for this rank until the deadline
    ranks = [log for rank, log in logs.items() if rank >= 0]
    reading = reading_of(
        ranks, backend=backend, message_bytes=message_bytes, seconds=time.monotonic() - began
    )
    if reading.outcome == "timeout" and errors:
        return reading.model_copy(
            update={"detail": f"{reading.detail}: {redacted_tail(errors[0].splitlines()[-1], 200)}"}
        )
    return reading


def record_of(line: bytes) -> dict[str, Any] | None:
    """Parse a record of a rank. Return None for anything else, such as a line of a library."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    wanted = (
        isinstance(record, dict)
        and isinstance(record.get("rank"), int)
        and isinstance(record.get("event"), str)
    )
    return record if wanted else None


def reading_of(
    logs: Sequence[RankLog], *, backend: Literal["nccl", "gloo"], message_bytes: int, seconds: float
) -> DeepReading:
    """Combine the ranks' figures; the slowest rank counts."""
    world_size = len(logs)
    slowest = [log.get("all_reduce", "seconds") for log in logs]
    reduce_s = max(slowest) if all(value is not None for value in slowest) else None
    busbw = None
    if reduce_s and world_size > 1:
        busbw = message_bytes / reduce_s * 2 * (world_size - 1) / world_size / 1e9
    pairs = [
        DeepPair(**pair)
        for log in logs
        for event, record in log.records.items()
        if event.startswith("copies_")
        for pair in record["pairs"]
    ]
    started = [log.get("started", "seconds") for log in logs]
    outcome, detail = _outcome(logs, seconds)
    return DeepReading(
        backend=backend,
        outcome=outcome,
        detail=detail,
        world_size=world_size,
        message_bytes=message_bytes,
        allreduce_ms=None if reduce_s is None else reduce_s * 1000,
        busbw_gbps=busbw,
        gpus=tuple(
            DeepGpu(
                index=log.rank,
                uuid=log.get("started", "uuid") or "",
                gemm_tflops=log.get("gemm", "tflops"),
                memory_gbps=log.get("memory", "gbps"),
                to_gpu_gbps=log.get("host_link", "to_gpu_gbps"),
                from_gpu_gbps=log.get("host_link", "from_gpu_gbps"),
                to_gpu_together_gbps=log.get("host_link_together", "to_gpu_gbps"),
                from_gpu_together_gbps=log.get("host_link_together", "from_gpu_gbps"),
                wrong_sum=log.get("all_reduce", "wrong_sum"),
                error=log.get("error", "text") or "",
            )
            for log in logs
        ),
        pairs=tuple(pairs),
        startup_s=max(started) if all(value is not None for value in started) else None,
        measure_s=max((log.get("done", "seconds") or 0.0 for log in logs), default=None),
        nccl_version=logs[0].get("started", "nccl") or "" if logs else "",
        torch_version=logs[0].get("started", "torch") or "" if logs else "",
    )


def _outcome(logs: Sequence[RankLog], seconds: float) -> tuple[Literal["ok", "timeout", "failed"], str]:
    if all("done" in log.records for log in logs):
        return "ok", ""
    failed = [log for log in logs if "error" in log.records]
    if failed:
        return "failed", f"rank {failed[0].rank}: {failed[0].get('error', 'text')}"
    behind = min(logs, key=lambda log: len(log.records))
    last = list(behind.records)[-1] if behind.records else "its start"
    return "timeout", f"rank {behind.rank} did not get beyond {last!r} within {seconds:.1f} s"


def _remove_leftovers() -> None:
    """Remove the folders of probes whose process was killed."""
    oldest = time.time() - LEFTOVER_AGE_S
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder)


DEEP = Collector(
    collect=collect_deep, deadline_s=lambda source: source.limits.deep_deadline_s + 5, runs_alone=True
)
