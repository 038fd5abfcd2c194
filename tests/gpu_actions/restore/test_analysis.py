"""The judgement of a stage and what follows from it, as tables and properties, and the checks before it."""

import itertools
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.config.host import TierConfig
from gpu_actions.config.policies import RestorePolicy
from gpu_actions.fallback.cleanup import Found, ServingState
from gpu_actions.models import Verdict, VerdictKind
from gpu_actions.restore.analysis import (
    Judged,
    Orders,
    StageVerdict,
    Then,
    Window,
    decide_stage,
    describe,
    judge_stage,
    take_orders,
    weights_for,
)
from gpu_actions.restore.check import blocks, deep_unread, leftovers_of, too_few_devices, without_deep
from gpu_actions.restore.plan_steps import Way, fits_beside, order_of
from gpu_actions.restore.sequential import Counts
from gpu_actions.restore.shift import read_orders
from gpu_actions.restore.stepback import decide_back
from gpu_actions.restore.watch import _new, name_of
from gpu_actions.snapshot.collectors.kernel_log import KernelLogReading, XidEvent
from gpu_actions.snapshot.model import CollectorOutcome, Snapshot
from gpu_actions.snapshot.target import Expectation
from gpu_actions.tier.gpu_memory import GpuMemories, GpuMemory
from gpu_actions.triage.judge import judge

POLICY = RestorePolicy(
    max_error_percent=1, max_ttft_p99_ms=500, max_e2e_p99_ms=2000, max_queue=8, min_requests_per_stage=20
)


def slow(bad: int) -> Counts:
    return Counts(bad=bad, total=100)


def window(**changes: Any) -> Window:
    return Window(
        **{"percent": 25, "seconds": 60, "requests": 100, "ttft_p99_ms": 100, "e2e_p99_ms": 900, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, StageVerdict.PASSED, ""),
        ({"errors": 1}, StageVerdict.PASSED, ""),
        ({"errors": 2}, StageVerdict.PASSED, ""),
        ({"errors": 4}, StageVerdict.INCONCLUSIVE, "4 of 100 requests failed (4.0 %), the limit is 1 %"),
        ({"errors": 12}, StageVerdict.FAILED, "12 of 100 requests failed (12.0 %), the limit is 1 %"),
        ({"ttft_p99_ms": 501, "slow_ttft": slow(2)}, StageVerdict.PASSED, ""),
        ({"ttft_p99_ms": 501, "slow_ttft": slow(4)}, StageVerdict.INCONCLUSIVE, "TTFT p99 is 501 ms"),
        ({"ttft_p99_ms": 501, "slow_ttft": slow(15)}, StageVerdict.FAILED, "TTFT p99 is 501 ms"),
        ({"e2e_p99_ms": 2001, "slow_e2e": slow(15)}, StageVerdict.FAILED, "E2E p99 is 2001 ms"),
        (
            {"refused": 30, "control": slow(0)},
            StageVerdict.INCONCLUSIVE,
            "30 of 100 requests got 4xx (30.0 %)",
        ),
        ({"refused": 60, "control": slow(0)}, StageVerdict.FAILED, "60 of 100 requests got 4xx (60.0 %)"),
        ({"refused": 30, "control": slow(25)}, StageVerdict.PASSED, ""),
        ({"refused": 30, "control": Counts()}, StageVerdict.PASSED, ""),
        ({"queue_peak": 9}, StageVerdict.FAILED, "its queue reached 9"),
        ({"hung": True}, StageVerdict.FAILED, "token counter does not move"),
        ({"died": "is gone"}, StageVerdict.FAILED, "its process is gone"),
        ({"xids": ("xid 79",)}, StageVerdict.FAILED, "new in the kernel log: xid 79"),
        ({"application_xids": ("xid 31",)}, StageVerdict.PASSED, ""),
        ({"ttft_p99_ms": None, "missing": ("ttft",)}, StageVerdict.INCONCLUSIVE, "not measured: ttft"),
        ({"requests": 19}, StageVerdict.INCONCLUSIVE, "19 requests are too few to judge, 20 are needed"),
        ({"requests": 19, "ttft_p99_ms": 9000}, StageVerdict.INCONCLUSIVE, "too few"),
        ({"requests": 2, "errors": 1}, StageVerdict.INCONCLUSIVE, "too few"),
        ({"requests": 5, "errors": 5}, StageVerdict.FAILED, "5 of 5 requests failed (100.0 %)"),
        ({"requests": 0, "hung": True}, StageVerdict.FAILED, "token counter does not move"),
        (
            {"looked_into": 19},
            StageVerdict.INCONCLUSIVE,
            "the router looks into no answer, and 19 probes are too few",
        ),
        ({"looked_into": 20}, StageVerdict.PASSED, ""),
    ],
)
def test_a_stage_is_judged_by_its_window(changes: dict[str, Any], verdict: StageVerdict, reason: str) -> None:
    judged = judge_stage(window(**changes), POLICY)
    assert judged.verdict is verdict
    assert reason in "; ".join(judged.reasons)


def test_no_traffic_passes_where_only_faults_matter() -> None:
    assert judge_stage(window(requests=0), POLICY, min_requests=0).verdict is StageVerdict.PASSED
    assert judge_stage(window(requests=0, hung=True), POLICY, min_requests=0).verdict is StageVerdict.FAILED


@given(
    requests=st.integers(0, 500),
    errors=st.integers(0, 50),
    ttft=st.one_of(st.none(), st.floats(0, 10_000)),
    worse=st.integers(1, 50),
)
def test_more_errors_never_turn_a_failed_stage_into_a_passed_one(
    requests: int, errors: int, ttft: float | None, worse: int
) -> None:
    before = judge_stage(window(requests=requests, errors=errors, ttft_p99_ms=ttft), POLICY)
    after = judge_stage(window(requests=requests, errors=errors + worse, ttft_p99_ms=ttft), POLICY)
    if before.verdict is StageVerdict.FAILED:
        assert after.verdict is StageVerdict.FAILED


def test_the_description_names_what_could_not_be_measured() -> None:
    line = describe(window(missing=("kernel log (denied)",), ttft_p99_ms=None))
    assert "not measured: kernel log (denied)" in line
    assert "TTFT" not in line


PASSED, FAILED = Judged(verdict=StageVerdict.PASSED), Judged(verdict=StageVerdict.FAILED, reasons=("bad",))
FEW = Judged(verdict=StageVerdict.INCONCLUSIVE, reasons=("few",))


@pytest.mark.parametrize(
    ("judged", "orders", "elapsed_s", "then"),
    [
        (PASSED, Orders(), 10, Then.WAIT),
        (PASSED, Orders(), 60, Then.PASS),
        (PASSED, Orders(go_on=True), 10, Then.PASS),
        (PASSED, Orders(holding=True), 600, Then.WAIT),
        (PASSED, Orders(abort=True), 600, Then.STEP_BACK),
        (FAILED, Orders(), 1, Then.STEP_BACK),
        (FAILED, Orders(go_on=True), 1, Then.STEP_BACK),
        (FAILED, Orders(holding=True), 1, Then.STEP_BACK),
        (FEW, Orders(), 10, Then.WAIT),
        (FEW, Orders(), 61, Then.WAIT),
        (FEW, Orders(), 161, Then.STEP_BACK),
        (FEW, Orders(go_on=True), 61, Then.PASS),
        (FEW, Orders(holding=True), 161, Then.WAIT),
    ],
)
def test_the_next_move_of_a_stage(judged: Judged, orders: Orders, elapsed_s: float, then: Then) -> None:
    assert decide_stage(judged, orders, elapsed_s=elapsed_s, hold_s=60, inconclusive_wait_s=100)[0] is then


@pytest.mark.parametrize(
    ("signals", "orders"),
    [
        ((), Orders()),
        (("next",), Orders(seen=1, go_on=True)),
        (("hold",), Orders(seen=1, holding=True)),
        (("hold", "next"), Orders(seen=2, go_on=True)),
        (("next", "hold"), Orders(seen=2, holding=True)),
        (("hold", "abort"), Orders(seen=2, holding=True, abort=True)),
        (("stop",), Orders(seen=1, abort=True)),
    ],
)
def test_the_latest_signal_counts(signals: tuple[str, ...], orders: Orders) -> None:
    assert take_orders(Orders(), signals) == orders


async def test_a_next_counts_only_if_it_came_after_its_question(tmp_path: Path) -> None:
    signals: list[str] = []

    async def given_so_far() -> tuple[str, ...]:
        return tuple(signals)

    def step(name: str) -> Any:
        return SimpleNamespace(step=SimpleNamespace(id=name), workdir=tmp_path, signals=given_so_far)

    signals += ["hold", "next"]  # during an earlier step, which asks nothing
    assert (await read_orders(step("compare"))).go_on is False
    assert (await read_orders(step("compare"))).go_on is False
    signals.append("next")
    assert (await read_orders(step("compare"))).go_on is True
    assert (await read_orders(step("shift-5"))).go_on is False
    signals.append("abort")
    assert (await read_orders(step("shift-25"))).abort is True


@given(st.lists(st.sampled_from(["hold", "next", "abort"]), max_size=8), st.integers(0, 8))
def test_signals_read_in_two_parts_equal_those_read_at_once(signals: list[str], cut: int) -> None:
    whole = take_orders(Orders(), tuple(signals))
    assert take_orders(take_orders(Orders(), tuple(signals[:cut])), tuple(signals)) == whole


@pytest.mark.parametrize("percent", [0, 1, 5, 25, 50, 99, 100])
def test_the_weights_of_a_stage_match_its_share_and_are_never_all_zero(percent: int) -> None:
    tp, fallback = weights_for(percent, tp_weight=200, fallback_weight=90)
    assert tp + fallback > 0
    assert 100 * tp / (tp + fallback) == percent
    assert max(tp, fallback) <= 256


@pytest.mark.parametrize("percent", [1, 5, 25, 50, 99])
def test_no_stage_but_the_last_one_makes_a_tier_a_stand_by(percent: int) -> None:
    tp, fallback = weights_for(percent, tp_weight=200, fallback_weight=90, standby_weight=1)
    assert min(tp, fallback) > 1
    assert 100 * tp / (tp + fallback) == percent
    assert weights_for(100, tp_weight=200, fallback_weight=90, standby_weight=1) == (200, 1)


@pytest.mark.parametrize("stages", [(5, 25, 50, 100), (100,), (10, 100)])
def test_traffic_moves_after_the_proofs_and_the_fallback_stops_last(stages: tuple[int, ...]) -> None:
    ids = order_of(Way.BESIDE, stages)
    first = ids.index(f"shift-{stages[0]}")
    assert all(ids.index(step) < first for step in ("check", "warm", "loadtest", "compare"))
    assert ids.index("keep-warm") < ids.index("drain") < ids.index("stop") < ids.index("finish")
    cut_over = order_of(Way.CUT_OVER, stages)
    assert (
        cut_over.index("check") < cut_over.index("drain") < cut_over.index("stop") < cut_over.index("start")
    )
    assert cut_over.index("warm") < cut_over.index("shift-100")


@pytest.mark.parametrize("row", list(itertools.product((False, True), repeat=5)))
def test_a_failed_restore_leaves_one_state_that_the_probes_support(row: tuple[bool, ...]) -> None:
    found = Found(**dict(zip(Found.model_fields, row, strict=True)))
    tp = found.tp_active and found.tp_generates
    fallback = found.fallback_active and found.fallback_generates
    for passed in (False, True):
        back = decide_back(found, stages_passed=passed)
        assert back.start_fallback == (not tp and not fallback)
        if back.state is ServingState.TP:
            assert tp
            assert passed or not fallback
        else:
            assert fallback or back.start_fallback


@pytest.mark.parametrize(
    ("value", "gpus", "few"),
    [
        (None, 8, False),
        ("0", 8, True),
        ("0", 0, False),
        ("0,1", 2, False),
        ("", 2, True),
        ("GPU-a,GPU-b", 3, True),
    ],
)
def test_a_device_list_is_a_leftover_if_it_is_too_short(value: str | None, gpus: int, few: bool) -> None:
    assert too_few_devices(value, gpus) is few


def tier(gpus: int, need_gib: float | None) -> TierConfig:
    return TierConfig.model_validate(
        {
            "engine": {"url": "http://127.0.0.1:1", "model": "m"},
            "unit": {"driver": "process", "argv": ["true"]},
            "server": "tp",
            "gpus": gpus,
            "memory_gib_per_gpu": need_gib,
        }
    )


def test_leftovers_are_named_and_variables_that_may_be_intended_stay() -> None:
    environment = {
        "NCCL_P2P_DISABLE": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "NCCL_SOCKET_IFNAME": "eth0",
        "PATH": "/bin",
    }
    assert leftovers_of(environment, tier(8, 40)) == ("NCCL_P2P_DISABLE", "CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("gpus", "need_gib", "free_gib", "fits"),
    [
        (0, None, [], True),
        (2, 30, [40, 35], True),
        (2, 36, [40, 35], False),
        (2, None, [80, 80], False),
        (2, 30, [40], False),
        (2, 30, [], False),
        (1, 30, [35, 1], True),
    ],
)
def test_whether_both_tiers_fit_is_computed_and_never_assumed(
    gpus: int, need_gib: float | None, free_gib: list[float], fits: bool
) -> None:
    memories = GpuMemories(
        gpus=tuple(
            GpuMemory(index=i, uuid=f"GPU-{i}", total_mib=80 * 1024, free_mib=g * 1024)
            for i, g in enumerate(free_gib)
        )
    )
    verdict, words = fits_beside(tier(gpus, need_gib), memories)
    assert verdict is fits
    assert words


@pytest.mark.parametrize(
    ("kind", "override", "blocked"),
    [
        (VerdictKind.HEALTHY, "", False),
        (VerdictKind.WATCH, "", False),
        (VerdictKind.UNKNOWN, "", True),
        (VerdictKind.FALL_BACK, "", True),
        (VerdictKind.FALL_BACK, "the GPU was swapped", False),
        (VerdictKind.UNKNOWN, "no rights here", False),
    ],
)
def test_a_restore_begins_only_on_a_healthy_host_or_with_a_reason(
    kind: VerdictKind, override: str, blocked: bool
) -> None:
    verdict = Verdict(verdict=kind, cause="none", summary="s")
    assert (blocks(verdict, override_reason=override) is not None) is blocked


def test_the_passive_evidence_decides_if_the_deep_probe_has_no_memory() -> None:
    snapshot = Snapshot(
        host="h",
        taken_at=datetime.now(UTC),
        window_s=3,
        expected=Expectation(gpus=0, tier_expected=False),
        collectors={
            "deep": CollectorOutcome(status="failed", reason="1 GiB free on GPU 0, 4 needed"),
            "kernel_log": CollectorOutcome(status="ok"),
        },
        kernel_log=KernelLogReading(source="a file"),
    )
    verdict = judge(snapshot)
    assert verdict.verdict is VerdictKind.UNKNOWN
    assert "1 GiB free" in deep_unread(verdict)
    passive = without_deep(snapshot)
    assert passive.verdict is VerdictKind.HEALTHY
    assert deep_unread(passive) == ""


def test_a_known_kernel_log_line_that_appears_again_is_new_once() -> None:
    event = XidEvent(kind="xid", code=79, pci="0000:3b:00", text="fell off the bus")
    assert _new((event,), (name_of(event),)) == []
    assert _new((event, event), (name_of(event),)) == [event]
