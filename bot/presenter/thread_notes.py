"""Replies in a run's thread, beside its one live message: step results as text, approval requests, reminders, the end.

Each note has a key under which it is posted once, even across a restart. Slack notifies nobody of an edit, so whatever a
person must notice (a request for approval, the end of a long run) is a note.
"""

from dataclasses import dataclass

from bot.presenter.message import Message, compose, section
from bot.presenter.mrkdwn import clock, code, code_block, duration, escape, first_line, one_line, user
from bot.presenter.render_context import RenderContext
from bot.presenter.run_message import now_line, run_title, state_sign, state_word
from bot.presenter.vocabulary import action_name, count, diagnoses
from bot.store.records import RunRecord, RunStatus, StepRecord

LONG_RUN_S = 20.0
"""The end of a longer run is announced in a note: its requester has looked away by then."""


@dataclass(frozen=True)
class Note:
    """One reply in the thread, posted once under its key."""

    key: str
    message: Message


def thread_notes(run: RunRecord, context: RenderContext) -> list[Note]:
    """Return the notes that this run should have by now, in order."""
    notes = _approval_notes(run, context)
    notes += [_step_note(step) for step in run.steps if step.data.get("thread_text")]
    if run.status is RunStatus.EXPIRED:
        text = (
            f":alarm_clock: {user(run.requester)}: nobody approved {code(run.id)} in time. Nothing was changed. "
            f"To ask again: {context.start(run.action, run.host)}."
        )
        notes.append(Note("expired", _text(text)))
    elif _end_is_announced(run):
        who = f"{user(run.requester)} {action_name(run.action)} on {one_line(run.host)}"
        notes.append(
            Note("end", _text(f"{state_sign(run)} {who}: {state_word(run)}. {now_line(run, context)}"))
        )
    return notes


def override_notice(run: RunRecord) -> Message | None:
    """Return the announcement of an emergency override in the channel; None without one."""
    decision = next((d for d in run.decisions if d.decision == "override"), None)
    if decision is None:
        return None
    return _text(
        f":rotating_light: EMERGENCY OVERRIDE by {user(decision.user)} on {one_line(run_title(run))}. "
        f"Reason: {one_line(decision.reason, 600)}"
    )


def _approval_notes(run: RunRecord, context: RenderContext) -> list[Note]:
    """Return the request for approval and, near its end, the reminder."""
    gate = run.plan.gate if run.plan is not None else None
    if gate is None or run.status is not RunStatus.WAITING:
        return []
    expires_at, approvers = run.gate_expires_at, context.role(gate.approvers)
    how = (
        f"Decide with the buttons on the message above, or write {context.mention(f'approve {run.id}')} "
        f"or {context.mention(f'deny {run.id} why')}."
    )
    until = "" if expires_at is None else f" until {clock(expires_at)}"
    request = (
        f":raised_hand: {approvers}: {user(run.requester)} asks to run *{action_name(run.action).lower()}* on "
        f"{one_line(run.host)} ({code(run.id)}, plan {code(run.plan_hash)}){until}. {one_line(gate.reason, 300)}\n{how}"
    )
    notes = [Note(f"ask:{run.plan_hash}", _text(request))]
    # A request that is shorter than the reminder's time needs no reminder: it was made just now.
    if expires_at is not None and gate.remind_before_s > 0:
        remind_at = expires_at - gate.remind_before_s
        if run.created_at < remind_at <= context.now < expires_at:
            missing = count(run.short_of_approvals, "approval")
            reminder = (
                f":alarm_clock: {code(run.id)} expires in {duration(expires_at - context.now)}. "
                f"{missing} from {approvers} still needed.\n{how}"
            )
            notes.append(Note(f"remind:{run.plan_hash}", _text(reminder)))
    return notes


def _step_note(step: StepRecord) -> Note:
    """Return a step's text for the thread: escaped, because it comes from the host, and a code block if it is long."""
    text = str(step.data["thread_text"])
    body = code_block(text) if "\n" in text.strip() else escape(text.strip())
    return Note(f"step:{step.step_id}:{step.attempt}", _text(f"*{one_line(step.title, 150)}*\n{body}"))


def _end_is_announced(run: RunRecord) -> bool:
    """Return True for an end that someone is waiting for; triage cards and quick runs need no announcement."""
    if not run.status.final or diagnoses(run.action) or run.status in (RunStatus.REFUSED, RunStatus.DENIED):
        return False
    took_s = (run.ended_at or run.created_at) - (run.started_at or run.created_at)
    return took_s >= LONG_RUN_S or run.status is not RunStatus.SUCCEEDED


def _text(text: str) -> Message:
    return compose(first_line(text), [section(text)])
