"""The walking path of the product, points 2 to 7: one incident from the first /triage to the full tier, nothing mocked.

Real Bolt over a real socket, real ranks that really hang, a real HAProxy with visitors on it, and a bot that is killed in
the middle.
"""

from pathlib import Path

import pytest

from bot.store.records import RunRecord, RunStatus, StepStatus
from gpu_actions.models import VerdictKind
from tests.scenarios.incident import Incident, describe, incident


def step_is(run: RunRecord, step_id: str, *statuses: StepStatus) -> bool:
    return any(step.step_id == step_id and step.status in statuses for step in run.steps)


@pytest.mark.timeout(420)
async def test_an_incident_from_the_first_triage_to_the_full_tier(tmp_path: Path) -> None:
    async with incident(tmp_path) as it:
        await triage_says_healthy(it)
        await a_frozen_rank_is_found(it)
        await the_button_falls_back_and_a_killed_bot_goes_on(it)
        await load_test_and_trace_answer_in_the_thread(it)
        await the_tier_comes_back_behind_an_approval(it)


async def triage_says_healthy(it: Incident) -> None:
    await it.command("/triage")
    run = await it.ended("triage")
    assert run.steps[-1].verdict is not None
    assert run.steps[-1].verdict.verdict is VerdictKind.HEALTHY, describe(run)
    await it.says("HEALTHY: demo")


async def a_frozen_rank_is_found(it: Incident) -> None:
    assert "SIGSTOP" in await it.break_("frozen-rank")
    for _ in range(5):  # right after the freeze the verdict is unknown and says to run triage again
        before = it.store.clock()
        await it.command("/triage demo")
        run = await it.ended("triage", after=before)
        verdict = run.steps[-1].verdict
        assert verdict is not None
        if verdict.verdict is not VerdictKind.UNKNOWN:
            break
    await it.says("FALL BACK: nccl_hang on demo")
    assert (verdict.verdict, verdict.cause) == (VerdictKind.FALL_BACK, "nccl_hang"), describe(run)
    hang = next(f for f in verdict.findings if f.severity == "critical" and f.component == "collective")
    assert "T" in str(hang.evidence["process_states"])
    assert hang.evidence["progress"]["state"] == "flat"
    assert hang.evidence["progress"]["running"] > 0
    card = await it.message_of(run.id)
    assert any(button.text == "Start fallback" for button in card.buttons)


async def the_button_falls_back_and_a_killed_bot_goes_on(it: Incident) -> None:
    await it.press("Start fallback")
    run = await it.run("fallback", until=lambda r: step_is(r, "launch", StepStatus.RUNNING, StepStatus.DONE))
    it.kill_bot()
    run = await it.ended("fallback", timeout_s=120)
    assert run.status is RunStatus.SUCCEEDED, describe(run)
    ran_twice = [step.step_id for step in run.steps if step.executions > 1]
    assert len(ran_twice) <= 1, f"only the step that the kill cut may run again, not {ran_twice}"
    for step_id in (
        "capture",
        "drain",
        "stop",
        "scope",
        "launch",
        "warm",
        "route",
        "backpressure",
        "validate",
    ):
        assert step_is(run, step_id, StepStatus.DONE, StepStatus.WARNING), f"{step_id}: {describe(run)}"
    await it.generate()
    message = await it.message_of(run.id)
    assert message.ts == run.message_ts, "the message was edited, not posted again"
    names = {artifact.artifact.name for artifact in run.artifacts}
    assert {"fallback_benchmark.json", "load_test.json", "report.png", "report.html"} <= names
    await it.says(f"report.png ({run.id})")


async def load_test_and_trace_answer_in_the_thread(it: Incident) -> None:
    await it.command("/loadtest start qps=5 duration=2")
    await it.run("loadtest", until=lambda r: step_is(r, "load", StepStatus.RUNNING))
    await it.command("/loadtest status")
    run = await it.ended("loadtest")
    assert run.status is RunStatus.SUCCEEDED, describe(run)
    await it.says("requests served (2 s at 5 QPS)")

    await it.command("/trace start")
    run = await it.ended("trace")
    assert run.status is RunStatus.SUCCEEDED, describe(run)
    await it.says("CPU operators by self time")
    assert any(artifact.artifact.name.endswith(".json.gz") for artifact in run.artifacts)


async def the_tier_comes_back_behind_an_approval(it: Incident) -> None:
    assert "Mended" in await it.break_("mend")
    await it.command("/restore start cause=rank-was-frozen")
    run = await it.run("restore", until=lambda r: r.status is RunStatus.WAITING)
    await it.says("approve *restore* on demo?")

    await it.press("approve", user="oncall", run=run.id)
    run = await it.run("restore", until=lambda r: r.status is RunStatus.WAITING)
    assert run.decisions == (), "who asked cannot approve"

    await it.press("approve", user="lead", run=run.id)
    await it.run("restore", until=lambda r: step_is(r, "compare", StepStatus.RUNNING))
    await it.press("next", user="oncall", run=run.id)
    run = await it.ended("restore", timeout_s=150)
    assert run.status is RunStatus.SUCCEEDED, describe(run)
    for percent in (5, 25, 50, 100):
        assert step_is(run, f"shift-{percent}", StepStatus.DONE, StepStatus.WARNING)
    await it.generate()
    await it.says("Restore on demo: done")
    message = await it.message_of(run.id)
    assert message.text.startswith("Restore on demo: done"), message.text
    assert "Approved by" in str(message.blocks), "the approval stays in the message"
