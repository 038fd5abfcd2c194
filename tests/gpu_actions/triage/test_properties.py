"""Properties of the judgement: nothing crashes it, and a fault never makes a host look healthier."""

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collectors.completion import CompletionReading
from gpu_actions.snapshot.collectors.engine import EngineReading, EngineSample
from gpu_actions.snapshot.collectors.fabric_manager import FabricManagerReading
from gpu_actions.snapshot.collectors.kernel_log import KernelLogReading
from gpu_actions.snapshot.collectors.nvml import GpuSample, LinkReading, NvmlReading
from gpu_actions.snapshot.collectors.ranks import RankProcess, RanksReading
from gpu_actions.snapshot.collectors.router import RouterReading
from gpu_actions.snapshot.collectors.stacks import StacksReading
from gpu_actions.snapshot.kernel_log_lines import XidEvent
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.triage.judge import judge
from gpu_actions.triage.registry import RULES
from gpu_actions.triage.rule import rank_of_verdict
from tests.gpu_actions.triage import builders as make

Fault = Callable[[Snapshot], Snapshot]


def on_gpu(index: int, **changes: object) -> Fault:
    def put_in(snapshot: Snapshot) -> Snapshot:
        if snapshot.nvml is None:
            return snapshot
        gpus = tuple(
            one.model_copy(update=changes) if one.index == index else one for one in snapshot.nvml.gpus
        )
        return snapshot.model_copy(update={"nvml": snapshot.nvml.model_copy(update={"gpus": gpus})})

    return put_in


def on_link(gpu: int, link: int, **changes: object) -> Fault:
    def put_in(snapshot: Snapshot) -> Snapshot:
        if snapshot.nvml is None:
            return snapshot
        links = tuple(
            one.model_copy(update=changes) if one.index == link else one
            for one in snapshot.nvml.gpus[gpu].links
        )
        return on_gpu(gpu, links=links)(snapshot)

    return put_in


def logged(code: int, text: str = "") -> Fault:
    def put_in(snapshot: Snapshot) -> Snapshot:
        if snapshot.kernel_log is None:
            return snapshot
        event = XidEvent(kind="xid", code=code, pci="0000:19:00", text=text)
        log = snapshot.kernel_log.model_copy(update={"events": (*snapshot.kernel_log.events, event)})
        return snapshot.model_copy(update={"kernel_log": log})

    return put_in


def of_rank(rank: int, state: str) -> Fault:
    def put_in(snapshot: Snapshot) -> Snapshot:
        if snapshot.ranks is None:
            return snapshot
        rows = tuple(
            row.model_copy(update={"state_first": state, "state_last": state, "cpu_s": 0.0})
            if row.rank == rank
            else row
            for row in snapshot.ranks.processes
        )
        return snapshot.model_copy(update={"ranks": snapshot.ranks.model_copy(update={"processes": rows})})

    return put_in


def reading(name: str, value: object) -> Fault:
    return lambda snapshot: snapshot.model_copy(update={name: value}) if getattr(snapshot, name) else snapshot


def unread(name: str) -> Fault:
    return lambda snapshot: make.without(snapshot, name)


HOT = GpuSample(event_reasons=0x40, temperature_c=95, ecc_uncorrected=0)
ECC = GpuSample(event_reasons=0, temperature_c=50, ecc_uncorrected=2)
FLAT = make.engine(tokens=(1000, 1000))
HARDWARE: list[Fault] = [
    *[on_link(gpu, link, active=False) for gpu in (0, 3, 7) for link in (0, 7)],
    on_gpu(0, error="gpu_is_lost"),
    on_gpu(5, error="reset_required"),
    *[on_gpu(action, recovery_action=action) for action in range(1, 8)],
    on_gpu(2, remapped_pending=True),
    on_gpu(2, remapped_failure=True),
    on_gpu(4, first=HOT, last=HOT),
    on_gpu(6, first=ECC, last=ECC),
    on_gpu(6, pcie_width=8),
    *[logged(code) for code in (13, 31, 43, 45, 48, 62, 63, 74, 79, 94, 119, 136, 145, 154, 999)],
    logged(145, "Fatal"),
]
SERVING: list[Fault] = [
    of_rank(1, "T"),
    of_rank(2, "Z"),
    of_rank(3, "D"),
    reading("fabric_manager", FabricManagerReading(unit="fm", load_state="loaded", active_state="failed")),
    reading("router", RouterReading(socket="s", backend="b", outcome="down")),
    reading("ras", make.ras([9, 8] * 4, [9, 8] * 4)),
]
STARTS: list[Callable[[], Snapshot]] = [
    lambda: make.healthy(),
    lambda: make.healthy(engine=make.engine(running=0, tokens=(5, 5))),
    lambda: make.healthy(engine=FLAT, completion=make.completion("timeout", tokens=0)),
]
BLINDNESS = [
    unread(name) for name in ("nvml", "kernel_log", "environment", "router", "fabric_manager", "ranks", "ras")
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(STARTS),
    st.lists(st.sampled_from(HARDWARE + SERVING), max_size=5),
    st.sampled_from(HARDWARE + SERVING),
)
def test_one_more_fault_never_makes_the_verdict_healthier(
    start: Callable[[], Snapshot], faults: list[Fault], one_more: Fault
) -> None:
    snapshot = start()
    for fault in faults:
        snapshot = fault(snapshot)
    before, after = judge(snapshot), judge(one_more(snapshot))
    assert rank_of_verdict(after.verdict) >= rank_of_verdict(before.verdict), (
        before.findings,
        after.findings,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(STARTS[:2]), st.lists(st.sampled_from(BLINDNESS), min_size=1, max_size=4))
def test_missing_evidence_never_makes_a_healthy_host_fall_back(
    start: Callable[[], Snapshot], blind: list[Fault]
) -> None:
    snapshot = start()
    for fault in blind:
        snapshot = fault(snapshot)
    assert judge(snapshot).verdict != "fall_back"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from([logged(code) for code in (13, 31, 43, 45)]), min_size=1, max_size=5))
def test_application_faults_alone_are_never_more_than_watch(faults: list[Fault]) -> None:
    snapshot = make.healthy()
    for fault in faults:
        snapshot = fault(snapshot)
    assert judge(snapshot).verdict == "watch"


NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False, min_value=0, max_value=1e12)
SAMPLES = st.builds(
    EngineSample,
    at_s=st.floats(min_value=0, max_value=100),
    outcome=st.sampled_from(["ok", "refused", "timeout", "http_error", "not_metrics"]),
    running=NUMBERS,
    waiting=NUMBERS,
    generation_tokens=NUMBERS,
    ttft_count=NUMBERS,
    ttft_sum_s=NUMBERS,
    missing=st.lists(st.sampled_from(["running", "generation_tokens"]), max_size=2).map(tuple),
)
COUNTS = st.lists(st.integers(0, 3), max_size=3)
ANY: dict[str, st.SearchStrategy[object]] = {
    "engine": st.builds(EngineReading, url=st.just("u"), samples=st.lists(SAMPLES, max_size=3).map(tuple)),
    "completion": st.builds(CompletionReading, url=st.just("u")),
    "ranks": st.builds(
        RanksReading,
        roots=st.lists(st.integers(1, 5), max_size=3).map(tuple),
        missing_roots=st.lists(st.integers(1, 5), max_size=3).map(tuple),
        processes=st.lists(
            st.builds(
                RankProcess,
                pid=st.integers(1, 5),
                rank=st.none() | st.integers(0, 4),
                root=st.booleans(),
                state_first=st.sampled_from(["R", "S", "D", "T", "Z", None]),
                state_last=st.sampled_from(["R", "S", "D", "T", "Z", "gone", None]),
                cpu_s=NUMBERS,
                age_s=NUMBERS,
            ),
            max_size=4,
        ).map(tuple),
        unit_active=st.none() | st.booleans(),
    ),
    "ras": st.builds(make.ras, COUNTS, COUNTS),
    "stacks": st.from_type(StacksReading),
    "router": st.from_type(RouterReading),
    "fabric_manager": st.from_type(FabricManagerReading),
    "nvml": st.builds(
        NvmlReading,
        count=st.none() | st.integers(0, 3),
        hung_gpu=st.none() | st.integers(0, 3),
        window_s=NUMBERS,
        gpus=st.lists(
            st.builds(
                make.gpu,
                st.integers(0, 3),
                error=st.none() | st.text(max_size=8),
                uuid=st.sampled_from(["", "GPU-1"]),
                name=st.text(max_size=12),
                pci=st.text(max_size=8),
                mig=st.none() | st.booleans(),
                recovery_action=st.none() | st.integers(0, 99),
                links=st.lists(
                    st.builds(
                        LinkReading,
                        index=st.integers(0, 20),
                        active=st.none() | st.booleans(),
                        remote_pci=st.none() | st.text(max_size=6),
                    ),
                    max_size=3,
                ).map(tuple),
                first=st.builds(GpuSample),
                last=st.none() | st.builds(GpuSample),
                unread=st.dictionaries(
                    st.sampled_from(["links", "ecc_uncorrected", "power_w"]), st.text(max_size=5)
                ),
            ),
            max_size=3,
        ).map(tuple),
    ),
    "kernel_log": st.builds(
        KernelLogReading,
        source=st.just("f"),
        events=st.lists(
            st.builds(
                XidEvent,
                kind=st.sampled_from(["xid", "sxid", "off_bus"]),
                code=st.none() | st.integers(0, 200),
                pci=st.text(max_size=10),
                text=st.text(max_size=30),
            ),
            max_size=3,
        ).map(tuple),
    ),
}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.data())
def test_the_judgement_handles_any_readings_and_every_finding_has_a_rule(data: st.DataObject) -> None:
    chosen = {
        name: data.draw(strategy, label=name) for name, strategy in ANY.items() if data.draw(st.booleans())
    }
    expected = {
        "gpus": data.draw(st.none() | st.integers(0, 8)),
        "ranks": data.draw(st.none() | st.integers(1, 4)),
        "tier": data.draw(st.sampled_from(["tp", "fallback"])),
        "tier_expected": data.draw(st.booleans()),
    }
    verdict = judge(make.healthy(expected=expected, **chosen), TriageThresholds(links_missing=2))
    assert all(finding.id in RULES for finding in verdict.findings)
    assert verdict.summary
