"""Hosts with faults of GPUs, links, drivers or the tier's environment, and the verdict and cause that must follow."""

from collections.abc import Callable
from typing import Any

from gpu_actions.snapshot.collectors.fabric_manager import FabricManagerReading
from gpu_actions.snapshot.collectors.nvml import GpuProcess, LinkReading, NvmlReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.triage.baselines import baseline_from
from tests.gpu_actions.triage import builders as make

FLAT = make.engine(tokens=(1000, 1000))
HUNG = make.completion("timeout", tokens=0)


def bridged(
    count: int,
    *,
    group: int,
    name: str = "NVIDIA H100 NVL",
    hidden: bool = False,
    switch: bool = False,
    lost: int = 0,
) -> NvmlReading:
    """Return GPUs that reach each other over NVLink within groups; GPU 0 has lost some links."""
    base = make.nvml(count)
    links = 18 if switch else 12
    gpus = []
    for one in base.gpus:
        partner = base.gpus[one.index ^ 1]
        end = None if hidden else "00000000:05:00.0" if switch else partner.pci
        gpus.append(
            one.model_copy(
                update={
                    "name": name,
                    "fabric": None,
                    "links": tuple(
                        LinkReading(
                            index=number,
                            active=not (one.index == 0 and number < lost),
                            remote_kind="switch" if switch else "gpu",
                            remote_pci=end,
                            speed_mbps=26562,
                        )
                        for number in range(links)
                    ),
                }
            )
        )
    pairs = tuple(
        pair.model_copy(update={"nvlink_p2p": 0 if pair.first // group == pair.second // group else 5})
        for pair in base.pairs
    )
    return base.model_copy(update={"gpus": tuple(gpus), "pairs": pairs})


def of_four(nvml: NvmlReading) -> Snapshot:
    return make.healthy(
        nvml=nvml, ranks=make.ranks(4), ras=make.ras([9] * 4, [12] * 4), expected={"gpus": 4, "ranks": 4}
    )


def shared(*, own_sm: float, stranger_sm: float | None = None, watts: float = 300) -> NvmlReading:
    """Return GPUs on which the tier's ranks run at some power, and a stranger on GPU 2."""
    base = make.nvml()
    gpus = []
    for one in base.gpus:
        rows = [GpuProcess(pid=200 + one.index, memory_mib=60000, sm_percent=own_sm, name="python3")]
        if one.index == 2 and stranger_sm is not None:
            rows.append(GpuProcess(pid=9999, memory_mib=9000, sm_percent=stranger_sm, name="train.py"))
        sample = one.first.model_copy(update={"power_w": watts, "utilisation_percent": 100})
        changes = {"processes": tuple(rows), "power_limit_w": 700.0, "first": sample, "last": sample}
        gpus.append(one.model_copy(update=changes))
    return base.model_copy(update={"gpus": tuple(gpus)})


KNOWN = baseline_from(make.healthy())
Make = Callable[[], Snapshot]
CASES: dict[str, tuple[Any, ...]] = {
    **{
        f"{name}, under the fallback tier": (
            lambda fault=fault: make.healthy(**fault(), expected={"tier": "fallback", "router_server": "fb"}),
            "watch",
            cause,
        )
        for name, fault, cause in (
            ("a lost link", lambda: {"nvml": make.links_down({2: (5,)})}, "nvlink_partial"),
            ("all links lost", lambda: {"nvml": make.links_down({2: tuple(range(18))})}, "nvlink_loss"),
            (
                "a fatal NVLink error",
                lambda: {"kernel_log": make.log((145, "RLW_CTRL Fatal"))},
                "nvlink_loss",
            ),
            ("P2P that is off", lambda: {"nvml": bridged(8, group=1)}, "pcie_only"),
        )
    },
    "a lost GPU under the fallback tier": (
        lambda: make.healthy(nvml=make.with_gpu(0, error="gpu_is_lost"), expected={"tier": "fallback"}),
        "fall_back",
        "gpu_lost",
    ),
    "four GPUs bridged in pairs": (lambda: of_four(bridged(4, group=2)), "healthy", "none"),
    "four GPUs bridged in pairs, with hidden remote ends": (
        lambda: of_four(bridged(4, group=2, hidden=True)),
        "healthy",
        "none",
    ),
    "four GPUs bridged in pairs, one bridge of which is lost": (
        lambda: of_four(bridged(4, group=2, lost=1)),
        "fall_back",
        "nvlink_partial",
    ),
    "four GPUs of which none reaches another over its links": (
        lambda: of_four(bridged(4, group=1)),
        "fall_back",
        "pcie_only",
    ),
    "four GPUs on switches that reach each other in pairs only": (
        lambda: of_four(bridged(4, group=2, name="NVIDIA H100 80GB HBM3", switch=True)),
        "fall_back",
        "pcie_only",
    ),
    "a fabric manager that is down under a tier that serves": (
        lambda: make.healthy(
            fabric_manager=FabricManagerReading(unit="fm", load_state="loaded", active_state="failed")
        ),
        "watch",
        "fabric_manager_down",
    ),
    "a fabric manager that is down under a stall": (
        lambda: make.healthy(
            engine=FLAT,
            completion=HUNG,
            fabric_manager=FabricManagerReading(unit="fm", load_state="loaded", active_state="failed"),
        ),
        "fall_back",
        "fabric_manager_down",
    ),
    "a driver that hangs under a tier that serves": (
        lambda: make.healthy(nvml=make.nvml(hung_call="nvmlDeviceGetPowerUsage", hung_gpu=3)),
        "unknown",
        "driver_hang",
    ),
    "a driver that hangs under a stall": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, nvml=make.nvml(hung_call="f", hung_gpu=3)),
        "fall_back",
        "driver_hang",
    ),
    "a driver that was upgraded under the running tier": (
        lambda: make.healthy(nvml=NvmlReading(init_error="lib_rm_version_mismatch (nvmlInit)")),
        "unknown",
        "unknown",
    ),
    "a GPU whose compute mode is Prohibited": (
        lambda: make.healthy(nvml=make.with_gpu(0, compute_mode=2)),
        "watch",
        "environment",
    ),
    "GPUs that take one process at a time": (
        lambda: make.healthy(nvml=make.with_gpu(0, compute_mode=3)),
        "healthy",
        "none",
    ),
    "seven GPUs, of which the baseline knows eight": (
        lambda: make.healthy(nvml=make.nvml(7), expected={"gpus": None}),
        "fall_back",
        "gpu_lost",
        {"baseline": KNOWN},
    ),
    "eight GPUs, of which one was replaced since the baseline": (
        lambda: make.healthy(nvml=make.with_gpu(3, uuid="GPU-new"), expected={"gpus": None}),
        "healthy",
        "none",
        {"baseline": KNOWN},
    ),
    "GPUs cannot be read": (lambda: make.healthy(nvml=None), "unknown", "unknown"),
    "P2P switched off in the tier's environment": (
        lambda: make.healthy(environment=make.environment(NCCL_P2P_DISABLE="1")),
        "fall_back",
        "pcie_only",
    ),
    "P2P level LOC": (
        lambda: make.healthy(environment=make.environment(NCCL_P2P_LEVEL="LOC")),
        "fall_back",
        "pcie_only",
    ),
    "the tier's environment cannot be read": (lambda: make.healthy(environment=None), "unknown", "unknown"),
    "a leftover CUDA_VISIBLE_DEVICES=0": (
        lambda: make.healthy(environment=make.environment(CUDA_VISIBLE_DEVICES="0")),
        "watch",
        "environment",
    ),
    "GPU memory that the other tier holds after a stop": (
        lambda: make.healthy(
            expected={"tier_expected": False, "other_pids": (7,)},
            nvml=make.with_gpu(2, processes=(GpuProcess(pid=7, memory_mib=900),)).model_copy(),
        ),
        "healthy",
        "none",
    ),
    "GPU memory that is held after a stop": (
        lambda: make.healthy(
            expected={"tier_expected": False},
            nvml=make.with_gpu(2, processes=(GpuProcess(pid=7, memory_mib=900),)).model_copy(),
        ),
        "watch",
        "memory_held",
    ),
    "a stranger that takes nearly all of a GPU": (
        lambda: make.healthy(nvml=shared(own_sm=2, stranger_sm=97)),
        "watch",
        "gpu_hogged",
    ),
    "a stranger that makes the tier slow": (
        lambda: make.healthy(nvml=shared(own_sm=2, stranger_sm=97), completion=make.completion(e2e_ms=3900)),
        "watch",
        "gpu_hogged",
    ),
    "a stranger that computes while the tier hangs": (
        lambda: make.healthy(
            nvml=shared(own_sm=1, stranger_sm=97, watts=150),
            engine=FLAT,
            completion=HUNG,
            ranks=make.ranks(8, r1="T"),
        ),
        "fall_back",
        "nccl_hang",
    ),
    "a stranger that only holds memory": (
        lambda: make.healthy(nvml=shared(own_sm=90, stranger_sm=0)),
        "healthy",
        "none",
    ),
    "processes of which none is known": (
        lambda: make.healthy(nvml=make.with_gpu(2, processes=(GpuProcess(pid=7, sm_percent=97),))),
        "healthy",
        "none",
    ),
    "a long prefill": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, nvml=shared(own_sm=60, watts=300)),
        "healthy",
        "none",
    ),
    "ranks that spin in a collective": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, nvml=shared(own_sm=100, watts=150)),
        "unknown",
        "engine_stalled",
    ),
}
