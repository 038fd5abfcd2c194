"""The Home tab: what waits for me, open incidents, each host with its verdict and tier, what runs, what I may do, the help.

It has links instead of buttons, so nothing goes stale; it is published anew each time a person opens it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bot.presenter.help import CommandText, overview_parts
from bot.presenter.message import Lines, Part, compose, footnote, header, section
from bot.presenter.mrkdwn import ago, code, gist, link, moment, one_line
from bot.presenter.private_answers import run_line
from bot.presenter.render_context import RenderContext
from bot.presenter.run_message import state_word
from bot.presenter.verdict_card import verdict_of, verdict_title
from bot.presenter.vocabulary import VERDICT_SIGNS, action_name
from bot.presenter.whoami import Rights, rights_lines
from bot.store.records import IncidentRecord, RunRecord


@dataclass(frozen=True, kw_only=True)
class HostState:
    """What the Home tab shows of a host. `moved` is the last run that brought it to another tier."""

    name: str
    triage: RunRecord | None = None
    moved: RunRecord | None = None
    incident: IncidentRecord | None = None


@dataclass(frozen=True, kw_only=True)
class HomeState:
    """Everything on the Home tab. `next_drill` is when one is due by schedule.

    `links` maps the id of a run or an incident to the address of its message.
    """

    hosts: Sequence[HostState]
    active: Sequence[RunRecord]
    for_me: Sequence[RunRecord]
    rights: Rights
    next_drill: float | None = None
    links: Mapping[str, str] = field(default_factory=dict)


def home_view(state: HomeState, commands: Sequence[CommandText], context: RenderContext) -> dict[str, Any]:
    """Return the view of the Home tab."""
    incidents = [(host.name, host.incident) for host in state.hosts if host.incident is not None]
    parts: list[Part] = []
    if state.for_me:
        waiting = tuple(_waiting_line(run, state) for run in state.for_me)
        parts += [header("Waiting for your decision"), Lines(waiting, noun="runs")]
    if incidents:
        opened = tuple(_incident_line(name, incident, state) for name, incident in incidents)
        parts += [header("Open incidents"), Lines(opened, noun="incidents")]
    runs = tuple(f"{run_line(run, context)}{_open(run.id, state)}" for run in state.active)
    parts += [
        header("Hosts"),
        Lines(tuple(_host_line(host, state, context) for host in state.hosts), noun="hosts"),
        header("Running now"),
        Lines(runs or ("Nothing is running.",), noun="runs"),
        section(_drill(state, context)),
        header("What you may do"),
        Lines(tuple(rights_lines(state.rights)), noun="roles"),
        header("What you can ask for"),
        *overview_parts(commands, context, hosts=[host.name for host in state.hosts]),
        footnote(f"as of {ago(context.now)}; open this tab again to see it anew"),
    ]
    return {"type": "home", "blocks": list(compose("Home", parts, of_modal=True).blocks)}


def _drill(state: HomeState, context: RenderContext) -> str:
    if state.next_drill is None:
        return f"*Next drill:* none is scheduled. {context.command('drill', 'start')}"
    return f"*Next drill:* {moment(state.next_drill)}"


def _open(key: str, state: HomeState) -> str:
    return f" {link(state.links[key], 'open')}" if state.links.get(key) else ""


def _waiting_line(run: RunRecord, state: HomeState) -> str:
    what = f"*{one_line(action_name(run.action))}* on {one_line(run.host)}"
    return f":raised_hand: {what}, asked {ago(run.created_at)} {code(run.id)}{_open(run.id, state)}"


def _incident_line(name: str, incident: IncidentRecord, state: HomeState) -> str:
    title = gist(incident.title, 14)
    return f":rotating_light: *{one_line(name)}* {title}, opened {ago(incident.opened_at)}{_open(incident.id, state)}"


def _host_line(host: HostState, state: HomeState, context: RenderContext) -> str:
    verdict = verdict_of(host.triage) if host.triage is not None else None
    if verdict is None or host.triage is None:
        return (
            f":black_circle: *{one_line(host.name)}*: no triage yet. {context.command('triage', host.name)}"
        )
    title = one_line(verdict_title(verdict, host.name))
    age = ago(host.triage.ended_at or host.triage.created_at)
    line = f"{VERDICT_SIGNS[verdict.verdict]} *{title}* {age}: {gist(verdict.summary, 14)}"
    return f"{line}{_open(host.triage.id, state)}\n      {_tier(host.moved)}"


def _tier(moved: RunRecord | None) -> str:
    """Return which tier serves, as the last run that changed it said at its end."""
    if moved is None:
        return "Tier: I have changed nothing here yet."
    left = gist(moved.outcome, 14) or state_word(moved)
    return f"Tier: {left} ({code(moved.id)}, {ago(moved.ended_at or moved.created_at)})"
