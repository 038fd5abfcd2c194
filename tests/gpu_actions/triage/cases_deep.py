"""Hosts with results of the deep probe, and the verdict and cause that must follow."""

from collections.abc import Callable
from typing import Any

from gpu_actions.snapshot.collectors.deep import DeepGpu, DeepPair, DeepReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.triage.baselines import TriageBaseline
from tests.gpu_actions.triage import builders as make


def one_gpu(slot: dict[str, Any] | None = None, **figures: float) -> Snapshot:
    """Return a host with one H100 whose links are off, and its deep probe."""
    alone = make.nvml(1, gpus=(make.gpu(0, links=(), fabric=None, **(slot or {})),))
    deep = DeepReading(backend="nccl", outcome="ok", world_size=1, gpus=(DeepGpu(index=0, **figures),))
    return make.healthy(
        nvml=alone, deep=deep, expected={"gpus": 1, "ranks": None, "links": 0}, ranks=make.ranks(1)
    )


Make = Callable[[], Snapshot]
CASES: dict[str, tuple[Any, ...]] = {
    "an all-reduce that never ends": (
        lambda: make.healthy(
            deep=DeepReading(backend="nccl", outcome="timeout", world_size=8, startup_s=4.0)
        ),
        "fall_back",
        "nccl_hang",
    ),
    "a deep probe that could not start": (lambda: make.healthy(deep=None), "unknown", "unknown"),
    "an all-reduce at PCIe speed": (
        lambda: make.healthy(deep=DeepReading(backend="nccl", outcome="ok", world_size=8, busbw_gbps=27.5)),
        "fall_back",
        "pcie_only",
    ),
    "one slow pair": (
        lambda: make.healthy(
            deep=DeepReading(
                backend="nccl",
                outcome="ok",
                world_size=8,
                busbw_gbps=330,
                pairs=(DeepPair(source=1, target=2, gbps=22),),
            )
        ),
        "fall_back",
        "pcie_only",
    ),
    "one slow GPU": (
        lambda: make.healthy(
            deep=DeepReading(
                backend="nccl",
                outcome="ok",
                world_size=8,
                busbw_gbps=330,
                gpus=(DeepGpu(index=1, gemm_tflops=90),),
            )
        ),
        "watch",
        "throttling",
    ),
    "corrupt data between two GPUs": (
        lambda: make.healthy(
            deep=DeepReading(
                backend="nccl",
                outcome="ok",
                world_size=8,
                busbw_gbps=330,
                pairs=(DeepPair(source=1, target=2, gbps=380, corrupt=True),),
            )
        ),
        "fall_back",
        "data_corruption",
    ),
    "a wrong sum, in a probe that failed afterwards": (
        lambda: make.healthy(
            deep=DeepReading(
                backend="nccl", outcome="failed", world_size=8, gpus=(DeepGpu(index=3, wrong_sum=7.0),)
            )
        ),
        "fall_back",
        "data_corruption",
    ),
    "a GPU at half speed": (lambda: one_gpu(gemm_tflops=402), "watch", "throttling"),
    "a GPU at full speed": (lambda: one_gpu(gemm_tflops=780), "healthy", "none"),
    "a GPU whose memory runs at half speed": (lambda: one_gpu(memory_gbps=1400), "watch", "throttling"),
    "a GPU whose memory runs at full speed": (lambda: one_gpu(memory_gbps=2450), "healthy", "none"),
    "a GPU at half the lanes of its slot": (
        lambda: one_gpu(to_gpu_gbps=55.1, from_gpu_gbps=27.0),
        "watch",
        "pcie_degraded",
    ),
    "a GPU with all lanes of its slot": (
        lambda: one_gpu(to_gpu_gbps=55.1, from_gpu_gbps=54.8),
        "healthy",
        "none",
    ),
    "GPUs that reach full speed alone and share a switch": (
        lambda: one_gpu(
            to_gpu_gbps=55.1, from_gpu_gbps=54.8, to_gpu_together_gbps=27.2, from_gpu_together_gbps=26.9
        ),
        "healthy",
        "none",
    ),
    "a GPU below the memory bandwidth of its own baseline": (
        lambda: one_gpu(memory_gbps=2000),
        "watch",
        "throttling",
        {"baseline": TriageBaseline(memory_gbps=2900)},
    ),
    "a GPU of a slow slot, as its baseline says": (
        lambda: one_gpu(to_gpu_gbps=12.5, from_gpu_gbps=12.9),
        "healthy",
        "none",
        {"baseline": TriageBaseline(host_link_gbps=12.7)},
    ),
    "slow copies in a slot whose generation is not known": (
        lambda: one_gpu({"pcie_generation_max": None}, to_gpu_gbps=1.0, from_gpu_gbps=1.0),
        "healthy",
        "none",
    ),
    "slow copies in a slot whose width is not known": (
        lambda: one_gpu({"pcie_width_max": None}, to_gpu_gbps=1.0, from_gpu_gbps=1.0),
        "healthy",
        "none",
    ),
    "a slow model beside a fast one, each at its own speed": (
        lambda: make.healthy(
            nvml=make.with_gpu(1, name="NVIDIA H20"),
            deep=DeepReading(
                backend="nccl",
                outcome="ok",
                world_size=8,
                busbw_gbps=330,
                gpus=(DeepGpu(index=0, gemm_tflops=790), DeepGpu(index=1, gemm_tflops=115)),
            ),
        ),
        "healthy",
        "none",
    ),
    "an unknown model beside known ones, whose all-reduce nothing judges": (
        lambda: make.healthy(
            nvml=make.with_gpu(1, name="NVIDIA X999"),
            deep=DeepReading(backend="nccl", outcome="ok", world_size=8, busbw_gbps=27.5),
        ),
        "healthy",
        "none",
    ),
    "a good deep probe": (
        lambda: make.healthy(deep=DeepReading(backend="nccl", outcome="ok", world_size=8, busbw_gbps=331)),
        "healthy",
        "none",
    ),
    "a deep probe over gloo, which is not judged as a GPU": (
        lambda: make.healthy(deep=DeepReading(backend="gloo", outcome="ok", world_size=2, busbw_gbps=0.4)),
        "healthy",
        "none",
    ),
}
