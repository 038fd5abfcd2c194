"""The judgement as a table: a healthy host that serves, with one change, and the verdict that must follow."""

import pytest

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Finding, Severity, VerdictKind
from gpu_actions.snapshot.collectors.deep import DeepPair, DeepReading
from gpu_actions.snapshot.collectors.nvml import GpuProcess
from gpu_actions.snapshot.collectors.ranks import RanksReading
from gpu_actions.snapshot.model import COLLECTORS, CollectorOutcome, Expectation, Snapshot
from gpu_actions.triage.baselines import TriageBaseline, baseline_from
from gpu_actions.triage.fallback_gpu import choose_fallback_gpu
from gpu_actions.triage.judge import judge, summary_of_healthy
from gpu_actions.triage.rule import CRITICAL, INFO, OK, UNKNOWN, WATCH, Rule, Rules, rule
from tests.gpu_actions.triage import builders as make
from tests.gpu_actions.triage import cases_crashes, cases_deep, cases_gpus
from tests.gpu_actions.triage.cases import CASES, judge_case, snapshot_of
from tests.gpu_actions.triage.table import SAYS, says

FLAT = make.engine(tokens=(1000, 1000))
HUNG = make.completion("timeout", tokens=0)


@pytest.mark.parametrize("name", CASES)
def test_a_host_in_this_state_gets_this_verdict_and_cause(name: str) -> None:
    _, verdict, cause, *_ = CASES[name]
    judged = judge_case(name)
    assert (judged.verdict.value, judged.cause) == (verdict, cause), [
        f"{f.id}: {f.summary}" for f in judged.findings
    ]
    if judged.verdict is not VerdictKind.HEALTHY:
        assert judged.action and judged.summary


def test_triage_says_of_each_host_word_for_word_what_was_agreed() -> None:
    """Every text and figure is read at 3 a.m.; a change shows in the difference of the file."""
    agreed = SAYS.read_text(encoding="utf-8").rstrip("\n").split("\n\n")
    said = says()
    for before in agreed:
        assert next(said, "") == before, (
            f"if it is meant: python -m tests.gpu_actions.triage.table, and read {SAYS.name}"
        )
    assert next(said, "") == "", "run make docs"


def test_a_snapshot_is_judged_the_same_after_a_round_trip_through_json() -> None:
    for name in CASES:
        snapshot = snapshot_of(name)
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


@pytest.mark.parametrize(
    ("states", "pids"), [({"r1": "T"}, [201]), ({"r1": "T", "r3": "T"}, [201, 203]), ({"r1": "t"}, [])]
)
def test_kill_cont_is_advised_for_stopped_ranks_but_not_for_one_that_a_debugger_holds(
    states: dict[str, str], pids: list[int]
) -> None:
    verdict = judge(make.healthy(engine=FLAT, completion=HUNG, ranks=make.ranks(8, **states)))
    assert verdict.cause == "nccl_hang"
    assert verdict.action.count("kill -CONT") == len(pids)
    assert all(f"kill -CONT {pid} " in verdict.action for pid in pids)
    assert pids or "debugger" in verdict.action


def test_the_fallback_gpu_is_the_coolest_one_without_findings() -> None:
    verdict = judge(make.healthy(nvml=make.links_down({0: (1,), 1: (2,)})))
    assert verdict.fallback_gpu is not None
    assert (verdict.fallback_gpu.index, verdict.fallback_gpu.uuid) == (2, "GPU-2")
    assert "52 C" in verdict.fallback_gpu.reason


def test_a_gpu_whose_memory_is_held_by_other_processes_is_not_chosen() -> None:
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


def test_healthy_names_what_could_not_be_checked() -> None:
    assert judge(make.healthy()).summary == "all checks passed"
    accepted = judge(make.healthy(kernel_log=None), TriageThresholds(accept_unknown=("kernel_log.unread",)))
    no_manager = judge(make.healthy(fabric_manager=None))
    for verdict, rule_id in ((accepted, "kernel_log.unread"), (no_manager, "fabric.manager_unread")):
        assert verdict.verdict is VerdictKind.HEALTHY
        assert "all checks passed" not in verdict.summary and rule_id in verdict.summary


@pytest.mark.parametrize(
    ("accepted", "unread", "verdict"),
    [
        ("gpu.unread:recovery_action", {"recovery_action": "not_supported"}, "healthy"),
        ("gpu.unread:recovery_action", {"recovery_action": "unknown"}, "unknown"),
        ("gpu.unread:recovery_action:unknown", {"recovery_action": "unknown"}, "healthy"),
        ("gpu.unread:recovery_action", {"recovery_action": "not_supported", "ecc_uncorrected": "not_supported"}, "unknown"),
        ("gpu.unread", {"ecc_uncorrected": "not_supported"}, "unknown"),
    ],
)  # fmt: skip
def test_missing_evidence_of_a_gpu_is_accepted_by_field_and_only_for_its_reason(
    accepted: str, unread: dict[str, str], verdict: str
) -> None:
    snapshot = make.healthy(nvml=make.with_gpu(3, unread=unread))
    assert judge(snapshot, TriageThresholds(accept_unknown=(accepted,))).verdict == verdict


@pytest.mark.parametrize("accepted", ["gpu.unread", "gpu.unread:recovery_action"])
def test_no_acceptance_of_a_field_covers_gpus_that_cannot_be_read_at_all(accepted: str) -> None:
    limits = TriageThresholds(accept_unknown=(accepted,))
    assert judge(make.healthy(nvml=None), limits).verdict is VerdictKind.UNKNOWN
    unreachable = make.healthy(nvml=make.with_gpu(0, error="unknown"))
    assert judge(unreachable, limits).verdict is VerdictKind.UNKNOWN


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("CUDA out of memory", "cuda_oom"),
        ("torch.OutOfMemoryError", "cuda_oom"),
        ("illegal memory access", "illegal_access"),
        ("result 'oom-kill'", "kernel_oom"),
        ("", "unknown"),
    ],
)
def test_a_crash_loop_names_its_cause_and_what_to_do(log: str, cause: str) -> None:
    verdict = judge(cases_crashes.crashes(minutes=(1, 3, 6), log=log))
    loop = next(finding for finding in verdict.findings if finding.id == "serving.crash_loop")
    assert loop.evidence["crash_cause"] == cause
    assert "3 restarts within 6 min" in verdict.summary and verdict.action.startswith("Fall back")


def test_a_tier_that_is_down_names_what_ended_it() -> None:
    down = cases_crashes.crashes(
        minutes=(900,), log="CUDA out of memory", engine=make.engine(outcome="refused"), completion=None
    )
    verdict = judge(down)
    assert verdict.cause == "engine_down" and "CUDA out of memory" in verdict.summary


def test_the_deep_probe_of_one_gpu_reports_what_it_measured() -> None:
    snapshot = cases_deep.one_gpu(gemm_tflops=806.2, memory_gbps=2611, to_gpu_gbps=55.1, from_gpu_gbps=54.8)
    found = next(finding for finding in judge(snapshot).findings if finding.id == "deep.ok")
    assert found.summary == "GEMM 806 TFLOP/s, memory 2611 GB/s, host to GPU 55 GB/s, GPU to host 55 GB/s"


def test_neither_gpu_of_a_corrupt_pair_is_chosen_for_the_fallback() -> None:
    pair = DeepPair(source=0, target=1, gbps=380, corrupt=True)
    deep = DeepReading(backend="nccl", outcome="ok", world_size=8, busbw_gbps=330, pairs=(pair,))
    chosen = judge(make.healthy(deep=deep)).fallback_gpu
    assert chosen is not None and chosen.index == 2


def test_the_baseline_knows_which_gpus_reach_each_other() -> None:
    snapshot = cases_gpus.of_four(cases_gpus.bridged(4, group=2, name="NVIDIA A100-SXM4-40GB", hidden=True))
    assert judge(snapshot).cause == "pcie_only"
    assert judge(snapshot, baseline=baseline_from(snapshot)).verdict is VerdictKind.HEALTHY
    alone = cases_gpus.of_four(cases_gpus.bridged(4, group=1))
    pairs = baseline_from(cases_gpus.of_four(cases_gpus.bridged(4, group=2)))
    assert judge(alone, baseline=pairs).cause == "pcie_only"


def test_living_ranks_are_told_to_be_well_although_nccl_ras_is_not_asked() -> None:
    verdict = judge(make.skipping(make.healthy(), "ras"))
    found = [finding.summary for finding in verdict.findings if finding.id == "collective.ok"]
    assert found == ["9 processes of the tier, none stuck"]


@pytest.mark.parametrize(
    ("counts", "rank", "words"),
    [
        ([7, 7, 7, 6], 3, "rank 3 is behind"),
        ([6, 7, 6, 6], 1, "rank 1 is ahead"),
        ([6, 7], 0, "rank 0 is behind"),
    ],
)
def test_a_mismatch_of_operation_counts_names_the_rank(counts: list[int], rank: int, words: str) -> None:
    stuck = make.healthy(
        engine=FLAT,
        completion=HUNG,
        ras=make.ras(counts, counts),
        ranks=make.ranks(len(counts)),
        expected={"ranks": len(counts)},
    )
    hang = next(finding for finding in judge(stuck).findings if finding.id == "collective.hang")
    assert hang.subject == f"rank {rank}" and words in hang.summary


def test_a_replica_that_is_gone_is_missed_although_the_main_process_lives() -> None:
    rows = [make.process(100, None, root=True)]
    rows += [make.process(200 + number, number, coordinates={"DP": number}) for number in (1, 2, 3)]
    snapshot = make.healthy(
        ranks=RanksReading(roots=(100,), processes=tuple(rows)), ras=None, expected={"ranks": 4}
    )
    dead = next(finding for finding in judge(snapshot).findings if finding.id == "collective.rank_dead")
    assert dead.evidence["missing"] == [0]


def test_accepting_an_unknown_does_not_excuse_a_fault() -> None:
    limits = TriageThresholds(accept_unknown=("collective.hang", "gpu.lost"))
    assert (
        judge(make.healthy(nvml=make.with_gpu(0, error="gpu_is_lost")), limits).verdict
        is VerdictKind.FALL_BACK
    )


def test_a_cpu_host_gets_no_unknown_finding_for_missing_hardware() -> None:
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


def test_the_deep_probe_is_judged_by_the_baseline_if_there_is_one() -> None:
    snapshot = make.healthy(deep=DeepReading(backend="nccl", outcome="ok", world_size=8, busbw_gbps=200))
    assert judge(snapshot).verdict is VerdictKind.HEALTHY
    assert judge(snapshot, baseline=TriageBaseline(busbw_gbps=355)).cause == "pcie_only"


def test_links_that_hide_their_remote_end_while_down_are_grouped_by_the_baseline() -> None:
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


def test_a_snapshot_without_readings_is_unknown() -> None:
    verdict = judge(Snapshot(host="h", taken_at=make.TAKEN, window_s=3))
    assert verdict.verdict is VerdictKind.UNKNOWN


@pytest.mark.parametrize(
    ("severity", "verdict", "cause"),
    [
        (OK, "healthy", "none"),
        (INFO, "healthy", "none"),
        (WATCH, "watch", ""),
        (UNKNOWN, "unknown", "unknown"),
        (CRITICAL, "fall_back", ""),
    ],
)
def test_a_rule_that_names_no_verdict_has_that_of_its_severity(
    severity: Severity, verdict: str, cause: str
) -> None:
    usual = rule("gpu.a.b", severity, "what it finds", source="NVML")
    assert usual == Rule(
        id="gpu.a.b",
        component="gpu",
        severity=severity,
        verdict=VerdictKind(verdict),
        cause=cause,
        finds="what it finds",
        action="",
        source="NVML",
    )
    named = rule(
        "gpu.a", severity, "what it finds", "do this", source="NVML", cause="thermal",
        verdict=VerdictKind.WATCH, when_broken=VerdictKind.FALL_BACK, threshold="stall_s",
    )  # fmt: skip
    assert (named.verdict, named.cause, named.action) == (VerdictKind.WATCH, "thermal", "do this")
    assert (named.when_broken, named.threshold) == (VerdictKind.FALL_BACK, "stall_s")


def test_a_finding_has_the_words_of_its_rule_where_it_has_none_and_at_most_300_characters() -> None:
    rules = Rules(rule("gpu.a", WATCH, "what it finds", "do this", source="NVML", cause="thermal"))
    assert list(rules) == ["gpu.a"]
    bare = rules.finding("gpu.a", "  ", subject="GPU-1", celsius=90)
    assert bare == Finding(
        id="gpu.a", component="gpu", severity=WATCH, summary="what it finds", evidence={"celsius": 90},
        action="do this", subject="GPU-1",
    )  # fmt: skip
    assert rules.finding("gpu.a", "a  b\n" * 200).summary == ("a b " * 75)[:300]


def test_where_nothing_was_read_the_verdict_says_what_to_name() -> None:
    nothing = Snapshot(
        host="h1", taken_at=make.TAKEN, window_s=1, expected=Expectation(),
        collectors={name: CollectorOutcome(status="skipped", reason="it does not apply") for name in COLLECTORS},
    )  # fmt: skip
    verdict = judge(nothing)
    assert (verdict.verdict, verdict.cause) == (VerdictKind.UNKNOWN, "unknown")
    assert verdict.summary == "nothing was checked: no engine, no process and no GPU is configured"
    assert verdict.action == "Name what to check, for example --engine-url URL."


@pytest.mark.parametrize(("number", "more"), [(1, ""), (2, " (and 1 more)"), (4, " (and 3 more)")])
def test_a_healthy_verdict_counts_what_was_not_read(number: int, more: str) -> None:
    rules = Rules(
        rule("gpu.a", UNKNOWN, "no answer", "", source="NVML"), rule("gpu.b", OK, "well", source="NVML")
    )
    findings = [rules.finding("gpu.b", "well"), *(rules.finding("gpu.a", "no answer") for _ in range(number))]
    said = "no fault found, but not everything could be checked: gpu.a: no answer"
    assert summary_of_healthy(findings) == said + more
    assert summary_of_healthy(findings[:1]) == "all checks passed"


@pytest.mark.parametrize(
    ("of_gpu_0", "severity", "chosen"),
    [
        ("gpu.a", WATCH, 1),
        ("gpu.a", INFO, 0),
        ("nvlink.a", WATCH, 1),
    ],
    ids=["a finding of its own", "a remark", "a link"],
)
def test_a_gpu_with_findings_comes_after_those_without(
    of_gpu_0: str, severity: Severity, chosen: int
) -> None:
    snapshot = make.healthy()
    rules = Rules(rule(of_gpu_0, severity, "odd", "", source="NVML", cause="thermal"))
    gpus = choose_fallback_gpu(snapshot, [rules.finding(of_gpu_0, "odd", subject="GPU-0")])
    assert gpus is not None and gpus.index == chosen


def test_a_gpu_with_a_finding_of_its_own_comes_after_one_with_a_bad_link() -> None:
    snapshot = make.healthy(nvml=make.nvml(2))
    rules = Rules(
        rule("gpu.a", WATCH, "hot", "", source="NVML", cause="thermal"),
        rule("nvlink.a", WATCH, "odd", "", source="NVML", cause="nvlink_errors"),
    )
    own, link = (
        rules.finding("gpu.a", "hot", subject="GPU-0"),
        rules.finding("nvlink.a", "odd", subject="GPU-1"),
    )
    chosen = choose_fallback_gpu(snapshot, [own, link])
    assert chosen is not None and chosen.index == 1


def test_a_gpu_with_exactly_the_memory_that_is_needed_is_chosen() -> None:
    gib = (make.gpu(0).memory_total_mib or 0) / 1024
    assert judge(make.healthy(expected={"fallback_memory_gib": gib})).fallback_gpu is not None
