"""The report of an incident: derived from the record alone, complete, escaped, and readable without Slack.

`tests/data/incident/record.sql` is the database that the scenario of a whole incident left (tests/scenarios); its report was
read and corrected by a person, and is kept beside it as `report.md`.
"""

import dataclasses
import datetime
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from bot.incidents.artifacts import ArtifactStore
from bot.incidents.incidents import Incidents
from bot.incidents.report.collect import read_facts, write_report
from bot.incidents.report.facts import facts_of
from bot.incidents.report.model import IncidentFacts
from bot.incidents.report.render import html, markdown, text
from bot.store.records import Person, RunRecord, RunStatus, UserError
from bot.store.store import Store
from tests.bot.desk import desk
from tests.bot.toys import toy_settings

RECORDED = Path(__file__).parents[2] / "data" / "incident"
ONCALL = Person(id="U1", name="oncall")


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Store]:
    file = tmp_path / "state" / "gpu-oncall.sqlite"
    file.parent.mkdir()
    with sqlite3.connect(file) as connection:
        connection.executescript((RECORDED / "record.sql").read_text())
    connection.close()
    store = Store(f"sqlite:///{file}")
    store.create()
    yield store
    store.close()


def facts(store: Store) -> IncidentFacts:
    (incident_id,) = {run.incident_id for run in store.list() if run.incident_id is not None}
    return read_facts(store, incident_id)


def test_the_report_of_the_recorded_incident_is_the_reviewed_one(recorded: Store) -> None:
    now = 1_795_700_000.0
    recorded.clock = lambda: now
    assert (
        markdown(facts(recorded), zone=datetime.timezone(datetime.timedelta(hours=1)))
        == (RECORDED / "report.md").read_text()
    )


def test_the_recorded_incident_in_figures(recorded: Store) -> None:
    found = facts(recorded)
    impact = found.impact
    assert (impact.refused, impact.broke_off, impact.failed, impact.resent) == (5, 1, 0, 3)
    assert impact.degraded_s is not None and 55 < impact.degraded_s < 65
    assert impact.usual_per_s is None  # the rate before the restore is not the usual one
    assert [one.verdict.cause for one in found.diagnoses] == ["nccl_hang", "none"]
    assert {(one.kind, one.step_id) for one in found.deviations} == {
        ("interrupted", "launch"), ("warning", "drain"), ("warning", "golden"), ("warning", "compare"),
    }  # fmt: skip
    assert len(found.load_tests) == 3
    assert len(found.artifacts) == 17


def test_the_summary_names_the_rung_and_why_others_were_passed_over(recorded: Store) -> None:
    found = facts(recorded)
    runs = [
        run.model_copy(
            update={
                "steps": tuple(
                    step.model_copy(
                        update={"data": {"rung": "tp2", "passed_over": ["rung tp4 is passed over: 2 GPUs"]}}
                    )
                    if step.step_id == "scope"
                    else step
                    for step in run.steps
                )
            }
        )
        for run in found.runs
    ]
    summary = facts_of(found.incident, runs, (), now=found.made_at).summary
    assert "Its last attempt was rung tp2." in summary
    assert "Rung tp4 is passed over: 2 GPUs." in summary


QUESTIONS = {
    "What was wrong?": ("Summary", "nccl_hang on demo: rank 1 (pid 20037) is stopped"),
    "Since when, and until when, was the service degraded?": (
        "Impact", "2026-11-26 11:09:14 UTC to 2026-11-26 11:10:14 UTC",
    ),
    "What did clients see?": ("Impact", "requests refused with Retry-After | 5 |"),
    "What served meanwhile?": ("Summary", "the fallback served from 11:09:19 to 11:10:14 UTC"),
    "How much could the fallback carry?": ("Impact", "answered by the fallback, its load test included | 3.11 requests/s"),
    "Who opened the incident, and when?": ("Timeline", "| oncall |  | opened the incident"),
    "What was done, in which order, and with what result?": ("Commands and their outcomes", "| fb-qf5c | fallback | oncall |"),
    "Who approved the restore, and which plan?": ("Approvals", "lead approved at 11-26 11:09:50 UTC, plan 9d11dcba6924"),
    "Was the restored tier proved under load?": ("Load tests", "PASSED: restore validation, 12 of 12"),
    "Where was the runbook not followed?": ("Deviations from the runbook", "ran again after the bot was interrupted"),
    "What is left to do, and where is the evidence?": ("Follow-ups", "is not known: open the evidence bundle of fb-qf5c first"),
}  # fmt: skip
"""What a reader who was not there asks the day after, and where in the report the answer stands."""


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_report_alone_answers_what_a_fresh_reader_asks(question: str) -> None:
    section, answer = QUESTIONS[question]
    report = (RECORDED / "report.md").read_text()
    assert answer in report.split(f"\n## {section}\n")[1].split("\n## ")[0]


def test_all_three_files_are_written_and_the_page_loads_nothing(recorded: Store, tmp_path: Path) -> None:
    store = ArtifactStore(toy_settings(tmp_path / "state"), recorded)
    paths = write_report(recorded, store, facts(recorded).incident.id, tmp_path / "out")
    assert [path.suffix for path in paths] == [".md", ".html", ".json"]
    page = paths[1].read_text()
    assert "<script" not in page and 'src="http' not in page
    assert '<input type="checkbox">' in page
    assert json.loads(paths[2].read_text())["impact"]["refused"] == 5
    with pytest.raises(UserError, match="inc-none"):
        write_report(recorded, store, "inc-none", tmp_path)


def test_hostile_text_stays_text(recorded: Store) -> None:
    found = facts(recorded)
    incidents = Incidents(recorded)
    incidents.note(
        found.incident.id, by=ONCALL, text="<img src=x onerror=alert(1)> | a | [x](javascript:y) `c`"
    )
    incidents.note(
        found.incident.id,
        by=ONCALL,
        text="password=hunter2-and-more token ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    )
    page = html(markdown(facts(recorded)), title="<b>t</b>")
    assert "<img" not in page and 'javascript:y"' not in page and "<b>t" not in page
    assert "onerror" in page
    assert "hunter2" not in page and "ghp_abcdef" not in page


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a_b nccl_hang", "a_b nccl_hang"),
        ("_a_", r"\_a\_"),
        ("a|b", r"a\|b"),
        ("# x\ny", r"\# x y"),
        ("<x>", r"\<x\>"),
    ],
)
def test_markdown_shows_text_literally(raw: str, shown: str) -> None:
    assert text(raw) == shown


def changed(found: IncidentFacts, **values: object) -> tuple[RunRecord, ...]:
    """Return the runs of the incident with the fallback changed."""
    return tuple(run.model_copy(update=values) if run.action == "fallback" else run for run in found.runs)


@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        (
            {"status": RunStatus.FAILED, "outcome": "out of memory"},
            "failed",
            "fallback failed: out of memory",
        ),
        ({"status": RunStatus.CANCELLED, "outcome": "Stopped by x."}, "cancelled", "was stopped"),
        ({"status": RunStatus.REFUSED, "problems": ("no GPU",)}, "refused", "refused by its checks: no GPU"),
        ({"options": {"override_reason": "no time"}}, "override", "override_reason=no time"),
        ({"options": {"accept_unknown": "gpu.temperature"}}, "override", "accept_unknown=gpu.temperature"),
    ],
)
def test_each_departure_from_the_runbook_is_a_deviation(
    recorded: Store, values: dict[str, object], kind: str, says: str
) -> None:
    found = facts(recorded)
    report = facts_of(found.incident, changed(found, **values), [], now=found.made_at)
    assert [one for one in report.deviations if one.kind == kind and says in one.text], report.deviations


def test_a_slow_step_and_a_fallback_without_triage_are_deviations(recorded: Store) -> None:
    found = facts(recorded)
    fallback = next(run for run in found.runs if run.action == "fallback")
    slow = tuple(
        step.model_copy(update={"ended_at": (step.started_at or 0) + 500})
        if step.step_id == "launch"
        else step
        for step in fallback.steps
    )
    runs = (fallback.model_copy(update={"steps": slow}),)
    report = facts_of(found.incident, runs, [], now=found.made_at)
    assert {one.kind for one in report.deviations} >= {"slow", "order"}
    assert "The service still runs on its fallback." in report.summary
    assert any(line.startswith("Bring the full tier back") for line in report.follow_ups)


def test_a_step_slower_than_last_time_is_a_deviation_that_names_the_last_run(recorded: Store) -> None:
    found = facts(recorded)
    fallback = next(run for run in found.runs if run.action == "fallback")

    def taking(factor: float, run_id: str) -> RunRecord:
        steps = tuple(
            step.model_copy(update={"ended_at": (step.started_at or 0) + 20 * factor})
            if step.step_id == "launch"
            else step
            for step in fallback.steps
        )
        return fallback.model_copy(update={"id": run_id, "steps": steps})

    for factor, told in ((1.4, False), (2.0, True)):
        report = facts_of(
            found.incident, [taking(factor, "fb-now")], [], now=found.made_at, earlier=[taking(1, "fb-last")]
        )
        slower = [one.text for one in report.deviations if one.kind == "slower"]
        assert bool(slower) == told and all("20 s last time (fb-last)" in text for text in slower)


def test_the_steps_that_a_stopped_run_never_came_to_are_named(recorded: Store) -> None:
    found = facts(recorded)
    fallback = next(run for run in found.runs if run.action == "fallback")
    assert fallback.plan is not None
    values = {"status": RunStatus.CANCELLED, "steps": fallback.steps[:2]}
    report = facts_of(found.incident, changed(found, **values), [], now=found.made_at)
    (left,) = [one.text for one in report.deviations if one.kind == "skipped"]
    assert fallback.plan.steps[-1].title in left and "did not run" in left


async def test_the_report_is_a_canvas_where_the_plan_allows_one_else_a_file_and_pinned_also_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path, scripts={"triage": "verdict:look", "fallback": "count:a"}) as it:
        await it.say("/incident open toy it is slow")
        root = await it.hears("INCIDENT: it is slow")
        await it.say("/triage toy")
        await it.run("triage")
        assert "severity SEV2" in await it.answer("/incident severity sev2")
        assert "is no severity" in await it.answer("/incident severity bad")
        assert "is the lead" in await it.answer("/incident lead me")
        assert "You may not" in await it.answer("/incident severity SEV1", user="viewer")
        assert "is in its thread" in await it.answer("/incident report")
        message = await it.hears("REPORT: it is slow")
        assert message.thread_ts == root.ts and "is still open" in message.text
        (link,) = set(re.findall(r"http://[^|>)\s]+/docs/T0LOCAL/F\w+", str(message)))
        async with aiohttp.ClientSession() as browser, browser.get(link, params={"user": "viewer"}) as page:
            assert page.status == 200 and "<h2>Follow-ups</h2>" in await page.text()
        team = it.workspace.state.team
        monkeypatch.setattr(it.workspace.state, "team", dataclasses.replace(team, plan="free"))
        assert "is closed. Its report" in await it.answer("@gpu-oncall incident close")
        incident = it.bot.services.incidents.latest("toy")
        assert incident is not None
        pins = await it.bot.client.pins_list(channel=root.channel)
        assert len(pins["items"]) == 2
        replies = await it.bot.client.conversations_replies(channel=root.channel, ts=root.ts)
        names = [file["name"] for reply in replies["messages"] for file in reply.get("files", [])]
        assert names.count(f"{incident.id}.md") == 1 and names.count(f"{incident.id}.html") == 2
        report = (it.state_dir / "reports" / f"{incident.id}.md").read_text()
        assert "| state | closed, SEV2 |" in report
        assert "| lead | oncall |" in report
