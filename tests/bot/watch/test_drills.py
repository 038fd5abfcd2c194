"""A drill is an incident of its own: opened, reported, alerted if it was slow, and stopped when something real happens."""

import dataclasses
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bot.settings.cron import cron_trigger
from bot.settings.watch import DrillSettings
from bot.store.records import Person, Place, RunStatus
from bot.watch.drills import incident_host
from bot.watch.scheduler import FastCron, next_times
from gpu_actions.action import ActionSpec, PlanRequest, StepContext, StepResult, step
from gpu_actions.plan import Plan, Step
from tests.bot.desk import desk, toy_product

SLOW = "dead-rank: restore took 99.0 s, over its limit of 60 s"


@step("toy.slow_drill")
async def slow_drill(context: StepContext) -> StepResult:
    drilled = {
        "fault": "dead-rank", "began_at": 1.0, "phase_s": {"detect": 1.0}, "verdict": "fall back: crash",
        "steps": [{"action": "fallback", "step_id": "launch", "title": "launch the fallback", "status": "warning",
                   "summary": "it took two attempts", "attempt": 2, "seconds": 9.0, "expected_s": 4.0, "at": 9.0}],
    }  # fmt: skip
    return StepResult(summary="1 fault kind in 99 s", data={"slow": [SLOW], "drilled": drilled}, warning=True)


def with_slow_drill() -> dict[str, ActionSpec]:
    specs = toy_product()

    async def planned(request: PlanRequest) -> Plan:
        only = Step(id="dead-rank", verb="toy.slow_drill", title="dead-rank", mutates=False)
        return Plan(action="drill", host="demo", title="DRILL", steps=(only,))

    return {**specs, "drill": dataclasses.replace(specs["drill"], plan=planned)}


async def test_a_slow_drill_is_reported_like_an_incident_marked_as_a_drill_and_alerts(tmp_path: Path) -> None:
    async with desk(tmp_path, specs=with_slow_drill()) as bench:
        await bench.say("/drill start")
        alert = await bench.hears("did not pass", timeout_s=30)
        assert SLOW in str(alert.blocks)
        await bench.hears("REPORT: DRILL", timeout_s=30)
        host = bench.bot.settings.default_host.name
        incidents = bench.bot.services.incidents
        (incident,) = incidents.newest()
        assert (incident.host, incident.cause, incident.status) == (incident_host(host), "drill", "closed")
        assert incidents.active(host) is None
        report = (bench.state_dir / "reports" / f"{incident.id}.md").read_text()
        assert (
            "This was a drill" in report and "it took two attempts" in report and "over its limit" in report
        )


async def test_no_drill_starts_beside_an_open_incident(tmp_path: Path) -> None:
    async with desk(tmp_path) as bench:
        await bench.say("/incident open it is slow")
        await bench.hears("INCIDENT")
        assert "was not started" in await bench.answer("/drill start")
        assert not bench.bot.runs.list(action="drill")


async def test_a_drill_ends_when_an_incident_opens(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts={"drill": "hold:a"}) as bench:
        await bench.say("/drill start")
        run = await bench.run("drill", until=lambda run: run.status is RunStatus.RUNNING)
        bench.bot.services.incidents.open(
            host=run.host, title="real", place=Place(channel=run.place.channel), by=Person(id="monitor")
        )
        ended = await bench.run("drill", until=lambda run: run.status.final)
        assert ended.status is RunStatus.CANCELLED and "because inc-" in ended.outcome + str(ended)


async def test_drills_start_by_schedule_on_an_accelerated_clock(tmp_path: Path) -> None:
    drills = DrillSettings(cron="0 10 * * 2", clock_speed=200_000)  # a week is three seconds
    async with desk(tmp_path, drills=drills) as bench:
        run = await bench.run("drill", until=lambda run: run.status.final)
        assert run.requester.id == "schedule"
        assert "run by schedule" in await bench.answer("/drill schedule")


def test_an_accelerated_clock_fires_as_often_as_its_cron() -> None:
    cron = FastCron(cron_trigger("0 10 * * 2"), 604_800)  # a week in a second
    now, fired = cron._began, []
    for _ in range(500):  # one in some hundred is rounded down
        now = cron.get_next_fire_time(None, now)
        fired.append(now)
    gaps = [(b - a) / timedelta(seconds=1) for a, b in itertools.pairwise(fired)]
    assert all(abs(gap - 1) < 1e-3 for gap in gaps)
    due = next_times("0 10 * * 2", datetime(2026, 11, 27, tzinfo=UTC), 2)
    assert [at.strftime("%a %d %H:%M") for at in due] == ["Tue 01 10:00", "Tue 08 10:00"]


@pytest.mark.parametrize(
    ("expression", "days"), [("0 0 * * 0", {6}), ("0 0 * * 1-5", {0, 1, 2, 3, 4}), ("0 0 * * 7", {6})]
)
def test_weekdays_are_counted_as_cron_counts_them(expression: str, days: set[int]) -> None:
    due = next_times(expression, datetime(2026, 11, 27, tzinfo=UTC), 14)
    assert {at.weekday() for at in due} == days
