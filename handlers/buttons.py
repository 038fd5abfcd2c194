"""The buttons of cards and run messages: start the fallback, triage again, stop, hold, next stage, put it back.

A button carries the run's id; what it means now is read again here. A press that comes too late is answered with why.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from bot.presenter import alerts, answers
from bot.presenter.alerts import ACKNOWLEDGE
from bot.presenter.gate import APPROVE, DENY
from bot.presenter.run_message import ABORT, HOLD, NEXT, STOP
from bot.presenter.verdict_card import START_FALLBACK, TRIAGE_AGAIN, verdict_of
from bot.store.records import Place, RunRecord, RunStatus, UserError
from gpu_actions.action import Signal
from gpu_actions.models import VerdictKind
from handlers import approvals
from handlers.call import Call
from handlers.command import require_change, start_run, stop_run

Press = Callable[[Call, str], Awaitable[None]]

_SIGNALS: Mapping[str, tuple[Signal, str]] = {
    HOLD: ("hold", "holds at this stage until somebody presses the next one"),
    NEXT: ("next", "goes on to the next stage now"),
    ABORT: ("abort", "puts the traffic back to the fallback"),
}


def run_of(call: Call, run_id: str) -> RunRecord:
    """The run that a button names. Raises UserError when it is gone."""
    run = call.services.runs.get(run_id)
    if run is None:
        raise UserError(
            f"I know no run {run_id!r} any more; this button can do nothing. See the newest message or /gpu status."
        )
    return run


async def start_fallback(call: Call, value: str) -> None:
    """From a verdict card: the fallback of that host, in the card's thread, unless a newer triage says otherwise."""
    triage = run_of(call, value)
    newer = call.services.runs.latest(action="triage", host=triage.host)
    if (
        newer is not None
        and newer.id != triage.id
        and newer.created_at > triage.created_at
        and newer.status.final
    ):
        verdict = verdict_of(newer)
        if verdict is not None and verdict.verdict is not VerdictKind.FALL_BACK:
            await call.answer(answers.triage_outdated(newer, call.view))
            return
    await start_run(call, "fallback", triage.host, {}, place=_thread_of(call, triage))


async def triage_again(call: Call, value: str) -> None:
    """From a verdict card: the same triage once more, where the card stands."""
    before = run_of(call, value)
    options = {"deep": "true"} if str(before.options.get("deep", "")).lower() == "true" else {}
    place = Place(channel=call.channel, thread_ts=before.place.thread_ts)
    await start_run(call, "triage", before.host, options, place=place)


async def stop(call: Call, value: str) -> None:
    """Stop the run of this message."""
    run = run_of(call, value)
    _still_active(run)
    await stop_run(call, run)


async def acknowledge(call: Call, value: str) -> None:
    """From an alert: no new alert of this cause for a while. The value is `HOST:CAUSE`."""
    host, _, cause = value.partition(":")
    await call.services.access.require(
        call.person, call.services.access.change_role, f"acknowledge {cause} on {host}"
    )
    monitors = call.services.monitors
    if monitors is None:
        raise UserError(
            "The monitors are off (monitors.enabled in the settings), so there is nothing to acknowledge."
        )
    quiet_s = await asyncio.to_thread(monitors.acknowledge, host, cause, by=call.person)
    if (incident := call.services.incidents.active(host)) is not None:
        call.services.incidents.note(incident.id, by=call.person, text=f"acknowledged {cause}")
    await call.answer(alerts.acknowledged(host, cause, quiet_s=quiet_s))


def signal(action_id: str) -> Press:
    """Hold, next and abort of a shift."""

    async def press(call: Call, value: str) -> None:
        run = run_of(call, value)
        _still_active(run)
        name, means = _SIGNALS[action_id]
        await require_change(call, run.action, f"{name} {run.action} on {run.host}")
        await call.services.runs.signal(run.id, name, by=call.person)
        await call.answer(answers.accepted(f"{run.id} {means}."))

    return press


def _decision(decision: str) -> Press:
    async def press(call: Call, value: str) -> None:
        await approvals.press(call, decision, value)

    return press


PRESSES: Mapping[str, Press] = {
    START_FALLBACK: start_fallback,
    TRIAGE_AGAIN: triage_again,
    ACKNOWLEDGE: acknowledge,
    STOP: stop,
    **{action_id: signal(action_id) for action_id in _SIGNALS},
    APPROVE: _decision("approve"),
    DENY: _decision("deny"),
}


def _still_active(run: RunRecord) -> None:
    if run.status.final:
        raise UserError(f"{run.id} is over already ({run.status.value}); its message says how it ended.")
    if run.status is RunStatus.SETTLING:
        raise UserError(f"{run.id} is cleaning up already; its message will say what state it leaves.")


def _thread_of(call: Call, card: RunRecord) -> Place:
    """The incident's thread in this channel, else the thread under the card."""
    incident = call.services.incidents.active(card.host)
    if incident is not None and incident.place.channel == call.channel:
        return incident.place
    return Place(channel=call.channel, thread_ts=card.place.thread_ts or card.message_ts or call.thread_ts)
