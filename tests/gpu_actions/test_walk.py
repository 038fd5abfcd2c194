"""The next move in a plan, as a table and as properties. The walker runs real step functions."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions import action
from gpu_actions.action import StepContext, StepFailed, StepResult
from gpu_actions.plan import Plan, Step
from gpu_actions.walk import Ended, Outcome, RunStep, next_move, outputs_of, walk

NO_HOST: Any = None
"""The steps of these tests touch no host."""


def plan(**changes: Any) -> Plan:
    return Plan(
        **{
            "action": "test",
            "host": "here",
            "title": "a, then b and c on GPU 1 or 2, then d",
            "steps": (
                Step(id="a", verb="walk_test.go", title="a"),
                Step(id="b", verb="walk_test.go", title="b", args={"gpu": 0, "keep": 1}, group="serve"),
                Step(id="c", verb="walk_test.go", title="c", group="serve"),
                Step(id="d", verb="walk_test.go", title="d", on_failure="continue"),
            ),
            "alternatives": {"serve": ({"gpu": 1}, {"gpu": 2})},
            "compensation": (
                Step(id="x", verb="walk_test.go", title="x"),
                Step(id="y", verb="walk_test.go", title="y"),
            ),
            **changes,
        }
    )


def read(outcomes: str) -> list[Outcome]:
    """`a b! c+` = a done, b failed, c with a warning, `a/` = a cancelled; `b2` = second attempt of b."""
    words = {"!": "failed", "+": "warning", "/": "cancelled"}
    result = []
    for word in outcomes.split():
        name = word.rstrip("!+/")
        result.append(
            Outcome.model_validate(
                {
                    "step_id": name[0],
                    "attempt": int(name[1:] or 1),
                    "status": words.get(word[len(name) :], "done"),
                }
            )
        )
    return result


def show(move: RunStep | Ended) -> str:
    if isinstance(move, Ended):
        return f"{move.status} {move.failed_step or '-'} {','.join(move.warnings) or '-'}"
    return f"{move.step.id}{move.attempt}" + ("~" if move.compensating else "")


@pytest.mark.parametrize(
    ("outcomes", "cancelled", "expected"),
    [
        ("", False, "a1"),
        ("a", False, "b1"),
        ("a+ b", False, "c1"),
        ("a b c", False, "d1"),
        ("a b c d", False, "succeeded - -"),
        ("a+ b c d!", False, "succeeded - a,d"),
        ("a!", False, "x1~"),
        ("a! x! y", False, "failed a x"),
        ("a b!", False, "b2"),
        ("a b c!", False, "b2"),
        ("a b c! b2", False, "c2"),
        ("a b c! b2 c2", False, "d1"),
        ("a b c! b2!", False, "x1~"),
        ("a b c! b2! x", False, "y1~"),
        ("a b c! b2! x y", False, "failed b -"),
        ("", True, "x1~"),
        ("a", True, "x1~"),
        ("a x", True, "y1~"),
        ("a x y", True, "cancelled - -"),
        ("a x y", False, "cancelled - -"),
        ("a b/", False, "x1~"),
        ("a b/ x y+", False, "cancelled - y"),
        ("a b c d", True, "succeeded - -"),
        ("a! x", True, "y1~"),
        ("a! x y", True, "failed a -"),
    ],
)
def test_the_next_move_follows_from_the_outcomes(outcomes: str, cancelled: bool, expected: str) -> None:
    assert show(next_move(plan(), read(outcomes), cancelled=cancelled)) == expected


def test_each_attempt_gets_its_alternative_merged_over_its_arguments() -> None:
    first = next_move(plan(), read("a"))
    second = next_move(plan(), read("a b!"))
    assert isinstance(first, RunStep)
    assert isinstance(second, RunStep)
    assert first.step.args == {"gpu": 1, "keep": 1}
    assert second.step.args == {"gpu": 2, "keep": 1}


@pytest.mark.parametrize("outcomes", ["b", "a a", "a b2", "a b c d a", "a! x x", "a! b"])
def test_outcomes_of_another_plan_are_refused(outcomes: str) -> None:
    with pytest.raises(ValueError, match="does not belong to this plan"):
        next_move(plan(), read(outcomes))


def test_a_run_without_compensation_ends_at_once() -> None:
    assert show(next_move(plan(compensation=()), read("a!"))) == "failed a -"


@given(
    statuses=st.lists(st.sampled_from(["done", "warning", "failed", "cancelled"]), max_size=30),
    cancel_at=st.integers(0, 30),
)
def test_every_course_ends_once_and_compensates_whenever_it_does_not_succeed(
    statuses: list[str], cancel_at: int
) -> None:
    the_plan = plan()
    outcomes: list[Outcome] = []
    for moves in range(20):
        move = next_move(the_plan, outcomes, cancelled=moves >= cancel_at)
        if isinstance(move, Ended):
            break
        status = statuses[moves] if moves < len(statuses) else "done"
        outcomes.append(
            Outcome.model_validate({"step_id": move.step.id, "attempt": move.attempt, "status": status})
        )
    else:
        pytest.fail("the walk does not end")
    compensated = [outcome.step_id for outcome in outcomes if outcome.step_id in "xy"]
    assert compensated == ([] if move.status == "succeeded" else ["x", "y"])
    if move.status == "succeeded":
        assert outcomes[-1].step_id == "d"


# -- the walker ----------------------------------------------------------------------------------------------------

SCRIPT: dict[str, Any] = {}
RAN: list[str] = []
REACHED = asyncio.Event()


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    SCRIPT.clear()
    RAN.clear()
    REACHED.clear()

    @action.step("walk_test.go")
    async def go(context: StepContext) -> StepResult:
        RAN.append(context.step.id + str(context.args.get("gpu", "")))
        what = SCRIPT.get(context.step.id, "done")
        context.report("half way", 0.5)
        if what == "hang":
            REACHED.set()
            await asyncio.sleep(60)
        if what == "break":
            raise RuntimeError("wheels fell off")
        if what == "fail" or what == context.args.get("gpu"):
            raise StepFailed("it would not go", next_action="push it")
        return StepResult(summary=f"{context.step.id} went", data={"seen": sorted(context.outputs)})

    yield
    action._STEPS.pop("walk_test.go")


async def test_a_plan_is_walked_with_its_alternatives_and_outputs(tmp_path: Path) -> None:
    SCRIPT["b"] = 1
    end = await walk(plan(), NO_HOST, run_id="t-1", workdir=tmp_path / "run")
    assert end.ended.status == "succeeded"
    assert RAN == ["a", "b1", "b2", "c2", "d"]
    assert end.last is not None
    assert end.last.outcome.data == {"seen": ["a", "b", "c"]}
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


async def test_a_broken_step_and_a_step_past_its_deadline_fail_and_compensate(tmp_path: Path) -> None:
    SCRIPT["a"] = "break"
    end = await walk(plan(), NO_HOST, run_id="t-1", workdir=tmp_path)
    assert (end.ended.status, RAN) == ("failed", ["a", "x", "y"])
    assert "wheels fell off" in end.steps[0].outcome.summary
    SCRIPT["a"] = "hang"
    steps = (plan().steps[0].model_copy(update={"timeout_s": 0.1}), *plan().steps[1:])
    end = await walk(plan(steps=steps), NO_HOST, run_id="t-2", workdir=tmp_path)
    assert end.ended == Ended(status="failed", failed_step="a")
    assert "not finished within 0.1 s" in end.steps[0].outcome.summary


async def test_a_stop_cancels_the_running_step_and_compensates(tmp_path: Path) -> None:
    SCRIPT["c"] = "hang"
    stop = asyncio.Event()
    walking = asyncio.create_task(walk(plan(), NO_HOST, run_id="t-1", workdir=tmp_path, stop=stop))
    async with asyncio.timeout(10):
        await REACHED.wait()
        stop.set()
        end = await walking
    assert end.ended.status == "cancelled"
    assert RAN == ["a", "b1", "c1", "x", "y"]


def test_outputs_are_those_of_the_latest_finished_attempt() -> None:
    outcomes = [
        Outcome(step_id="b", attempt=1, status="done", data={"n": 1}),
        Outcome(step_id="b", attempt=2, status="warning", data={"n": 2}),
        Outcome(step_id="c", attempt=2, status="failed", data={"n": 3}),
    ]
    assert outputs_of(outcomes) == {"b": {"n": 2}}
