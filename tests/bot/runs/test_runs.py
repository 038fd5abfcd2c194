"""Runs with toy steps: start, refusal, stop, signals, and what a run leaves behind."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from bot.runs.process_lock import AlreadyRunning
from bot.runs.runs import Runs
from bot.runs.stranded_runs import resume_runs
from bot.store.records import RunStatus, StepStatus, UserError
from tests.bot.toys import HERE, LEAD, ONCALL, build, effects, effects_dir, ended, launched, start


@pytest.fixture
async def runs(tmp_path: Path) -> AsyncIterator[Runs]:
    async with launched(tmp_path) as made:
        yield made


def release(state_dir: Path) -> None:
    effects_dir(state_dir).mkdir(parents=True, exist_ok=True)
    (effects_dir(state_dir) / "release").touch()


async def at_step(runs: Runs, run_id: str, step_id: str) -> None:
    async with asyncio.timeout(20):
        await runs.wait(run_id, until=lambda run: any(s.step_id == step_id for s in run.steps))


async def test_a_plan_runs_to_its_end(runs: Runs, tmp_path: Path) -> None:
    run = await start(runs, script="count:a warn:b count:c")
    assert run.status is RunStatus.PLANNING
    run = await ended(runs, run.id)
    assert run.status is RunStatus.SUCCEEDED
    assert run.outcome == "counted c"
    assert [(s.step_id, s.status, s.executions) for s in run.steps] == [
        ("a", StepStatus.DONE, 1),
        ("b", StepStatus.WARNING, 1),
        ("c", StepStatus.DONE, 1),
    ]
    assert run.steps[2].data == {"seen": ["a", "b"]}  # later steps get what earlier ones gave
    assert run.started_at is not None
    assert run.ended_at is not None
    assert run.created_at <= run.started_at <= run.ended_at
    assert effects(tmp_path, "a") == [""]


async def test_a_run_fails_after_its_alternatives_and_its_compensation(runs: Runs, tmp_path: Path) -> None:
    run = await start(runs, script="count:a count:*b fail:*c count:d", tries="2", settle="count:z")
    run = await ended(runs, run.id)
    assert run.status is RunStatus.FAILED
    assert [(s.step_id, s.attempt, s.compensating) for s in run.steps] == [
        ("a", 1, False),
        ("b", 1, False),
        ("c", 1, False),
        ("b", 2, False),
        ("c", 2, False),
        ("z", 1, True),
    ]
    assert effects(tmp_path, "c") == ["try1", "try2"]
    assert run.outcome == "it did not work counted z"
    assert run.next_action == "try the other one"


async def test_a_defect_in_a_step_fails_the_run_and_cleans_up(runs: Runs, tmp_path: Path) -> None:
    run = await ended(runs, (await start(runs, script="defect:a", settle="count:z")).id)
    assert run.status is RunStatus.FAILED
    assert "ZeroDivisionError" in run.steps[0].summary
    assert effects(tmp_path, "z") == [""]


async def test_a_step_over_its_timeout_is_interrupted_and_fails(runs: Runs) -> None:
    run = await ended(runs, (await start(runs, script="hold:a", timeout_s="0.2")).id)
    assert run.status is RunStatus.FAILED
    assert "not finished within 0.2 s" in run.outcome


async def test_a_refused_plan_touches_nothing_and_says_why(runs: Runs) -> None:
    run = await ended(runs, (await start(runs, refuse="the disk is full")).id)
    assert run.status is RunStatus.REFUSED
    assert run.problems == ("the disk is full",)
    assert run.steps == ()
    again = await start(runs)  # and the host is free
    assert (await ended(runs, again.id)).status is RunStatus.SUCCEEDED


async def test_a_second_change_of_a_host_is_refused_naming_the_first(runs: Runs, tmp_path: Path) -> None:
    first = await start(runs, script="hold:a")
    with pytest.raises(
        UserError, match=rf"{first.id} by oncall.*only one run may change a host.*stop {first.id}"
    ):
        await start(runs, script="count:b")
    release(tmp_path)
    await ended(runs, first.id)
    assert (await ended(runs, (await start(runs, script="count:b")).id)).status is RunStatus.SUCCEEDED
    assert effects(tmp_path, "b") == [""]


@pytest.mark.chaos(
    fault="two people press at once", at="two starts", after="one run; the other person is told"
)
async def test_two_simultaneous_starts_create_one_run(runs: Runs, tmp_path: Path) -> None:
    answers = await asyncio.gather(
        *(start(runs, script="hold:a", key=f"k{n}") for n in range(8)), return_exceptions=True
    )
    assert sum(isinstance(answer, UserError) for answer in answers) == 7
    release(tmp_path)
    (run,) = runs.list(active_only=True)
    assert (await ended(runs, run.id)).status is RunStatus.SUCCEEDED
    assert len(effects(tmp_path, "a")) == 1


async def test_read_only_runs_run_in_parallel_and_during_a_change(runs: Runs, tmp_path: Path) -> None:
    change = await start(runs, script="hold:a")
    readers = [await start(runs, "look", script=f"hold:r{n}") for n in range(3)]
    for n, reader in enumerate(readers):
        await at_step(runs, reader.id, f"r{n}")
    assert {run.status for run in runs.list(active_only=True)} == {RunStatus.RUNNING}
    release(tmp_path)
    for run in (change, *readers):
        assert (await ended(runs, run.id)).status is RunStatus.SUCCEEDED


@pytest.mark.chaos(fault="Slack delivers one request four times", at="a start", after="one run")
async def test_the_same_request_delivered_four_times_starts_one_run(runs: Runs, tmp_path: Path) -> None:
    async def deliver() -> tuple[str, bool]:
        started = await runs.start(
            action="toy",
            host="toy",
            options={"script": "count:a"},
            requester=ONCALL,
            place=HERE,
            dedupe_key="envelope",
        )
        return started.run.id, started.duplicate

    answers = await asyncio.gather(*(deliver() for _ in range(4)))
    assert len({run_id for run_id, _ in answers}) == 1
    assert sorted(duplicate for _, duplicate in answers) == [False, True, True, True]
    await ended(runs, answers[0][0])
    assert effects(tmp_path, "a") == [""]


async def test_a_stop_ends_the_whole_process_tree_and_compensates(runs: Runs, tmp_path: Path) -> None:
    run = await start(runs, script="count:a tree:b count:c", settle="count:z")
    async with asyncio.timeout(20):
        while len(family(tmp_path)) < 2:
            await asyncio.sleep(0.02)
    stopping = await runs.stop(run.id, by=LEAD)
    assert stopping.status is RunStatus.RUNNING
    run = await ended(runs, run.id)
    assert run.status is RunStatus.CANCELLED
    assert run.outcome == "Stopped by lead. counted z"
    assert [(s.step_id, s.status) for s in run.steps] == [
        ("a", StepStatus.DONE),
        ("b", StepStatus.CANCELLED),
        ("z", StepStatus.DONE),
    ]
    assert family(tmp_path) == []
    assert effects(tmp_path, "c") == []


def family(state_dir: Path) -> list[int]:
    """Return the processes that a `tree` step in this folder started, grandchildren included."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get("TOY_TREE") == str(state_dir / "hosts" / "toy")
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


async def test_a_stop_during_the_wait_for_approval_touches_nothing_and_frees_the_host(
    runs: Runs, tmp_path: Path
) -> None:
    run = await start(runs, "gated", script="count:a", settle="count:z")
    await runs.wait(run.id, until=lambda r: r.status is RunStatus.WAITING)
    run = await runs.stop(run.id, by=ONCALL)
    assert run.status is RunStatus.CANCELLED
    assert run.outcome == "Stopped by oncall before anything was touched."
    with pytest.raises(UserError, match="is over"):
        await runs.stop(run.id, by=ONCALL)
    assert (await ended(runs, (await start(runs, script="count:b")).id)).status is RunStatus.SUCCEEDED
    assert effects(tmp_path, "a") == effects(tmp_path, "z") == []
    assert effects(tmp_path, "given_back") == ["gated"]


async def test_the_cleanup_cannot_be_stopped(runs: Runs, tmp_path: Path) -> None:
    run = await start(runs, script="fail:a", settle="hold:z")
    await at_step(runs, run.id, "z")
    with pytest.raises(UserError, match="already cleaning up"):
        await runs.stop(run.id, by=ONCALL)
    release(tmp_path)
    assert (await ended(runs, run.id)).status is RunStatus.FAILED


async def test_signals_reach_the_running_step(runs: Runs) -> None:
    run = await start(runs, script="signal:a")
    await at_step(runs, run.id, "a")
    await runs.signal(run.id, "hold", by=ONCALL)
    run = await ended(runs, run.id)
    assert run.outcome == "told hold"
    with pytest.raises(UserError, match="not running"):
        await runs.signal(run.id, "next", by=ONCALL)


async def test_progress_is_stored_and_raises_the_version(runs: Runs, tmp_path: Path) -> None:
    run = await start(runs, script="hold:a")
    async with asyncio.timeout(20):
        run = await runs.wait(run.id, until=lambda r: bool(r.steps) and r.steps[0].progress == 0.5)
    assert run.steps[0].summary == "holding"
    before = run.version
    await asyncio.sleep(1.2)
    now = runs.get(run.id)
    assert now is not None
    assert 1 <= now.version - before <= 4  # the step reports 100 times a second, its row is written twice
    release(tmp_path)
    await ended(runs, run.id)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qsp": "3"}, r"unknown option 'qsp'; did you mean qps\? options: script, settle"),
        ({"qps": "many"}, r"qps=many: write a number, such as qps=10"),
        ({"qps": "900"}, r"qps=900: it must be at most 100"),
    ],
)
async def test_wrong_options_are_answered_in_one_line(
    runs: Runs, options: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        await start(runs, **options)
    assert "\n" not in str(caught.value)
    assert runs.list() == []


async def test_an_unknown_host_or_action_is_refused_with_the_known_ones(runs: Runs) -> None:
    with pytest.raises(UserError, match="no host 'toi'; did you mean toy"):
        await runs.plan(action="toy", host="toi", options={}, requester=ONCALL)
    with pytest.raises(UserError, match="no action 'tyo'"):
        await start(runs, "tyo")


async def test_planning_starts_nothing_and_shows_the_approvals(runs: Runs, tmp_path: Path) -> None:
    plan = await runs.plan(action="gated", host=None, options={"script": "count:a"}, requester=ONCALL)
    assert plan.gate is not None
    assert plan.gate.approvals == 1
    assert runs.list() == []
    assert effects(tmp_path, "a") == []
    with pytest.raises(UserError, match="the disk is full"):
        await runs.plan(action="toy", host=None, options={"refuse": "the disk is full"}, requester=ONCALL)


async def test_the_last_verdict_of_triage_reaches_the_next_plan(runs: Runs) -> None:
    await ended(runs, (await start(runs, "triage", script="verdict:a")).id)
    plan = await runs.plan(action="toy", host=None, options={}, requester=ONCALL)
    assert plan.options["cause"] == "nccl_hang"
    assert plan.options["fresh"]


async def test_a_plan_without_a_recent_verdict_gets_none(runs: Runs) -> None:
    plan = await runs.plan(action="toy", host=None, options={}, requester=ONCALL)
    assert (plan.options["cause"], plan.options["fresh"]) == ("", False)


async def test_a_stored_plan_that_was_changed_after_its_approval_is_not_executed(tmp_path: Path) -> None:
    _, store, runs = build(tmp_path)
    await runs.engine.launch()
    try:
        run = await start(runs, "gated", script="count:a")
        run = await runs.wait(run.id, until=lambda r: r.status is RunStatus.WAITING)
        assert run.plan is not None
        other = run.plan.model_copy(update={"title": "another one"})
        store.update_run(run.id, plan=other.model_dump(mode="json"))
        store.update_run(run.id, status="queued")
        run = await ended(runs, run.id)
    finally:
        await runs.engine.close()
        store.close()
    assert run.status is RunStatus.FAILED
    assert "not the one that was approved" in run.outcome
    assert effects(tmp_path, "a") == []


async def test_artifacts_of_steps_are_stored_and_linked(runs: Runs, tmp_path: Path) -> None:
    run = await ended(runs, (await start(runs, script="file:a")).id)
    (record,) = run.artifacts
    assert (tmp_path / "artifacts" / run.id / "a" / "report.txt").read_text() == "evidence\n"
    assert record.url.startswith(f"http://127.0.0.1:8801/artifacts/{run.id}/a/report.txt?until=")


async def test_every_event_is_in_the_timeline(tmp_path: Path) -> None:
    _, store, runs = build(tmp_path)
    await runs.engine.launch()
    run = await ended(runs, (await start(runs, script="count:a fail:b", settle="count:z")).id)
    await runs.engine.close()
    kinds = [entry.kind for entry in store.audit.of_run(run.id)]
    assert kinds == [
        "run.start",
        "run.queued",
        "run.running",
        "step.done",
        "step.failed",
        "run.settling",
        "step.done",
        "run.failed",
    ]
    store.close()


async def test_the_stream_of_changes_yields_each_changed_run(runs: Runs) -> None:
    stream = runs.changes()
    run = await start(runs, script="count:a")
    async with asyncio.timeout(10):
        assert await anext(stream) == run.id
    await ended(runs, run.id)
    stream.close()


async def test_a_second_bot_in_one_folder_is_refused(runs: Runs, tmp_path: Path) -> None:
    _, store, second = build(tmp_path)
    with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"):
        await second.engine.launch()
    store.close()
    assert (await ended(runs, (await start(runs)).id)).status is RunStatus.SUCCEEDED  # the first is unharmed


async def test_a_closed_engine_starts_nothing_and_can_be_launched_again(tmp_path: Path) -> None:
    _, store, runs = build(tmp_path)
    await runs.engine.launch()
    run = await start(runs, script="count:a hold:b")
    await at_step(runs, run.id, "b")
    await runs.engine.close()
    with pytest.raises(UserError, match="nothing was started"):
        await start(runs, "look")
    store.close()
    release(tmp_path)
    async with launched(tmp_path) as again:
        run = await ended(again, run.id)
    assert run.status is RunStatus.SUCCEEDED
    assert [(s.step_id, s.executions) for s in run.steps] == [("a", 1), ("b", 2)]


async def test_a_run_stranded_too_often_fails_and_frees_its_host(tmp_path: Path) -> None:
    _, store, runs = build(tmp_path)
    await runs.engine.launch()
    run = await start(runs, "gated")
    await runs.wait(run.id, until=lambda r: r.status is RunStatus.WAITING)
    assert await runs.engine.stranded(min_age_s=0) == []
    store.update_run(run.id, workflow_id="nobody")
    (lost,) = await runs.engine.stranded(min_age_s=0)
    assert (lost.run_id, lost.why) == (run.id, "its workflow was never started")
    spent = lost.model_copy(update={"workflow_id": f"{run.id}.r5", "never_started": False})
    await resume_runs([spent], store=store, start=never)
    run = await ended(runs, run.id)
    assert run.status is RunStatus.FAILED
    assert "lost it 5 times" in run.outcome
    assert (await ended(runs, (await start(runs)).id)).status is RunStatus.SUCCEEDED
    await runs.engine.close()
    store.close()


async def never(run_id: str, workflow_id: str) -> None:
    raise AssertionError("started again")
