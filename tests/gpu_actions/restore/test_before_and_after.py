"""What a restore looks at before it begins, the order of its steps, and the state that a failed one leaves."""

import itertools
from datetime import UTC, datetime

import pytest

from gpu_actions.config.host import TierConfig
from gpu_actions.fallback.cleanup import Found, ServingState
from gpu_actions.models import Verdict, VerdictKind
from gpu_actions.restore.check import blocks, deep_unread, leftovers_of, too_few_devices, without_deep
from gpu_actions.restore.plan_steps import Way, fits_beside, order_of
from gpu_actions.restore.stepback import decide_back
from gpu_actions.restore.watch import _new, name_of
from gpu_actions.snapshot.collectors.kernel_log import KernelLogReading
from gpu_actions.snapshot.kernel_log_lines import XidEvent
from gpu_actions.snapshot.model import CollectorOutcome, Snapshot
from gpu_actions.snapshot.target import Expectation
from gpu_actions.tier.gpu_memory import GpuMemories, GpuMemory
from gpu_actions.triage.judge import judge


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
