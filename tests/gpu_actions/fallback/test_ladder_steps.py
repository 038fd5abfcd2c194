"""Stepping down the ladder on real processes: rungs that do not generate, that die, and that are chosen by hand."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from gpu_actions.action import PlanRefused
from gpu_actions.restore.action import SPEC as RESTORE
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.fallback.test_reference import reference
from tests.gpu_actions.site import At, data_of, statuses, summary_of

# -- on real processes -------------------------------------------------------------------------------------------------

TWO = {"big": {"max_concurrent": 64}, "small": {}}


async def test_a_rung_that_does_not_generate_is_stepped_down_from_and_a_restore_returns_from_the_next_one(
    site_with: MakeSite, tmp_path: Path
) -> None:
    failing = tmp_path / "fails"
    failing.write_text("9")
    (tmp_path / "log").write_text("INFO Loading weights took 0.25 seconds\n")
    site = await site_with(
        ladder={
            "big": {"flags": ["--fail-starts", str(failing)]},
            "small": {"max_concurrent": 64, "flags": ["--say", str(tmp_path / "log")]},
        },
        restore={
            "stages_percent": [100],
            "hold_s": 0.3,
            "keep_fallback_warm_s": 0.2,
            "load": {"duration_s": 1, "target_qps": 5},
        },
    )
    host = site.host
    await site.freeze_rank()
    plan = await site.plan(skip_validation=True)
    assert plan.title.startswith("Fall back to rung big (on the CPU)")
    assert [one["rung"] for one in plan.alternatives["serve"]] == ["big", "small", "fallback", "fallback"]
    async with site.traffic() as seen:
        end = await site.run(plan)
        assert end.ended.status == "succeeded", [step.outcome.summary for step in end.steps]
    assert [status for _, status in statuses(end)].count("failed") == 1
    assert "fallback (rung big)" in summary_of_failed(end)
    assert "device is sick" in summary_of_failed(end)
    assert host.rung == "small"
    assert data_of(end, "warm")["startup_phases"] == {"weights": 0.25}
    assert "weights 0.2 s, the rest" in data_of(end, "warm")["card"]["Start-up"]
    assert "the CPU as rung small" in summary_of(end, "scope")
    assert "all requests go to fallback (rung small)" in summary_of(end, "route")
    assert data_of(end, "backpressure")["in_force"]["max_concurrent"] == 64
    assert not [line for line in seen.lost if "broke" in line]
    await site.check_serving("fallback")
    # Another process that reads the same folder knows the rung too.
    assert site.host.on_rung("").rung == "small"
    with pytest.raises(PlanRefused, match="to step up to a bigger rung beside it"):
        await site.plan()
    async with site.traffic() as seen:
        end = await site.run(await site.plan(RESTORE, accept_no_baseline=True))
    assert end.ended.status == "succeeded", [step.outcome.summary for step in end.steps]
    assert seen.lost == []
    assert host.rung == "fallback"
    await site.check_serving("tp")


def summary_of_failed(end: Any) -> str:
    return next(step.outcome.summary for step in end.steps if step.outcome.status == "failed")


@pytest.mark.heavy
async def test_with_real_engines_a_rung_that_answers_nothing_and_one_that_dies_are_passed_and_no_answer_is_lost(
    site_with: MakeSite,
) -> None:
    """The top rung listens and never generates, the next one ends at its start, the third serves."""
    serve = "h.HTTPServer(('127.0.0.1', int(sys.argv[2])), h.SimpleHTTPRequestHandler).serve_forever()"
    mute = f"import http.server as h, sys; {serve}"
    site = await site_with(
        tp_engine=reference("--tensor-parallel-size", "2"),
        fallback_engine=reference("--max-num-seqs", "16"),
        big_engine={"kind": "openai", "argv": [sys.executable, "-c", mute]},
        mid_engine=reference("--hidden-size", "255"),
        small_engine=reference("--max-num-seqs", "32"),
        ladder={"big": {"engine": {"ready_timeout_s": 3}}, "mid": {}, "small": {"max_concurrent": 32}},
        fallback={"capture_budget_s": 5},
        restore={"hold_s": 2, "keep_fallback_warm_s": 0},
    )
    async with site.traffic() as seen:
        end = await site.run(await site.plan(skip_validation=True))
    assert end.ended.status == "succeeded", [step.outcome.summary for step in end.steps]
    assert [status for _, status in statuses(end)].count("failed") == 2
    assert (seen.lost, seen.refused, site.host.rung) == ([], 0, "small")
    await site.check_serving("fallback")
    async with site.traffic() as seen:
        end = await site.run(await site.plan(RESTORE, accept_no_baseline=True))
    assert end.ended.status == "succeeded", [step.outcome.summary for step in end.steps]
    assert seen.lost == []
    await site.check_serving("tp")


@pytest.mark.heavy
async def test_without_any_rung_that_generates_tp_is_returned_to_and_no_rung_is_left(
    site_with: MakeSite, tmp_path: Path
) -> None:
    failing = tmp_path / "fails"
    failing.write_text("9")
    flags = ["--fail-starts", str(failing)]
    site = await site_with(ladder={"big": {"flags": flags}}, fb=flags)
    end = await site.run(await site.plan(skip_validation=True))
    assert end.ended.status == "failed"
    assert site.host.rung == "fallback"
    await site.check_serving("tp")


@pytest.mark.heavy
async def test_a_rung_that_dies_while_it_serves_is_left_for_the_next_plan_which_saves_its_evidence_first(
    site_with: MakeSite,
) -> None:
    site = await site_with(ladder=TWO)
    await site.freeze_rank()
    assert (await site.run(await site.plan(skip_validation=True))).ended.status == "succeeded"
    assert site.host.rung == "big"
    big = (await site.host.rungs["big"].unit.state()).main_pid
    assert big is not None
    for pid in (await site.host.rungs["big"].unit.state()).pids:
        os.kill(pid, signal.SIGSTOP)
    plan = await site.plan(skip_validation=True, rung="small")
    assert "in_place" in plan.title
    end = await site.run(plan)
    assert end.ended.status == "succeeded", [step.outcome.summary for step in end.steps]
    order = [step.outcome.step_id for step in end.steps]
    assert order.index("capture") < order.index("scope")
    await site.check_serving("fallback")
    assert site.host.rung == "small"


async def test_a_stop_between_two_rungs_leaves_none_of_them(site_with: MakeSite, tmp_path: Path) -> None:
    import asyncio

    failing = tmp_path / "fails"
    failing.write_text("1")
    site = await site_with(ladder={"big": {"flags": ["--fail-starts", str(failing)]}, "small": {}})
    stop = asyncio.Event()
    end = await site.run(await site.plan(skip_validation=True), stop=stop, report=At("warm", stop.set))
    assert end.ended.status == "cancelled"
    await site.check_serving("tp")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"rung": "huge"}, "there is no rung 'huge' here; rung= takes: big, small, fallback"),
        ({"rung": "big", "gpu": "0"}, "gpu= chooses the GPU of rung fallback"),
    ],
)
async def test_a_rung_that_does_not_exist_is_refused_with_those_that_do(
    site_with: MakeSite, arguments: dict[str, str], problem: str
) -> None:
    site = await site_with(up=False, ladder=TWO)
    with pytest.raises(PlanRefused, match=problem):
        await site.plan(**arguments)
