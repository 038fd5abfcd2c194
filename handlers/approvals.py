"""Decisions on a waiting run: the buttons Approve and Deny, and `@bot approve RUN`, `deny RUN why`, `override RUN why`.

Only the run id and the hash of the plan come from the message; everything else is read again. A decision that is not
allowed, too late or repeated is answered with the reason.
"""

import asyncio
import json
from collections.abc import Mapping
from functools import partial

from bot.presenter import forms, private_answers
from bot.presenter.approval_request import approval_value, split_approval_value
from bot.presenter.details import plan_view
from bot.presenter.message import modal, section
from bot.presenter.mrkdwn import code, one_line
from bot.settings.model import Role
from bot.store.records import RunRecord, RunStatus, UserError
from handlers import modals
from handlers.arguments import run_id_of, split
from handlers.call import Call

APPROVE_PLAN = "approve_plan"
DENY_PLAN = "deny_plan"
DECISIONS = ("approve", "deny", "override")


async def press(call: Call, decision: str, value: str) -> None:
    """Decide by button; `value` is the button's."""
    run_id, plan_hash = split_approval_value(value)
    await decide(call, decision, run_id, plan_hash=plan_hash)


async def mention(call: Call, decision: str, rest: str) -> None:
    """Decide by `@bot approve RUN`, on the plan that its request shows. Raises UserError without a run or a needed reason."""
    words = split(rest)
    if not words:
        why = " why" if decision != "approve" else ""
        raise UserError(f"Say which run: {decision} RUN{why}. {private_answers.waiting_runs(waiting(call))}")
    run_id, reason = run_id_of(words[0]), " ".join(words[1:])
    run = call.services.runs.get(run_id)
    await decide(call, decision, run_id, plan_hash=run.plan_hash if run is not None else "", reason=reason)


async def decide(call: Call, decision: str, run_id: str, *, plan_hash: str, reason: str = "") -> None:
    """Check one decision and pass it on. An accepted one is answered by its request, which says who decided."""
    services = call.services
    run = services.runs.get(run_id)
    if run is None:
        await call.answer(private_answers.unknown_run(run_id, waiting(call)))
        return
    if closed := private_answers.approval_closed(run):
        await call.answer(private_answers.plain(f":no_entry: {closed}"))
        return
    check_plan(run, plan_hash)
    check_place(call, run)
    if refused := await refusal(call, decision, run):
        raise UserError(refused)
    if decision == "override" and not reason.strip():
        raise UserError(f"An override needs a reason for the record: override {run.id} WHY.")
    answer = await services.approvals.decide(
        run_id=run.id, user=call.person, decision=decision, plan_hash=plan_hash, reason=reason
    )
    if not answer.accepted:
        await call.answer(
            private_answers.plain(f":no_entry: {one_line(answer.message, 800)} ({code(run.id)})")
        )


def check_plan(run: RunRecord, plan_hash: str) -> None:
    """Raise UserError unless a button names the plan that the run waits with."""
    if not plan_hash:
        raise UserError(
            f"This button names no plan, so it decides nothing: use the newest request of {run.id}."
        )
    if plan_hash != run.plan_hash:
        raise UserError(
            f"The plan of {run.id} has changed since you saw it (now {run.plan_hash}): read the newest request, then decide."
        )


def check_place(call: Call, run: RunRecord) -> None:
    """Raise UserError for a decision outside the conversation that shows the plan: others must see who decided what."""
    if call.channel != run.place.channel:
        raise UserError(f"Decide on {run.id} where its request is, so that everyone sees it.")


async def refusal(call: Call, decision: str, run: RunRecord) -> str:
    """Return why this person may not decide on a run, or an empty string."""
    gate = run.plan.gate if run.plan is not None else None
    role: Role = "override" if decision == "override" else "approver"
    if gate is not None and decision != "override":
        role = _role(gate.approvers)
    refused = await call.services.access.refusal(call.person, role, f"{decision} {run.action} on {run.host}")
    if refused is None and decision != "deny" and run.requester.id == call.person.id:
        return own_request(run, decision)
    return refused or ""


def own_request(run: RunRecord, decision: str) -> str:
    """Return the refusal of a requester's own decision: two-person rules mean two persons."""
    refused = f"You asked for {run.id} yourself, so another person must {decision} it."
    return f"{refused} You can stop it." if decision == "approve" else refused


def waiting(call: Call) -> list[RunRecord]:
    """Return the runs that wait for a decision."""
    return [run for run in call.services.runs.list(active_only=True) if run.status is RunStatus.WAITING]


async def show_plan(call: Call, run: RunRecord, plan_hash: str) -> None:
    """Show a run's plan; a person who may approve it also gets a field for a reason and the button."""
    if plan_hash != run.plan_hash:
        raise UserError(f"The plan of {run.id} has changed since that message: look at the newest request.")

    async def build() -> modals.View:
        view = await asyncio.to_thread(plan_view, run, call.context)
        if run.status is RunStatus.WAITING and not await refusal(call, "approve", run):
            return forms.with_decision(view, "Approve", callback=APPROVE_PLAN, metadata=_about(call, run))
        return view

    await modals.show(call, f"Plan of {run.id}", build)


async def ask_to_deny(call: Call, run: RunRecord, plan_hash: str) -> None:
    """Ask for the reason of a denial; where no modal can open, say how to write it."""
    check_plan(run, plan_hash)

    async def build() -> modals.View:
        if refused := await refusal(call, "deny", run):
            return modal("Deny", [section(f":no_entry: {refused}")])
        return forms.with_decision(
            forms.deny_view(run), "Deny", callback=DENY_PLAN, metadata=_about(call, run)
        )

    how = forms.deny_by_mention(run, call.context)
    await modals.show(call, "Deny", build, otherwise=how)


def _about(call: Call, run: RunRecord) -> str:
    return json.dumps({"value": approval_value(run), "channel": call.channel, "thread": call.thread_ts})


def _role(name: str) -> Role:
    """Return the role that may approve. An older plan's role that no longer exists becomes the strictest one."""
    match name:
        case "responder" | "approver" | "override":
            return name
        case _:
            return "override"


async def _decided(decision: str, call: Call, about: modals.View, values: modals.Values) -> None:
    run_id, plan_hash = split_approval_value(str(about.get("value", "")))
    await decide(call, decision, run_id, plan_hash=plan_hash, reason=values.get(forms.REASON, ""))


FORMS: Mapping[str, modals.Form] = {
    APPROVE_PLAN: modals.Form(submit=partial(_decided, "approve")),
    DENY_PLAN: modals.Form(submit=partial(_decided, "deny")),
}
