"""The runbook is rendered from the plans, stamped by runs and drills, ends in proposals, and its drift is found."""

import asyncio
from pathlib import Path

import pytest

from bot.cli.doctor.runbook import check_runbook
from bot.cli.runbook import write_runbook
from bot.incidents.report.deviations import Deviation
from bot.incidents.runbook import Page, Seen, drift, notes_of, render
from bot.store.records import Person, Place, RunRecord, RunStatus, StepRecord, StepStatus
from gpu_actions.drill.history import Drill, DrilledFault, DrilledStep
from gpu_actions.plan import Plan, Step
from tests.bot.toys import toy_settings

DAY = 86_400.0
NOW = 1_795_000_000.0


def plan(flag: str = "--max-num-seqs", folder: str = "/srv/models") -> Plan:
    return Plan(
        action="fallback",
        host="h1",
        title="Fall back",
        losses="some requests",
        steps=(
            Step(id="stop", verb="tier.stop", title="stop tp", expected_s=10, details=("systemctl stop tp|all",)),
            Step(
                id="launch", verb="tier.start", title="launch", details=(f"engine {folder}/m.bin {flag} 16",),
                on_failure="continue",
            ),
        ),
        compensation=(Step(id="settle", verb="tier.settle", title="route to what serves"),),
    )  # fmt: skip


def page(made: Plan | None = None, origin: str = "") -> Page:
    return Page(host="h1", action="fallback", summary="Serve from one GPU.", plan=made, origin=origin)


def rendered(made: Plan | None = None, **options: object) -> str:
    given = {"runs": (), "drills": {}, "seen": (), "now": NOW, **options}
    return render([page(made)], **given)  # type: ignore[arg-type]


def test_each_step_is_stamped_with_its_newest_run_and_its_newest_drill() -> None:
    step = StepRecord(
        step_id="stop", title="stop tp", status=StepStatus.DONE, attempt=1, started_at=NOW - 12, ended_at=NOW,
    )  # fmt: skip
    run = RunRecord(
        id="fb-aaaa", action="fallback", host="h1", status=RunStatus.SUCCEEDED, requester=Person(id="U"),
        place=Place(channel="C"), created_at=NOW - 20, steps=(step,),
    )  # fmt: skip

    def drilled(run_id: str, at: float, status: str) -> Drill:
        one = DrilledStep(action="fallback", step_id="stop", title="stop", status=status, seconds=3.4, at=at)
        return Drill(
            run_id=run_id, at=at, faults=(DrilledFault(fault="f", began_at=at, phase_s={}, steps=(one,)),)
        )

    drills = {"h1": (drilled("dr-old", NOW - 9 * DAY, "done"), drilled("dr-bad", NOW - DAY, "failed"))}
    text = rendered(plan(), runs=(run,), drills=drills)
    stamped = "2026-11-18 fb-aaaa, 12 s | 2026-11-09 dr-old, 3 s"
    assert f"| 1 | stop tp | systemctl stop tp\\|all | 10 s | undone | {stamped} |" in text
    assert "| 2 | launch | engine /srv/models/m.bin --max-num-seqs 16 |  | goes on | never | never |" in text
    assert "What it costs: some requests." in text and "route to what serves" in text


def test_deviations_become_proposals_the_most_frequent_first() -> None:
    def seen(kind: str, text: str, incident: str, at: float) -> Seen:
        deviation = Deviation(run_id="fb-aaaa", step_id="stop", kind=kind, text=text)
        return Seen(action="fallback", incident_id=incident, at=at, deviation=deviation)

    text = rendered(
        plan(),
        seen=[
            seen("failed", "stop tp: it hung", "inc-1", NOW - DAY),
            seen("slow", "stop tp: took 40 s, expected 10 s", "inc-1", NOW - 2 * DAY),
            seen("slow", "stop tp: took 30 s, expected 10 s", "inc-2", NOW),
        ],
    )
    proposals = text.split("## Proposals")[1]
    first, second = [line for line in proposals.splitlines() if line.startswith("- [ ]")]
    assert "slow 2 times (last 2026-11-18, inc-2, inc-1): stop tp: took 30 s" in first
    assert "failed once" in second and "mend what it failed on" in second


def test_what_the_team_wrote_is_kept_and_nothing_else_is() -> None:
    text = rendered(plan()).replace("The team's own words.", "Call Ada first.\n\n### Passwords\nin the safe")
    again = rendered(plan(), notes=notes_of(text + "\n"))
    assert "Call Ada first." in again and "in the safe" in again and again.count("## Notes") == 1


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (plan(), ""),
        (plan(flag="--max-batch"), "no longer uses --max-batch and now uses --max-num-seqs"),
        (plan(folder="/old/models"), "no longer uses /old/models/m.bin and now uses /srv/models/m.bin"),
        (None, "/fallback on h1 is not in it"),
    ],
)
def test_drift_names_the_paths_and_flags_that_changed(written: Plan | None, says: str) -> None:
    found = drift(rendered(written), rendered(plan()))
    assert says in " ".join(found) and bool(found) == bool(says)


def test_a_plan_that_cannot_be_made_now_is_not_drift() -> None:
    assert drift(rendered(plan()), rendered(None)) == ()


def test_the_command_writes_every_action_of_every_host_and_doctor_finds_an_edited_flag(
    tmp_path: Path,
) -> None:
    path = tmp_path / "runbook.md"
    settings = toy_settings(tmp_path / "state").model_copy(update={"runbook": path})
    (missing,) = asyncio.run(check_runbook(settings))
    assert missing.status == "warning" and "gpu-oncall runbook" in missing.fix
    assert write_runbook(settings, None) == 0
    text = path.read_text()
    for action in ("triage", "fallback", "forensics", "trace", "restore"):
        assert f"/{action}\n" in text
    assert asyncio.run(check_runbook(settings))[0].status == "ok"
    mark = f"<!-- plan: {settings.hosts[0].name} triage -->"
    head, tail = text.split(mark)
    path.write_text(f"{head}{mark}{tail.replace('| 1 |', '| 1 | --no-such-flag', 1)}")
    (found,) = asyncio.run(check_runbook(settings))
    assert found.status == "warning" and "--no-such-flag" in found.detail
