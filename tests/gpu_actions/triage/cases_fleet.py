"""Hosts as fleets have them: replicas, tiers on some of the GPUs, services beside them, and the verdict that must follow."""

from collections.abc import Callable
from typing import Any

from gpu_actions.serving.interfaces import ReplicaMetrics
from gpu_actions.snapshot.collectors.engine import EngineReading
from gpu_actions.snapshot.collectors.kernel_log import KernelLogReading
from gpu_actions.snapshot.collectors.nvml import GpuProcess, NvmlReading
from gpu_actions.snapshot.model import Snapshot
from tests.gpu_actions.triage import builders as make
from tests.gpu_actions.triage.cases_gpus import FLAT, HUNG, shared


def replicated(
    *moved: float, running: float = 3, kv: tuple[float, float] = (0.1, 0.1), **odd: str
) -> EngineReading:
    """Return an engine with replicas that generated so many tokens; the first one's KV cache goes from one use to another."""
    base = make.engine(running=running * len(moved), tokens=(0, sum(moved)))

    def replicas(at_end: bool) -> tuple[ReplicaMetrics, ...]:
        return tuple(
            ReplicaMetrics(
                name=str(number),
                running=running,
                waiting=0,
                progress=tokens if at_end else 0,
                kv_cache_usage=kv[at_end] if number == 0 else 0.5,
                outcome=odd.get(f"r{number}", "ok"),
            )
            for number, tokens in enumerate(moved)
        )

    first, last = base.samples
    return base.model_copy(
        update={
            "samples": (
                first.model_copy(update={"replicas": replicas(False)}),
                last.model_copy(update={"replicas": replicas(True)}),
            )
        }
    )


def placed(ranks: int, **changes: Any) -> NvmlReading:
    """Return eight GPUs with a rank on each of the first ones; `g6={"error": ...}` changes one."""
    gpus = [
        one.model_copy(
            update={
                "processes": (GpuProcess(pid=200 + one.index, name="python3"),) if one.index < ranks else (),
                **changes.get(f"g{one.index}", {}),
            }
        )
        for one in make.nvml().gpus
    ]
    return make.nvml(gpus=tuple(gpus))


def partial(
    ranks: int, *, tier: str = "tp", changes: dict[str, Any] | None = None, **readings: Any
) -> Snapshot:
    """Return a host whose tier has some of the eight GPUs."""
    server = {"tp": "tp", "fallback": "fb"}[tier]
    return make.healthy(
        nvml=placed(ranks, **(changes or {})),
        ranks=make.ranks(ranks),
        ras=make.ras([9] * ranks, [12] * ranks),
        expected={"ranks": ranks, "tier": tier, "router_server": server},
        **readings,
    )


def xid(code: int, pci: str) -> KernelLogReading:
    log = make.log((code, "GPU has fallen off the bus"))
    return log.model_copy(update={"events": (log.events[0].model_copy(update={"pci": pci}),)})


LOST = {"error": "gpu_is_lost", "processes": ()}
MPS = GpuProcess(pid=999, memory_mib=30, sm_percent=90, name="nvidia-cuda-mps")


def capped(watts: float, *, on: int = 3) -> NvmlReading:
    return make.nvml(
        gpus=tuple(make.gpu(index, power_limit_w=watts if index == on else 700.0) for index in range(8))
    )


Make = Callable[[], Snapshot]
CASES: dict[str, tuple[Make, str, str]] = {
    "one of four replicas hangs": (
        lambda: make.healthy(engine=replicated(0, 90, 80, 70)), "watch", "engine_stalled",
    ),
    "one of four replicas reads a long prompt": (
        lambda: make.healthy(engine=replicated(0, 90, 80, 70, kv=(0.1, 0.2))), "healthy", "none",
    ),
    "one of four replicas answers nothing": (
        lambda: make.healthy(engine=replicated(70, 90, 80, 0, r3="timeout")), "watch", "engine_stalled",
    ),
    "one of four replicas is down": (
        lambda: make.healthy(engine=replicated(70, 90, 80, 0, r3="refused")), "watch", "engine_down",
    ),
    "the page of one of four replicas cannot be read": (
        lambda: make.healthy(engine=replicated(70, 90, 80, 0, r3="http_error")), "unknown", "unknown",
    ),
    "all replicas hang": (
        lambda: make.healthy(engine=replicated(0, 0), completion=HUNG, ranks=make.ranks(8, r5="T")),
        "fall_back", "nccl_hang",
    ),
    "requests that stand still beside a completion that is answered": (
        lambda: make.healthy(engine=make.engine(tokens=(1000, 1002))), "watch", "engine_stalled",
    ),
    "a long prompt beside a completion that is answered, its KV cache fills": (
        lambda: make.healthy(engine=make.engine(tokens=(1000, 1002), kv_cache_usage=0.4)), "healthy", "none",
    ),
    "a long prompt beside a completion that is answered, its GPUs work": (
        lambda: make.healthy(engine=make.engine(tokens=(1000, 1002)), nvml=shared(own_sm=60)), "healthy", "none",
    ),
    "a lost GPU that the tier does not use": (
        lambda: partial(4, changes={"g6": LOST}), "watch", "gpu_lost",
    ),
    "a lost GPU that the fallback tier does not use": (
        lambda: partial(1, tier="fallback", changes={"g3": LOST}), "watch", "gpu_lost",
    ),
    "a reset asked for by a GPU that the tier does not use": (
        lambda: partial(4, changes={"g7": {"recovery_action": 1}}), "watch", "gpu_reset_required",
    ),
    "an Xid 79 of a GPU that the tier does not use": (
        lambda: partial(4, changes={"g6": LOST}, kernel_log=xid(79, "0000:79:00")), "watch", "gpu_lost",
    ),
    "an Xid 79 of a GPU that NVML lists no more, beside a fallback tier that serves": (
        lambda: partial(1, tier="fallback", kernel_log=xid(79, "0000:89:00")).model_copy(
            update={"nvml": placed(1).model_copy(update={"count": 7, "gpus": placed(1).gpus[:7]})}
        ), "watch", "gpu_lost",
    ),
    "an Xid 119 of the fallback tier's own GPU": (
        lambda: partial(1, tier="fallback", kernel_log=xid(119, "0000:19:00")), "fall_back", "gpu_reset_required",
    ),
    "a fatal error of a switch beside a tier on four GPUs": (
        lambda: partial(4, kernel_log=make.sxid("Fatal, Link 12")), "fall_back", "nvlink_loss",
    ),
    "a GPU fewer than expected beside a fallback tier that serves": (
        lambda: partial(1, tier="fallback").model_copy(
            update={"nvml": placed(1).model_copy(update={"count": 7, "gpus": placed(1).gpus[:7]})}
        ), "watch", "gpu_lost",
    ),
    "a lost GPU of the tier": (
        lambda: partial(4, changes={"g2": LOST}), "fall_back", "gpu_lost",
    ),
    "a lost GPU that a stalled tier does not use": (
        lambda: partial(4, changes={"g6": LOST}, engine=FLAT, completion=HUNG), "fall_back", "gpu_lost",
    ),
    "a lost GPU of a tier whose processes NVML does not list": (
        lambda: make.healthy(nvml=make.with_gpu(6, **LOST), ranks=make.ranks(4), expected={"ranks": 4}),
        "fall_back", "gpu_lost",
    ),
    "one GPU of eight with half the power limit, idle": (
        lambda: make.healthy(nvml=capped(350), engine=make.engine(running=0, tokens=(5, 5))), "watch", "throttling",
    ),
    "one GPU of eight with a slightly lower power limit": (lambda: make.healthy(nvml=capped(690)), "healthy", "none"),
    "GPUs of two models, each with its own power limit": (
        lambda: make.healthy(
            nvml=make.nvml(gpus=tuple(
                make.gpu(index, **({"name": "NVIDIA H200", "power_limit_w": 700.0} if index < 4 else {"power_limit_w": 350.0}))
                for index in range(8)
            ))
        ), "healthy", "none",
    ),
    "GPUs shared through MPS": (
        lambda: make.healthy(nvml=make.nvml(gpus=tuple(
            make.gpu(index, processes=(GpuProcess(pid=200 + index, sm_percent=0, name="python3"), MPS)) for index in range(8)
        ))), "healthy", "none",
    ),
    "an MPS server after a stop of the tier": (
        lambda: make.healthy(
            nvml=make.nvml(gpus=tuple(make.gpu(index, processes=(MPS,)) for index in range(8))),
            expected={"tier_expected": False},
        ), "healthy", "none",
    ),
    "a driver so slow that not all GPUs were read": (
        lambda: make.healthy(nvml=make.nvml(5).model_copy(update={"count": 8, "unfinished": True})),
        "unknown", "unknown",
    ),
    "a driver so slow that not all GPUs were read, under a stall": (
        lambda: make.healthy(
            nvml=make.nvml(5).model_copy(update={"count": 8, "unfinished": True}), engine=FLAT, completion=HUNG, ras=None
        ), "unknown", "engine_stalled",
    ),
    "a GPU fatal time-out (Xid 158)": (
        lambda: make.healthy(kernel_log=make.log((158, "GPU fatal timeout"))), "fall_back", "gpu_reset_required",
    ),
    "a retired part of a GPU (Xid 156)": (
        lambda: make.healthy(kernel_log=make.log((156, "Resource retirement event"))), "watch", "row_remap_pending",
    ),
    "an uncorrected error of SRAM (Xid 172)": (
        lambda: make.healthy(kernel_log=make.log((172, "SRAM UCE"))), "fall_back", "ecc_uncorrected",
    ),
}  # fmt: skip
