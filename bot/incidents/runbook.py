"""The team's runbook, rendered from the plans as they are, with what was last run and drilled. Pure.

People's own text has its place at the end, under `## Notes`, and is kept when the file is rendered again.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from bot.incidents.report.deviations import Deviation
from bot.store.records import RunRecord, StepStatus
from gpu_actions.drill.history import Drill
from gpu_actions.models import Frozen
from gpu_actions.plan import Plan, Step

NOTES = "## Notes"
PROPOSALS = "## Proposals"
WORKED = {StepStatus.DONE.value, StepStatus.WARNING.value}
NAMED_RUNS = 3
_MARK = re.compile(r"<!-- plan: (\S+ \S+) -->")
_TOKEN = re.compile(r"(?<![\w:/.-])(?:/(?:[\w.+@-]+/)*[\w.+@-]+|--[a-z][a-z0-9-]+)")
_OF_A_RUN = re.compile(r"\b[a-z]{2}-[a-z0-9]{4,}\b|/tmp/|\d{4,}")
TODO = {
    "slower": "find out why it is slower than last time",
    "slow": "find out what slows it, or state the longer time here",
    "failed": "mend what it failed on, or say here what to do then",
    "warning": "mend what it warned of, or say here that it is expected",
    "retried": "find out why the first attempt failed",
    "skipped": "make it possible, or leave it out",
    "override": "decide whether the check or the practice must change",
    "order": "follow the order, or change it here",
    "cancelled": "say here when to stop it",
    "refused": "check its conditions before they are needed: `gpu-oncall doctor`",
}


class Page(Frozen):
    """An action of a host: its plan of today, or of the last run if it cannot be planned now."""

    host: str
    action: str
    summary: str
    plan: Plan | None
    origin: str = ""
    """Where the plan comes from if it was not made just now, or why there is none."""


class Seen(Frozen):
    """A deviation that an incident or a drill showed."""

    action: str
    incident_id: str
    at: float
    deviation: Deviation


def render(
    pages: Sequence[Page],
    *,
    runs: Sequence[RunRecord],
    drills: Mapping[str, Sequence[Drill]],
    seen: Sequence[Seen],
    now: float,
    notes: str = "",
) -> str:
    """Return the runbook as Markdown. `runs` newest first; `drills` by host, oldest first."""
    lines = [
        "# Runbook",
        "",
        f"Rendered on {_day(now)} from the plans of gpu-oncall as they are (`gpu-oncall runbook`). "
        "Each change still asks in Slack for the approvals that the settings name. Write only below Notes.",
        "",
    ]
    for page in pages:
        lines += [
            f"## {page.host}: /{page.action}",
            f"<!-- plan: {page.host} {page.action} -->",
            "",
            page.summary,
            "",
        ]
        lines += _plan(page, runs, drills.get(page.host, ()))
    lines += [PROPOSALS, "", *_proposals(seen), "", notes or f"{NOTES}\n\nThe team's own words.", ""]
    return "\n".join(lines)


def notes_of(text: str) -> str:
    """Return the part of a written runbook that people wrote."""
    start = text.find(f"\n{NOTES}")
    return text[start + 1 :].rstrip() if start >= 0 else ""


def drift(written: str, fresh: str) -> tuple[str, ...]:
    """Return a sentence for each action whose paths or flags in the written runbook are not those of today's plans."""
    old, new = _tokens(written), _tokens(fresh)
    found = []
    for key, tokens in new.items():
        host, action = key.split(" ")
        if key not in old:
            found.append(f"/{action} on {host} is not in it")
            continue
        gone, added = sorted(old[key] - tokens), sorted(tokens - old[key])
        parts = [
            f"{word} {', '.join(names)}"
            for word, names in (("no longer uses", gone), ("now uses", added))
            if names
        ]
        if parts:
            found.append(f"/{action} on {host} {' and '.join(parts)}")
    return tuple(found)


def _tokens(text: str) -> dict[str, set[str]]:
    """Return the paths and flags of each plan in a runbook; a plan that could not be made has none and is left out."""
    body = text.split(f"\n{PROPOSALS}", maxsplit=1)[0]
    parts = _MARK.split(body)[1:]
    return {
        key: {token for token in _TOKEN.findall(part.split("\n## ")[0]) if _lasts(token)}
        for key, part in zip(parts[::2], parts[1::2], strict=True)
        if "\n| 1 |" in part
    }


def _lasts(token: str) -> bool:
    """Return False for a path that belongs to one run, a temporary one, or one with a number in it."""
    return token.startswith("-") or not _OF_A_RUN.search(token)


def _plan(page: Page, runs: Sequence[RunRecord], drills: Sequence[Drill]) -> list[str]:
    plan = page.plan
    if plan is None:
        return [f"Cannot be planned now: {page.origin}.", ""]
    lines = [f"{page.origin}.", ""] if page.origin else []
    if plan.losses:
        lines += [f"What it costs: {plan.losses}.", ""]
    lines += [
        "| # | step | what it does | expected | if it fails | last run | last drilled |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, step in enumerate(plan.steps, 1):
        cells = (
            str(number), step.title, "; ".join(step.details), _seconds(step.expected_s), _failure(plan, step),
            _last_run(page, step, runs), _last_drilled(page, step, drills),
        )  # fmt: skip
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    if plan.compensation:
        undo = "; ".join(step.title for step in plan.compensation)
        lines += ["", f"If it is stopped or fails: {undo}."]
    return [*lines, ""]


def _failure(plan: Plan, step: Step) -> str:
    if step.on_failure == "continue":
        return "goes on"
    if step.group is not None and len(plan.alternatives.get(step.group, ())) > 1:
        return f"next of {len(plan.alternatives[step.group])} choices"
    return "undone" if plan.compensation else "ends"


def _last_run(page: Page, step: Step, runs: Sequence[RunRecord]) -> str:
    for run in runs:
        if (run.host, run.action) != (page.host, page.action):
            continue
        for one in reversed(run.steps):
            if one.step_id == step.id and one.status in WORKED and one.started_at and one.ended_at:
                return f"{_day(one.ended_at)} {run.id}, {one.ended_at - one.started_at:.0f} s"
    return "never"


def _last_drilled(page: Page, step: Step, drills: Sequence[Drill]) -> str:
    for drill in reversed(drills):
        for one in (one for fault in drill.faults for one in reversed(fault.steps)):
            if (one.action, one.step_id) == (page.action, step.id) and one.status in WORKED:
                return f"{_day(one.at)} {drill.run_id}, {one.seconds:.0f} s"
    return "never"


def _proposals(seen: Sequence[Seen]) -> list[str]:
    """Return a line for each kind of deviation of a step, the most frequent first."""
    groups: dict[tuple[str, str, str], list[Seen]] = {}
    for one in sorted(seen, key=lambda one: one.at):
        key = (one.action, one.deviation.step_id, one.deviation.kind)
        groups.setdefault(key, []).append(one)
    lines = []
    for (action, _, kind), found in sorted(groups.items(), key=lambda item: -len(item[1])):
        newest = found[-1]
        where = ", ".join(dict.fromkeys(one.incident_id for one in reversed(found[-NAMED_RUNS:])))
        todo = TODO.get(kind, "decide whether the runbook or the practice must change")
        times = "once" if len(found) == 1 else f"{len(found)} times"
        lines.append(
            f"- [ ] **{action}**, {kind} {times} (last {_day(newest.at)}, {where}): {_cell(newest.deviation.text)}. "
            f"Proposal: {todo}."
        )
    return lines or ["None: no incident and no drill left the runbook."]


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} s"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
