"""The judgement as a table: a healthy host that serves, one thing changed, and the verdict that must follow."""

from collections.abc import Callable

import pytest

from gpu_actions.models import Severity, VerdictKind
from gpu_actions.triage.baselines import TriageBaseline
from gpu_actions.triage.judge import judge
from gpu_actions.triage.snapshot import Snapshot
from gpu_actions.triage.snapshot_gpu import GpuProcess
from gpu_actions.triage.snapshot_host import (
    DeepGpu,
    DeepPair,
    DeepReading,
    EngineReading,
    EngineSample,
    EnvironmentReading,
    FabricManagerReading,
    KernelLogReading,
    RanksReading,
    RasMissingRank,
    RasPoll,
    RasReading,
    RouterReading,
    StackReading,
    StacksReading,
    XidEvent,
)
from gpu_actions.triage.thresholds import TriageThresholds
from tests.gpu_actions.triage import builders as make

FLAT = make.engine(tokens=(1000, 1000))
IDLE = make.engine(running=0, tokens=(1000, 1000))
HUNG = make.completion("timeout", tokens=0)
SILENT = EngineReading(
    url="u", samples=tuple(EngineSample(at_s=at_s, outcome="timeout") for at_s in (0.0, 3.0))
)
REFUSED = EngineReading(
    url="u", samples=tuple(EngineSample(at_s=at_s, outcome="refused") for at_s in (0.0, 3.0))
)
INSIDE = StacksReading(
    stacks=tuple(StackReading(pid=200 + n, rank=n, collective="all_reduce") for n in range(8))
)


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


def sxid(text: str) -> KernelLogReading:
    event = XidEvent(kind="sxid", code=20034, pci="0000:05:00", text=text)
    return KernelLogReading(source="/dev/kmsg", events=(event,))


def missing_in_ras() -> RasReading:
    poll = make.ras_poll(0, [5] * 7)
    lost = poll.communicators[0].model_copy(update={"missing": (RasMissingRank(rank=7),), "missing_count": 1})
    return RasReading(address="a", polls=(poll, poll.model_copy(update={"communicators": (lost,)})))


def ras_all(outcome: str) -> RasReading:
    polls = tuple(RasPoll.model_validate({"at_s": at_s, "outcome": outcome}) for at_s in (0.0, 3.0))
    return RasReading(address="a", polls=polls)


def dead_rank() -> RanksReading:
    rows = make.ranks(8)
    ended = tuple(
        row.model_copy(update={"state_last": "gone"}) if row.rank == 5 else row for row in rows.processes
    )
    return rows.model_copy(update={"processes": ended})


def root(state: str, age_s: float = 9000) -> RanksReading:
    row = make.process(100, None, state, root=True, age_s=age_s)
    return RanksReading(roots=(100,), processes=(row,))


def router(**changes: object) -> RouterReading:
    reading = make.healthy().router
    assert reading is not None
    rows = tuple(row.model_copy(update=changes) for row in reading.servers)
    return reading.model_copy(update={"servers": rows})


Make = Callable[[], Snapshot]
CASES: dict[str, tuple[Make, str, str]] = {
    # healthy: none of these may be more than healthy
    "a host that serves": (lambda: make.healthy(), "healthy", "none"),
    "an idle host": (lambda: make.healthy(engine=IDLE), "healthy", "none"),
    "an idle host whose RAS counts stand at different numbers": (
        lambda: make.healthy(engine=IDLE, ras=make.ras([3, 3, 3, 3, 3, 3, 3, 9], [3, 3, 3, 3, 3, 3, 3, 9])),
        "healthy",
        "none",
    ),
    "ranks caught in the middle of a collective": (lambda: make.healthy(stacks=INSIDE), "healthy", "none"),
    "RAS counts that differ but move": (
        lambda: make.healthy(ras=make.ras([10, 11] * 4, [90, 91] * 4)),
        "healthy",
        "none",
    ),
    "no RAS on this host": (lambda: make.healthy(ras=ras_all("refused")), "healthy", "none"),
    "a rank that waits in the kernel for an instant": (
        lambda: make.healthy(
            ranks=make.ranks(8).model_copy(
                update={
                    "processes": tuple(
                        row.model_copy(update={"state_first": "D"}) for row in make.ranks(8).processes
                    )
                }
            )
        ),
        "healthy",
        "none",
    ),
    "harmless NCCL settings": (
        lambda: make.healthy(
            environment=environment(NCCL_P2P_DISABLE="0", NCCL_P2P_LEVEL="NVL", NCCL_DEBUG="WARN")
        ),
        "healthy",
        "none",
    ),
    "a tier that is stopped on purpose": (
        lambda: make.healthy(
            expected={"tier_expected": False}, engine=REFUSED, completion=make.completion("refused")
        ),
        "healthy",
        "none",
    ),
    "P2P switched off on a host without links": (
        lambda: make.healthy(expected={"links": 0}, environment=environment(NCCL_P2P_DISABLE="1")),
        "healthy",
        "none",
    ),
    # application faults: never more than watch
    **{
        f"application Xid {code}": (
            lambda code=code: make.healthy(kernel_log=log((code, "Ch 00000008"))),
            "watch",
            "application_fault",
        )
        for code in (13, 31, 43, 45)
    },
    "an Xid that is not in the table": (
        lambda: make.healthy(kernel_log=log((999, ""))),
        "watch",
        "kernel_error",
    ),
    # collectives
    "a stopped rank under flat tokens": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, ranks=make.ranks(8, r1="T")),
        "fall_back",
        "nccl_hang",
    ),
    "a stopped rank that only our own completion waits for": (
        lambda: make.healthy(engine=IDLE, completion=HUNG, ranks=make.ranks(8, r1="T")),
        "fall_back",
        "nccl_hang",
    ),
    "a stopped rank of an idle tier": (
        lambda: make.healthy(engine=IDLE, ranks=make.ranks(8, r1="T")),
        "watch",
        "nccl_hang",
    ),
    "a dead rank under flat tokens": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, ranks=dead_rank()),
        "fall_back",
        "nccl_hang",
    ),
    "a zombie rank": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, ranks=make.ranks(8, r6="Z")),
        "fall_back",
        "nccl_hang",
    ),
    "a rank blocked in the driver": (
        lambda: make.healthy(
            engine=FLAT,
            completion=HUNG,
            ranks=make.ranks(8, r2="D").model_copy(
                update={
                    "processes": tuple(
                        row.model_copy(update={"cpu_s": 0.0}) for row in make.ranks(8, r2="D").processes
                    )
                }
            ),
        ),
        "fall_back",
        "nccl_hang",
    ),
    "RAS counts that differ and stand still": (
        lambda: make.healthy(
            engine=FLAT, completion=HUNG, ras=make.ras([9, 9, 9, 9, 9, 9, 9, 8], [9, 9, 9, 9, 9, 9, 9, 8])
        ),
        "fall_back",
        "nccl_hang",
    ),
    "a rank missing in RAS": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, ras=missing_in_ras()),
        "fall_back",
        "nccl_hang",
    ),
    "RAS that accepts and says nothing": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, ras=ras_all("silent")),
        "fall_back",
        "nccl_hang",
    ),
    "all ranks inside a collective under flat tokens": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, stacks=INSIDE),
        "fall_back",
        "nccl_hang",
    ),
    "one rank inside a collective, one elsewhere": (
        lambda: make.healthy(
            engine=FLAT,
            completion=HUNG,
            stacks=StacksReading(stacks=(INSIDE.stacks[0], StackReading(pid=201, rank=1))),
        ),
        "unknown",
        "engine_stalled",
    ),
    "a frozen rank behind an engine that answers nothing": (
        lambda: make.healthy(engine=SILENT, completion=HUNG, ranks=make.ranks(8, r0="T")),
        "fall_back",
        "nccl_hang",
    ),
    # stalls without a second source
    "flat tokens alone, completion not asked": (
        lambda: make.skipping(make.healthy(engine=FLAT), "completion"),
        "watch",
        "engine_stalled",
    ),
    "flat tokens, completion not asked, no second source to read": (
        lambda: make.skipping(make.healthy(engine=FLAT), "completion", "ranks", "ras"),
        "unknown",
        "engine_stalled",
    ),
    "flat tokens while a completion got its own": (
        lambda: make.healthy(engine=FLAT),
        "watch",
        "engine_stalled",
    ),
    "flat tokens and no completion": (
        lambda: make.healthy(engine=FLAT, completion=HUNG),
        "unknown",
        "engine_stalled",
    ),
    "flat tokens and no second source to read": (
        lambda: make.without(make.healthy(engine=FLAT, completion=HUNG), "ranks", "ras"),
        "unknown",
        "engine_stalled",
    ),
    "a stall of 31 s": (
        lambda: make.healthy(engine=make.engine(tokens=(5, 5), at_s=31.0), completion=HUNG),
        "fall_back",
        "engine_stalled",
    ),
    # the engine
    "nothing listens, the process runs for hours": (
        lambda: make.healthy(engine=REFUSED, completion=make.completion("refused")),
        "fall_back",
        "engine_down",
    ),
    "nothing listens yet, started a minute ago": (
        lambda: make.healthy(engine=REFUSED, completion=make.completion("refused"), ranks=root("S", 60)),
        "watch",
        "engine_down",
    ),
    "the main process is gone": (
        lambda: make.healthy(
            engine=REFUSED,
            completion=make.completion("refused"),
            ranks=RanksReading(roots=(100,), missing_roots=(100,)),
        ),
        "fall_back",
        "engine_down",
    ),
    "the main process is a zombie": (
        lambda: make.healthy(engine=REFUSED, completion=make.completion("refused"), ranks=root("Z", 60)),
        "fall_back",
        "engine_down",
    ),
    "the fallback tier is down: nothing is below it": (
        lambda: make.healthy(
            engine=REFUSED,
            completion=make.completion("refused"),
            expected={"tier": "fallback", "router_server": "fb"},
        ),
        "watch",
        "engine_down",
    ),
    "an engine that answers 500": (
        lambda: make.healthy(engine=IDLE, completion=make.completion("http_error", status=500)),
        "unknown",
        "engine_errors",
    ),
    "one completion of many fails": (
        lambda: make.healthy(completion=make.completion("error_event")),
        "watch",
        "engine_errors",
    ),
    "an engine that sheds load": (
        lambda: make.healthy(completion=make.completion("http_error", status=503)),
        "watch",
        "serving_regression",
    ),
    "a completion in the queue of a busy engine": (
        lambda: make.healthy(completion=HUNG),
        "watch",
        "serving_regression",
    ),
    "our probe asks for the wrong model": (
        lambda: make.healthy(completion=make.completion("rejected", status=404)),
        "unknown",
        "unknown",
    ),
    "counters that cannot be read, though it serves": (lambda: make.healthy(engine=None), "watch", "unknown"),
    "counters that cannot be read, nor a completion": (
        lambda: make.healthy(engine=None, completion=None),
        "unknown",
        "unknown",
    ),
    "a counter that goes backwards": (
        lambda: make.healthy(engine=make.engine(tokens=(900, 3))),
        "watch",
        "engine_errors",
    ),
    "a slow completion": (
        lambda: make.healthy(completion=make.completion(e2e_ms=3900)),
        "watch",
        "serving_regression",
    ),
    # hardware and serving joined
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
    "GPU memory that is held after a stop": (
        lambda: make.healthy(
            expected={"tier_expected": False},
            nvml=make.with_gpu(2, processes=(GpuProcess(pid=7, memory_mib=900),)).model_copy(),
        ),
        "watch",
        "memory_held",
    ),
    # the router
    "the router is down": (
        lambda: make.healthy(
            router=RouterReading(socket="s", backend="serve", outcome="down", detail="refused")
        ),
        "watch",
        "router_down",
    ),
    "no server takes requests": (lambda: make.healthy(router=router(weight=0)), "watch", "router_down"),
    "a long queue at the router": (
        lambda: make.healthy(router=router(queued=40)),
        "watch",
        "serving_regression",
    ),
    "the router cannot be read": (lambda: make.healthy(router=None), "watch", "unknown"),
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
    "a good deep probe": (
        lambda: make.healthy(deep=DeepReading(backend="nccl", outcome="ok", world_size=8, busbw_gbps=331)),
        "healthy",
        "none",
    ),
    "a deep probe over gloo says nothing about GPUs": (
        lambda: make.healthy(deep=DeepReading(backend="gloo", outcome="ok", world_size=2, busbw_gbps=0.4)),
        "healthy",
        "none",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_this_host_gets_this_verdict_and_cause(name: str) -> None:
    build, verdict, cause = CASES[name]
    judged = judge(build())
    assert (judged.verdict.value, judged.cause) == (verdict, cause), [
        f"{f.id}: {f.summary}" for f in judged.findings
    ]
    if judged.verdict is not VerdictKind.HEALTHY:
        assert judged.action and judged.summary


def test_a_snapshot_judges_the_same_after_it_was_written_and_read() -> None:
    for build, _, _ in CASES.values():
        snapshot = build()
        again = Snapshot.model_validate_json(snapshot.model_dump_json())
        assert judge(again) == judge(snapshot)


def test_a_hang_names_the_rank_its_state_and_the_figures_of_both_sources() -> None:
    verdict = judge(make.healthy(engine=FLAT, completion=HUNG, ranks=make.ranks(8, r1="T")))
    hang = next(finding for finding in verdict.findings if finding.id == "collective.hang")
    assert hang.subject == "rank 1"
    assert hang.evidence["sources"] == ["token counter", "process_states"]
    assert hang.evidence["progress"]["flat_s"] == 3.0
    assert hang.evidence["process_states"]["processes"][0]["state"] == "T"
    assert "rank 1 (pid 201) is stopped (T)" in verdict.summary
    assert verdict.fallback_gpu is not None


def test_the_fallback_gpu_is_the_coolest_without_a_finding() -> None:
    verdict = judge(make.healthy(nvml=make.links_down({0: (1,), 1: (2,)})))
    assert verdict.fallback_gpu is not None
    assert (verdict.fallback_gpu.index, verdict.fallback_gpu.uuid) == (2, "GPU-2")
    assert "52 C" in verdict.fallback_gpu.reason


def test_a_gpu_whose_memory_somebody_else_holds_is_not_chosen() -> None:
    taken = tuple(
        one.model_copy(update={"processes": (GpuProcess(pid=9999, memory_mib=70000),)})
        if one.index < 3
        else one
        for one in make.nvml().gpus
    )
    snapshot = Snapshot.model_validate(
        make.healthy(nvml=make.nvml(gpus=taken), expected={"fallback_memory_gib": 42}).model_dump()
    )
    verdict = judge(snapshot)
    assert verdict.fallback_gpu is not None and verdict.fallback_gpu.index == 3
    assert "42 GiB" in verdict.fallback_gpu.reason


def test_no_gpu_is_chosen_when_none_is_large_enough() -> None:
    assert judge(make.healthy(expected={"fallback_memory_gib": 200})).fallback_gpu is None


def test_missing_evidence_that_the_settings_accept_does_not_make_the_verdict_unknown() -> None:
    snapshot = make.healthy(kernel_log=None)
    accepted = judge(snapshot, TriageThresholds(accept_unknown=("kernel_log.unread",)))
    assert accepted.verdict is VerdictKind.HEALTHY
    assert any(finding.id == "kernel_log.unread" for finding in accepted.findings)


def test_accepting_an_unknown_does_not_excuse_a_fault() -> None:
    limits = TriageThresholds(accept_unknown=("collective.hang", "gpu.lost"))
    assert (
        judge(make.healthy(nvml=make.with_gpu(0, error="gpu_is_lost")), limits).verdict
        is VerdictKind.FALL_BACK
    )


def test_a_cpu_host_gets_no_unknown_for_what_it_does_not_have() -> None:
    host = make.healthy(expected={"gpus": 0, "ranks": 2}, ranks=make.ranks(2))
    verdict = judge(make.skipping(host, "nvml", "fabric_manager", "kernel_log", "ras"))
    assert verdict.verdict is VerdictKind.HEALTHY and verdict.fallback_gpu is None
    assert not [finding for finding in verdict.findings if finding.severity is Severity.UNKNOWN]


def test_throughput_under_a_queue_far_below_the_baseline_is_a_regression() -> None:
    slow = make.engine(tokens=(0, 300), waiting=5)
    slow = slow.model_copy(
        update={"samples": (slow.samples[0].model_copy(update={"waiting": 5}), slow.samples[1])}
    )
    verdict = judge(make.healthy(engine=slow), baseline=TriageBaseline(tokens_per_s=500))
    assert (verdict.verdict.value, verdict.cause) == ("watch", "serving_regression")
    assert (
        judge(make.healthy(engine=slow), baseline=TriageBaseline(tokens_per_s=110)).verdict
        is VerdictKind.HEALTHY
    )


def test_ttft_is_judged_against_the_baseline_only_with_enough_requests() -> None:
    few = make.engine(ttft_count=12, ttft_sum_s=14.0)
    few = few.model_copy(
        update={
            "samples": (
                few.samples[0].model_copy(update={"ttft_count": 10, "ttft_sum_s": 10.0}),
                few.samples[1],
            )
        }
    )
    baseline = TriageBaseline(ttft_mean_ms=100)
    assert judge(make.healthy(engine=few), baseline=baseline).verdict is VerdictKind.HEALTHY
    enough = TriageThresholds(ttft_min_samples=2)
    assert judge(make.healthy(engine=few), enough, baseline).cause == "serving_regression"


def test_the_deep_probe_is_judged_by_the_baseline_where_there_is_one() -> None:
    snapshot = make.healthy(deep=DeepReading(backend="nccl", outcome="ok", world_size=8, busbw_gbps=200))
    assert judge(snapshot).verdict is VerdictKind.HEALTHY
    assert judge(snapshot, baseline=TriageBaseline(busbw_gbps=355)).cause == "pcie_only"


def test_links_that_hide_their_far_end_when_down_are_grouped_by_the_baseline() -> None:
    down = make.links_down({0: (7,), 3: (3,)})
    hidden = tuple(
        one.model_copy(
            update={
                "links": tuple(
                    link if link.active else link.model_copy(update={"remote_pci": None})
                    for link in one.links
                )
            }
        )
        for one in down.gpus
    )
    snapshot = make.healthy(nvml=down.model_copy(update={"gpus": hidden}))
    assert not [row for row in judge(snapshot).findings if row.id == "nvlink.shared_end"]
    known = TriageBaseline(remote_ends={"GPU-0": {7: "00000000:08:00.0"}, "GPU-3": {3: "00000000:08:00.0"}})
    assert [row.subject for row in judge(snapshot, baseline=known).findings if row.id == "nvlink.shared_end"]


def test_nothing_looked_at_is_unknown() -> None:
    verdict = judge(Snapshot(host="h", taken_at=make.TAKEN, window_s=3))
    assert verdict.verdict is VerdictKind.UNKNOWN
