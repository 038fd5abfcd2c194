"""The buttons of cards and run messages: start the fallback, triage again, stop, pause, next stage, put it back.

A button carries only the run's id; what it means is decided when it is pressed. A press that comes too late is answered
with the reason.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from bot.presenter import alerts, private_answers
from bot.presenter.alerts import ACKNOWLEDGE
from bot.presenter.approval_request import APPROVE, DENY, SHOW_PLAN, split_approval_value
from bot.presenter.details import details_view
from bot.presenter.plan_message import START_PROPOSED
from bot.presenter.run_message import ABORT, HOLD, NEXT, STOP
from bot.presenter.verdict_card import DETAILS, START_FALLBACK, TRIAGE_AGAIN, verdict_of
from bot.store.records import Place, RunRecord, RunStatus, UserError
from gpu_actions.action import Signal
from gpu_actions.models import VerdictKind
from handlers import approvals, modals
from handlers.call import Call
from handlers.command import goes_on_in, require_role, start_run, stop_run

Press = Callable[[Call, str], Awaitable[None]]


async def _start_fallback(call: Call, value: str) -> None:
    """Start the fallback of a verdict card's host in the card's thread, unless a newer triage no longer advises it."""
    triage = _run_of(call, value)
    newer = call.services.runs.latest(action="triage", host=triage.host)
    if newer is not None and newer.created_at > triage.created_at and newer.status.final:
        verdict = verdict_of(newer)
        if verdict is not None and verdict.verdict is not VerdictKind.FALL_BACK:
            await call.answer(private_answers.triage_outdated(newer, call.context))
            return
    incident = call.services.incidents.active(triage.host)
    place = Place(
        channel=call.channel, thread_ts=triage.place.thread_ts or triage.message_ts or call.thread_ts
    )
    if incident is not None and goes_on_in(incident, call.channel):
        place = incident.place
    await start_run(call, "fallback", triage.host, {}, place=place)


async def _triage_again(call: Call, value: str) -> None:
    """Repeat a verdict card's triage where the card is."""
    before = _run_of(call, value)
    options = {"deep": "true"} if str(before.options.get("deep", "")).lower() == "true" else {}
    place = Place(channel=call.channel, thread_ts=before.place.thread_ts)
    await start_run(call, "triage", before.host, options, place=place)


async def _stop(call: Call, value: str) -> None:
    await stop_run(call, _active_run_of(call, value))


async def _start_proposed(call: Call, value: str) -> None:
    """Start what an assistant proposed, as the person who presses."""
    try:
        proposed = json.loads(value)
        action, host, options = str(proposed["action"]), str(proposed["host"]), dict(proposed["options"])
    except (ValueError, KeyError, TypeError):
        raise UserError("This proposal cannot be read; type the command yourself.") from None
    await start_run(call, action, host, {str(name): str(given) for name, given in options.items()})


async def _acknowledge(call: Call, value: str) -> None:
    """Keep quiet about an alert's cause for a while. The value is `HOST:CAUSE`."""
    host, _, cause = value.partition(":")
    services = call.services
    await services.access.require(call.person, services.access.change_role, f"acknowledge {cause} on {host}")
    quiet_s = await asyncio.to_thread(services.monitors.acknowledge, host, cause, by=call.person)
    await services.alerts.note(host, by=call.person, text=f"acknowledged {cause}")
    await services.runs.acknowledge(host, cause, by=call.person)
    await call.answer(alerts.acknowledged(host, cause, quiet_s=quiet_s))


async def _signal(signal: Signal, effect: str, call: Call, value: str) -> None:
    """Send a signal to the running step, which compares or shifts traffic."""
    run = _active_run_of(call, value)
    await require_role(call, run.action, f"{signal} {run.action} on {run.host}")
    await call.services.runs.signal(run.id, signal, by=call.person)
    await call.answer(private_answers.accepted(f"{run.id} {effect}."))


async def _approve(call: Call, value: str) -> None:
    await approvals.press(call, "approve", value)


async def _deny(call: Call, value: str) -> None:
    """Ask for a reason, unless it is too late to decide."""
    run_id, plan_hash = split_approval_value(value)
    run = _run_of(call, run_id)
    if closed := private_answers.approval_closed(run):
        raise UserError(closed)
    await approvals.ask_to_deny(call, run, plan_hash)


async def _show_plan(call: Call, value: str) -> None:
    run_id, plan_hash = split_approval_value(value)
    await approvals.show_plan(call, _run_of(call, run_id), plan_hash)


async def _details(call: Call, value: str) -> None:
    run = _run_of(call, value)

    async def build() -> modals.View:
        return await asyncio.to_thread(details_view, run, call.context)

    await modals.show(call, "Details", build)


PRESSES: Mapping[str, Press] = {
    START_FALLBACK: _start_fallback,
    TRIAGE_AGAIN: _triage_again,
    START_PROPOSED: _start_proposed,
    ACKNOWLEDGE: _acknowledge,
    STOP: _stop,
    HOLD: partial(_signal, "hold", "pauses at this stage until someone presses Next stage now"),
    NEXT: partial(_signal, "next", "moves on to the next stage now"),
    ABORT: partial(_signal, "abort", "moves all traffic back to the fallback"),
    APPROVE: _approve,
    DENY: _deny,
    SHOW_PLAN: _show_plan,
    DETAILS: _details,
}


def _run_of(call: Call, run_id: str) -> RunRecord:
    run = call.services.runs.get(run_id)
    if run is None:
        see = call.slash("gpu", "status")
        raise UserError(
            f"I know no run {run_id!r} any more, so this button does nothing. See the newest message or {see}."
        )
    return run


def _active_run_of(call: Call, run_id: str) -> RunRecord:
    run = _run_of(call, run_id)
    if run.status.final:
        raise UserError(f"{run.id} is over already ({run.status.value}); its message says how it ended.")
    if run.status is RunStatus.SETTLING:
        raise UserError(f"{run.id} is cleaning up already; its message will say how it left the host.")
    return run
