"""Hosts whose slots, routes between GPUs or fabric are odd or fail, and the verdict and cause that must follow."""

from typing import Any

from gpu_actions.snapshot.collectors.fabric_manager import FabricManagerReading
from gpu_actions.snapshot.collectors.nvml import FabricReading, GpuSample, NvmlReading
from tests.gpu_actions.triage import builders as make

H100_LINKS = make.gpu(0).links


def sampled(*, first: dict[str, Any], last: dict[str, Any], **changes: Any) -> NvmlReading:
    """Return the healthy GPUs, with other readings of GPU 1 at the ends of the window."""
    one = make.gpu(1)
    return make.with_gpu(
        1,
        first=one.first.model_copy(update=first),
        last=GpuSample.model_validate(one.latest.model_dump() | last),
        **changes,
    )


def fabric(**changes: Any) -> NvmlReading:
    return make.with_gpu(4, fabric=FabricReading(**{"state": 3, **changes}))


def manager(**changes: str) -> FabricManagerReading:
    return FabricManagerReading(**{"unit": "fm", "load_state": "loaded", "active_state": "active", **changes})


def pairs(status: int | None, *, first: int = 0, second: int = 1, ancestor: int | None = 40) -> NvmlReading:
    """Return the healthy GPUs, one pair of which has another P2P status."""
    base = make.nvml()
    changed = {"nvlink_p2p": status, "common_ancestor": ancestor}
    rows = tuple(
        row.model_copy(update=changed) if (row.first, row.second) == (first, second) else row
        for row in base.pairs
    )
    return base.model_copy(update={"pairs": rows, "pairs_unread": None if status is not None else "unknown"})


CASES: dict[str, tuple[Any, ...]] = {
    # PCIe and P2P
    "one pair without P2P over NVLink": (lambda: make.healthy(nvml=pairs(5)), "fall_back", "pcie_only"),
    "one pair without P2P, on an unknown route": (
        lambda: make.healthy(nvml=pairs(3, first=2, second=7, ancestor=None)), "fall_back", "pcie_only"
    ),
    "one pair whose P2P status cannot be read": (
        lambda: make.healthy(nvml=pairs(None)), "unknown", "unknown"
    ),
    "no pair was read": (lambda: make.healthy(nvml=make.nvml(pairs=())), "unknown", "unknown"),
    "P2P level 0": (
        lambda: make.healthy(environment=make.environment(NCCL_P2P_LEVEL="0")), "fall_back", "pcie_only"
    ),
    "P2P level loc, in small letters": (
        lambda: make.healthy(environment=make.environment(NCCL_P2P_LEVEL=" loc ")), "fall_back", "pcie_only"
    ),
    "P2P disabled with an empty value": (
        lambda: make.healthy(environment=make.environment(NCCL_P2P_DISABLE=" ")), "healthy", "none"
    ),
    "CUDA_VISIBLE_DEVICES with all GPUs": (
        lambda: make.healthy(environment=make.environment(CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7")),
        "healthy",
        "none",
    ),
    "CUDA_VISIBLE_DEVICES with one GPU too few": (
        lambda: make.healthy(environment=make.environment(CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,")),
        "watch",
        "environment",
    ),
    "CUDA_VISIBLE_DEVICES of a fallback tier": (
        lambda: make.healthy(
            environment=make.environment(CUDA_VISIBLE_DEVICES="3"),
            expected={"tier": "fallback", "router_server": "fb"},
        ),
        "healthy",
        "none",
    ),
    "a slot at a lower generation that is idle at one end": (
        lambda: make.healthy(
            nvml=sampled(
                first={"pcie_generation": 1, "utilisation_percent": 10}, last={"pcie_generation": 1}
            )
        ),
        "healthy",
        "none",
    ),
    "a slot that reaches its generation at one end": (
        lambda: make.healthy(nvml=sampled(first={"pcie_generation": 1}, last={})), "healthy", "none"
    ),
    "a slot at a lower generation and half its lanes under load": (
        lambda: make.healthy(
            nvml=sampled(first={"pcie_generation": 3}, last={"pcie_generation": 4}, pcie_width=8)
        ),
        "watch",
        "pcie_degraded",
    ),
    "one replay of PCIe within the window": (
        lambda: make.healthy(nvml=sampled(first={"pcie_replays": 2}, last={"pcie_replays": 3})),
        "healthy",
        "none",
    ),
    "two replays of PCIe within the window": (
        lambda: make.healthy(nvml=sampled(first={"pcie_replays": 2}, last={"pcie_replays": 4})),
        "watch",
        "pcie_degraded",
    ),
    # the fabric
    "a fabric that registers": (
        lambda: make.healthy(nvml=fabric(state=2)), "watch", "fabric_manager_down"
    ),
    "a fabric that registers under a stall": (
        lambda: make.healthy(
            nvml=fabric(state=2),
            engine=make.engine(tokens=(1000, 1000)),
            completion=make.completion("timeout", tokens=0),
        ),
        "fall_back",
        "fabric_manager_down",
    ),
    "a registration that ended with an error": (
        lambda: make.healthy(nvml=fabric(status=15)), "fall_back", "nvlink_loss"
    ),
    **{
        f"a fabric with {name.replace('_', ' ')}": (
            lambda name=name: make.healthy(nvml=fabric(**{name: True})), "watch", "nvlink_errors"
        )
        for name in ("degraded_bandwidth", "route_recovery", "access_timeout", "incorrect_configuration")
    },
    "a fabric manager that reloads": (
        lambda: make.healthy(fabric_manager=manager(active_state="reloading")), "healthy", "none"
    ),
    "a fabric manager that failed by its core": (
        lambda: make.healthy(fabric_manager=manager(active_state="failed", result="core-dump")),
        "watch",
        "fabric_manager_down",
    ),
    "a fabric manager that is not installed": (
        lambda: make.healthy(fabric_manager=manager(load_state="not-found", active_state="inactive")),
        "healthy",
        "none",
    ),
}  # fmt: skip
