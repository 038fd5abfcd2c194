"""Hosts with faults of their hardware, and the verdict and cause that must follow."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from gpu_actions.snapshot.collectors.deep import DeepGpu, DeepPair, DeepReading
from gpu_actions.snapshot.collectors.environment import EnvironmentReading
from gpu_actions.snapshot.collectors.fabric_manager import FabricManagerReading
from gpu_actions.snapshot.collectors.kernel_log import KernelLogReading, OomKill, XidEvent
from gpu_actions.snapshot.collectors.nvml import GpuProcess, LinkReading, NvmlReading
from gpu_actions.snapshot.collectors.ranks import RanksReading
from gpu_actions.snapshot.collectors.router import RouterReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.target import UnitFacts
from tests.gpu_actions.triage import builders as make

FLAT = make.engine(tokens=(1000, 1000))
HUNG = make.completion("timeout", tokens=0)


def environment(**values: str) -> EnvironmentReading:
    return EnvironmentReading(
        pids=(100, 200), values={name: {value: (100, 200)} for name, value in values.items()}
    )


def log(*events: tuple[int | None, str]) -> KernelLogReading:
    rows = tuple(
        XidEvent(kind="off_bus" if code is None else "xid", code=code, pci="0000:29:00", text=text)
        for code, text in events
    )
    return KernelLogReading(source="/dev/kmsg", lines_read=100, events=rows)


def log_at(*events: tuple[int, float]) -> KernelLogReading:
    """Return a log of Xids, each some seconds before the snapshot; the tier of the builders is 9000 s old."""
    rows = tuple(
        XidEvent(
            kind="xid", code=code, pci="0000:29:00", at=make.TAKEN - timedelta(seconds=ago_s), line=number
        )
        for number, (code, ago_s) in enumerate(events, 1)
    )
    return KernelLogReading(source="/var/log/kern.log", lines_read=100, events=rows)


def sxid(text: str) -> KernelLogReading:
    event = XidEvent(kind="sxid", code=20034, pci="0000:05:00", text=text)
    return KernelLogReading(source="/dev/kmsg", events=(event,))


def root(state: str, age_s: float = 9000) -> RanksReading:
    row = make.process(100, None, state, root=True, age_s=age_s)
    return RanksReading(roots=(100,), processes=(row,))


def router(**changes: object) -> RouterReading:
    reading = make.healthy().router
    assert reading is not None
    rows = tuple(row.model_copy(update=changes) for row in reading.servers)
    return reading.model_copy(update={"servers": rows})


def oom_kill(name: str) -> KernelLogReading:
    kill = OomKill(pid=7, name=name, at=make.TAKEN - timedelta(seconds=301))
    return KernelLogReading(source="/dev/kmsg", lines_read=100, oom_kills=(kill,))


def crashes(
    *,
    minutes: tuple[int, ...],
    restarts: int | None = None,
    age_min: float | None = None,
    log: str = "",
    **changes: Any,
) -> Snapshot:
    """Return a host whose tier was restarted these minutes ago."""
    now_s = make.TAKEN.timestamp()
    age_s = 60 * (age_min if age_min is not None else min(minutes))
    facts = UnitFacts(
        restarts=len(minutes) if restarts is None else restarts,
        restarted_at_s=tuple(now_s - 60 * minute for minute in minutes),
        started_at_s=now_s - age_s,
        log_errors=(log,) if log else (),
    )
    return make.healthy(**{**changes, "expected": {**changes.get("expected", {}), "unit": facts}})


def one_gpu(**figures: float) -> Snapshot:
    """Return a host with one H100 whose links are off, and its deep probe."""
    alone = make.nvml(1, gpus=(make.gpu(0, links=(), fabric=None),))
    deep = DeepReading(backend="nccl", outcome="ok", world_size=1, gpus=(DeepGpu(index=0, **figures),))
    return make.healthy(
        nvml=alone, deep=deep, expected={"gpus": 1, "ranks": None, "links": 0}, ranks=make.ranks(1)
    )


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


Make = Callable[[], Snapshot]
CASES: dict[str, tuple[Make, str, str]] = {
    # application faults: never more than watch
    **{
        f"application Xid {code}": (
            lambda code=code: make.healthy(kernel_log=log((code, "Ch 00000008"))),
            "watch",
            "application_fault",
        )
        for code in (13, 31, 43, 45)
    },
    "an Xid without a rule": (
        lambda: make.healthy(kernel_log=log((999, ""))),
        "watch",
        "kernel_error",
    ),
    # old news
    "an Xid from before the tier started": (
        lambda: make.healthy(kernel_log=log_at((95, 9100))),
        "healthy",
        "none",
    ),
    "an Xid from before the tier started, and one after": (
        lambda: make.healthy(kernel_log=log_at((13, 9100), (95, 8900))),
        "fall_back",
        "gpu_reset_required",
    ),
    "an Xid from before the tier started, which does not serve": (
        lambda: make.healthy(kernel_log=log_at((95, 9100)), engine=FLAT, completion=HUNG),
        "fall_back",
        "gpu_reset_required",
    ),
    "an Xid from before the tier started, on a GPU that still asks for a reset": (
        lambda: make.healthy(kernel_log=log_at((95, 9100)), nvml=make.with_gpu(1, recovery_action=1)),
        "fall_back",
        "gpu_reset_required",
    ),
    # missing evidence
    "an empty kernel log": (
        lambda: make.healthy(kernel_log=KernelLogReading(source="/dev/kmsg", lines_read=0)),
        "unknown",
        "unknown",
    ),
    "a unit whose driver fails": (
        lambda: make.healthy(ranks=None, expected={"unit_error": "Connection timed out"}),
        "unknown",
        "unknown",
    ),
    # links that do not matter
    **{
        f"{name}, under the fallback tier": (
            lambda fault=fault: make.healthy(**fault(), expected={"tier": "fallback", "router_server": "fb"}),
            "watch",
            cause,
        )
        for name, fault, cause in (
            ("a lost link", lambda: {"nvml": make.links_down({2: (5,)})}, "nvlink_partial"),
            ("all links lost", lambda: {"nvml": make.links_down({2: tuple(range(18))})}, "nvlink_loss"),
            ("a fatal NVLink error", lambda: {"kernel_log": log((145, "RLW_CTRL Fatal"))}, "nvlink_loss"),
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
    # crashes
    "a crash loop": (lambda: crashes(minutes=(1, 4, 7, 10)), "fall_back", "crash_loop"),
    "a crash loop of a tier that loads": (
        lambda: crashes(minutes=(1, 4, 7), engine=make.engine(outcome="refused"), completion=None),
        "fall_back",
        "crash_loop",
    ),
    "a crash loop of the fallback tier": (
        lambda: crashes(minutes=(1, 4, 7), expected={"tier": "fallback"}),
        "watch",
        "crash_loop",
    ),
    "a crash loop that ended a while ago": (lambda: crashes(minutes=(15, 20, 25)), "watch", "crash_loop"),
    "restarts over many days": (lambda: crashes(minutes=(9000, 20000, 30000)), "healthy", "none"),
    "a restart without a cause": (lambda: crashes(minutes=(5,)), "healthy", "none"),
    "restarts at unknown times of a process that is old": (
        lambda: crashes(minutes=(), restarts=9, age_min=600),
        "healthy",
        "none",
    ),
    "restarts at unknown times of a process that is young": (
        lambda: crashes(minutes=(), restarts=9, age_min=2),
        "fall_back",
        "crash_loop",
    ),
    "a restart after the OOM killer": (
        lambda: crashes(minutes=(5,), kernel_log=oom_kill("python")),
        "watch",
        "engine_crashed",
    ),
    "a restart beside the OOM killer's end of another program": (
        lambda: crashes(minutes=(5,), kernel_log=oom_kill("stress")),
        "healthy",
        "none",
    ),
    # hardware and serving together
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
    "a non-fatal NVLink error on healthy links": (
        lambda: make.healthy(kernel_log=log((145, "RLW_CTRL Nonfatal XC0 i0 Link 00"))),
        "watch",
        "nvlink_errors",
    ),
    "a fatal NVLink error": (
        lambda: make.healthy(kernel_log=log((145, "RLW_CTRL Fatal XC0 i0 Link 00"))),
        "fall_back",
        "nvlink_loss",
    ),
    "a non-fatal switch error": (
        lambda: make.healthy(kernel_log=sxid("Non-fatal, Link 32 egress")),
        "watch",
        "nvlink_errors",
    ),
    "a fatal switch error": (
        lambda: make.healthy(kernel_log=sxid("Fatal, Link 32 LTSSM Fault Up")),
        "fall_back",
        "nvlink_loss",
    ),
    "off the bus by number": (
        lambda: make.healthy(kernel_log=log((79, "GPU has fallen off the bus."))),
        "fall_back",
        "gpu_lost",
    ),
    "off the bus in words": (
        lambda: make.healthy(kernel_log=log((None, "fallen off the bus"))),
        "fall_back",
        "gpu_lost",
    ),
    **{
        f"reset Xid {code}": (
            lambda code=code: make.healthy(kernel_log=log((code, ""))),
            "fall_back",
            "gpu_reset_required",
        )
        for code in (62, 64, 95, 109, 119, 120, 140, 143)
    },
    "Xid 48": (lambda: make.healthy(kernel_log=log((48, "DBE"))), "fall_back", "ecc_uncorrected"),
    "Xid 94": (lambda: make.healthy(kernel_log=log((94, "Contained"))), "watch", "ecc_uncorrected"),
    "Xid 154 while field 230 says none": (
        lambda: make.healthy(
            kernel_log=log((154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)"))
        ),
        "watch",
        "gpu_reset_required",
    ),
    "Xid 154 while field 230 cannot be read": (
        lambda: make.healthy(
            nvml=make.with_gpu(1, recovery_action=None),
            kernel_log=log((154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)")),
        ),
        "fall_back",
        "gpu_reset_required",
    ),
    "the kernel log cannot be read": (lambda: make.healthy(kernel_log=None), "unknown", "unknown"),
    "GPUs cannot be read": (lambda: make.healthy(nvml=None), "unknown", "unknown"),
    "P2P switched off in the tier's environment": (
        lambda: make.healthy(environment=environment(NCCL_P2P_DISABLE="1")),
        "fall_back",
        "pcie_only",
    ),
    "P2P level LOC": (
        lambda: make.healthy(environment=environment(NCCL_P2P_LEVEL="LOC")),
        "fall_back",
        "pcie_only",
    ),
    "the tier's environment cannot be read": (lambda: make.healthy(environment=None), "unknown", "unknown"),
    "a leftover CUDA_VISIBLE_DEVICES=0": (
        lambda: make.healthy(environment=environment(CUDA_VISIBLE_DEVICES="0")),
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
    # the deep probe
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
