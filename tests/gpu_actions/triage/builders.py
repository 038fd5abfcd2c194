"""Snapshots for pure tests: a healthy 8-GPU host that serves, functions that inject one fault, and single readings."""

from datetime import UTC, datetime
from typing import Any

from gpu_actions.snapshot.collectors.completion import CompletionReading
from gpu_actions.snapshot.collectors.engine import EngineReading, EngineSample
from gpu_actions.snapshot.collectors.environment import EnvironmentReading
from gpu_actions.snapshot.collectors.fabric_manager import FabricManagerReading
from gpu_actions.snapshot.collectors.kernel_log import KernelLogReading
from gpu_actions.snapshot.collectors.nvml import (
    FabricReading,
    GpuReading,
    GpuSample,
    LinkReading,
    NvmlReading,
    PairReading,
)
from gpu_actions.snapshot.collectors.ranks import RankProcess, RanksReading
from gpu_actions.snapshot.collectors.ras import RasCommunicator, RasPoll, RasRank, RasReading
from gpu_actions.snapshot.collectors.router import RouterReading, RouterServer
from gpu_actions.snapshot.kernel_log_lines import XidEvent
from gpu_actions.snapshot.model import CollectorOutcome, Snapshot
from gpu_actions.snapshot.target import Expectation

TAKEN = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
OK = CollectorOutcome(status="ok")
FAILED = CollectorOutcome(status="failed", reason="permission denied")
ERRORS = {"replay": 3, "recovery": 0, "crc": 21}


def gpu(index: int, **changes: Any) -> GpuReading:
    sample = GpuSample(
        event_reasons=0,
        temperature_c=50 + index,
        power_w=300,
        sm_clock_mhz=1755,
        utilisation_percent=90,
        pcie_generation=5,
        pcie_replays=2,
        ecc_corrected=4,
        ecc_uncorrected=0,
    )
    return GpuReading(
        index=index,
        uuid=f"GPU-{index}",
        name="NVIDIA H100 80GB HBM3",
        pci=f"00000000:{0x19 + 0x10 * index:02X}:00.0",
        mig=False,
        memory_total_mib=81559,
        memory_free_mib=10000,
        slowdown_temperature_c=92,
        pcie_width=16,
        pcie_width_max=16,
        pcie_generation_max=5,
        recovery_action=0,
        remapped_pending=False,
        remapped_failure=False,
        remapped_uncorrectable=0,
        fabric=FabricReading(state=3, route_unhealthy=False),
        links=tuple(
            LinkReading(
                index=number,
                active=True,
                remote_kind="switch",
                remote_pci=f"00000000:{5 + number % 4:02X}:00.0",
                speed_mbps=26562,
                first=ERRORS,
                last=ERRORS,
            )
            for number in range(18)
        ),
        first=sample,
        last=sample,
    ).model_copy(update=changes)


def nvml(count: int = 8, **changes: Any) -> NvmlReading:
    return NvmlReading(
        driver_version="580.65.06",
        count=count,
        gpus=tuple(gpu(index) for index in range(count)),
        pairs=tuple(
            PairReading(first=a, second=b, nvlink_p2p=0, read_p2p=0, common_ancestor=40)
            for a in range(count)
            for b in range(a + 1, count)
        ),
        window_s=3,
    ).model_copy(update=changes)


def engine(
    *, running: float | None = 4, tokens: tuple[float | None, float | None] = (1000, 1500), **changes: Any
) -> EngineReading:
    first, last = tokens
    sample = EngineSample(at_s=0, outcome="ok", running=running, waiting=0, generation_tokens=first)
    later = sample.model_copy(update={"at_s": 3.0, "generation_tokens": last, **changes})
    return EngineReading(url="http://127.0.0.1:8101", samples=(sample, later))


def completion(outcome: str = "ok", **changes: Any) -> CompletionReading:
    return CompletionReading.model_validate(
        {
            "url": "http://127.0.0.1:8101",
            "outcome": outcome,
            "e2e_ms": 120,
            "tokens": 2,
            "deadline_s": 4,
            **changes,
        }
    )


def process(pid: int, rank: int | None, state: str = "S", **changes: Any) -> RankProcess:
    return RankProcess(
        pid=pid,
        parent=100,
        name="python",
        rank=rank,
        state_first=state,
        state_last=state,
        cpu_s=0.5,
        age_s=9000,
    ).model_copy(update=changes)


def ranks(count: int = 8, **states: str) -> RanksReading:
    """Return the processes of a tier; with `ranks(8, r3="T")` rank 3 is stopped."""
    rows = [process(100, None, root=True)]
    rows += [process(200 + number, number, states.get(f"r{number}", "S")) for number in range(count)]
    return RanksReading(roots=(100,), processes=tuple(rows))


def ras_poll(at_s: float, counts: list[int]) -> RasPoll:
    rows = tuple(
        RasRank(rank=number, pid=200 + number, counts={"AllReduce": n}) for number, n in enumerate(counts)
    )
    mismatch = len(set(counts)) > 1
    communicator = RasCommunicator(id="0xabc", size=len(counts), ranks=rows, mismatch=mismatch)
    return RasPoll(at_s=at_s, outcome="ok", protocol="json", communicators=(communicator,))


def ras(first: list[int], last: list[int]) -> RasReading:
    return RasReading(address="127.0.0.1:28028", polls=(ras_poll(0, first), ras_poll(3, last)))


def healthy(**changes: Any) -> Snapshot:
    """Return an 8-GPU host under load. A reading set to None is removed, and its collector failed."""
    readings: dict[str, Any] = {
        "nvml": nvml(),
        "fabric_manager": FabricManagerReading(unit="fm", load_state="loaded", active_state="active"),
        "kernel_log": KernelLogReading(source="/dev/kmsg", lines_read=100),
        "ras": ras([100] * 8, [160] * 8),
        "engine": engine(),
        "completion": completion(),
        "ranks": ranks(),
        "environment": EnvironmentReading(pids=(100,), values={}),
        "router": RouterReading(
            socket="/run/h.sock",
            backend="serve",
            outcome="ok",
            servers=(
                RouterServer(
                    server="tp", weight=100, admin_state="ready", operational="UP", sessions=4, queued=0
                ),
                RouterServer(
                    server="fb", weight=0, admin_state="ready", operational="DOWN", sessions=0, queued=0
                ),
            ),
        ),
    }
    expected = changes.pop("expected", {})
    readings.update(changes)
    return Snapshot(
        host="h1",
        taken_at=TAKEN,
        window_s=3,
        expected=Expectation(**{"gpus": 8, "ranks": 8, "router_server": "tp", **expected}),
        collectors={name: FAILED if value is None else OK for name, value in readings.items()},
        **readings,
    )


def with_gpu(index: int, **changes: Any) -> NvmlReading:
    """Return the healthy GPUs with one changed."""
    base = nvml()
    return base.model_copy(
        update={
            "gpus": tuple(one.model_copy(update=changes) if one.index == index else one for one in base.gpus)
        }
    )


def links_down(down: dict[int, tuple[int, ...]]) -> NvmlReading:
    """Return the healthy GPUs with some links inactive: GPU -> link numbers."""
    base = nvml()
    changed = []
    for one in base.gpus:
        numbers = down.get(one.index, ())
        links = tuple(
            link.model_copy(update={"active": False}) if link.index in numbers else link for link in one.links
        )
        changed.append(one.model_copy(update={"links": links}))
    return base.model_copy(update={"gpus": tuple(changed)})


def without(snapshot: Snapshot, *names: str) -> Snapshot:
    """Return the snapshot with some collectors failed."""
    return _lacking(snapshot, names, FAILED)


def skipping(snapshot: Snapshot, *names: str) -> Snapshot:
    """Return the snapshot with some collectors skipped."""
    return _lacking(snapshot, names, CollectorOutcome(status="skipped", reason="it does not apply"))


def _lacking(snapshot: Snapshot, names: tuple[str, ...], outcome: CollectorOutcome) -> Snapshot:
    data = snapshot.model_dump()
    for name in names:
        data[name] = None
        data["collectors"][name] = outcome.model_dump()
    return Snapshot.model_validate(data)


def environment(**values: str) -> EnvironmentReading:
    """Return the variables of two processes of the tier."""
    return EnvironmentReading(
        pids=(100, 200), values={name: {value: (100, 200)} for name, value in values.items()}
    )


def log(*events: tuple[int | None, str]) -> KernelLogReading:
    """Return a kernel log of Xids, or of a GPU off the bus where the code is None, without times."""
    rows = tuple(
        XidEvent(kind="off_bus" if code is None else "xid", code=code, pci="0000:29:00", text=text)
        for code, text in events
    )
    return KernelLogReading(source="/dev/kmsg", lines_read=100, events=rows)


def sxid(text: str) -> KernelLogReading:
    """Return a kernel log of one error of an NVSwitch."""
    event = XidEvent(kind="sxid", code=20034, pci="0000:05:00", text=text)
    return KernelLogReading(source="/dev/kmsg", events=(event,))
