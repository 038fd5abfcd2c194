"""The Home tab: each host with its last verdict, what is running, and the help.

It has no buttons: it is published when a person opens it, and a button there would go stale.
"""

from collections.abc import Sequence
from typing import Any

from bot.presenter.help import CommandText, overview_parts
from bot.presenter.message import Lines, Part, compose, footnote, header
from bot.presenter.mrkdwn import clock, duration, one_line
from bot.presenter.private_answers import run_line
from bot.presenter.render_context import RenderContext
from bot.presenter.verdict_card import verdict_of, verdict_title
from bot.presenter.vocabulary import VERDICT_SIGNS
from bot.store.records import IncidentRecord, RunRecord


def home_view(
    hosts: Sequence[tuple[str, RunRecord | None, IncidentRecord | None]],
    active: Sequence[RunRecord],
    commands: Sequence[CommandText],
    context: RenderContext,
) -> dict[str, Any]:
    """Return the view of the Home tab; `hosts` are (name, last finished triage, open incident)."""
    lines = tuple(_host_line(name, triage, incident, context) for name, triage, incident in hosts)
    parts: list[Part] = [
        header("Hosts"),
        Lines(lines, noun="hosts"),
        header("Running now"),
        Lines(tuple(run_line(run, context) for run in active) or ("Nothing is running.",), noun="runs"),
        header("What you can ask for"),
        *overview_parts(commands, context, hosts=[name for name, _, _ in hosts]),
        footnote(f"as of {clock(context.now, with_date=True)}"),
    ]
    return {"type": "home", "blocks": list(compose("Home", parts).blocks)}


def _host_line(
    name: str, triage: RunRecord | None, incident: IncidentRecord | None, context: RenderContext
) -> str:
    verdict = verdict_of(triage) if triage is not None else None
    if verdict is None or triage is None:
        line = f":black_circle: *{one_line(name)}*: no triage yet. {context.command('triage', name)}"
    else:
        age = duration(context.now - (triage.ended_at or triage.created_at))
        title = one_line(verdict_title(verdict, name))
        line = f"{VERDICT_SIGNS[verdict.verdict]} *{title}* ({age} ago) {one_line(verdict.summary, 200)}"
    return line if incident is None else f"{line}\n      :rotating_light: {one_line(incident.title, 200)}"
