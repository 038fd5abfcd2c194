"""What goes into a run's thread beside its one live message: results as text, who is asked, reminders, the end.

Each note has a key of its own. The live messages post each key once, also over a restart; edits notify nobody in Slack, so
what a person must notice (an approval wanted, the end of a long run) is a note.
"""

from dataclasses import dataclass

from bot.presenter.message import Message, compose, section
from bot.presenter.mrkdwn import clock, code, code_block, duration, escape, first_line, one_line, user
from bot.presenter.run_message import now_line, run_title, state_sign, state_word
from bot.presenter.view import View, action_name, diagnoses
from bot.store.records import RunRecord, RunStatus, StepRecord

LONG_RUN_S = 20.0
"""A run that took longer has its end told in a message of its own: its requester has looked away by then."""


@dataclass(frozen=True)
class Note:
    """One reply in the thread, posted once under its key."""

    key: str
    message: Message


def thread_notes(run: RunRecord, view: View) -> list[Note]:
    """The notes that this run should have by now, in order."""
    notes = [*_asked(run, view)]
    notes += [_step_note(step, run) for step in run.steps if step.data.get("thread_text")]
    if run.status is RunStatus.EXPIRED:
        notes.append(Note("expired", _text(_expired(run, view))))
    elif note := _ended(run, view):
        notes.append(note)
    return notes


def reminder_at(run: RunRecord) -> float | None:
    """When a waiting run's reminder is due, in Unix seconds; None without a gate that expires."""
    gate = run.plan.gate if run.plan is not None else None
    if (
        gate is None
        or run.status is not RunStatus.WAITING
        or run.gate_expires_at is None
        or gate.remind_before_s <= 0
    ):
        return None
    return max(run.created_at, run.gate_expires_at - gate.remind_before_s)


def _asked(run: RunRecord, view: View) -> list[Note]:
    gate = run.plan.gate if run.plan is not None else None
    if gate is None or run.status is not RunStatus.WAITING:
        return []
    how = f"Decide with the buttons of the message above, or write {view.mention(f'approve {run.id}')}"
    how += f" or {view.mention(f'deny {run.id} why')}."
    until = f" until {clock(run.gate_expires_at)}" if run.gate_expires_at is not None else ""
    notes = [
        Note(
            f"ask:{run.plan_hash}",
            _text(
                f":raised_hand: {view.role(gate.approvers)}: {user(run.requester)} asks to run "
                f"*{action_name(run.action).lower()}* on {one_line(run.host)} ({code(run.id)}, plan {code(run.plan_hash)})"
                f"{until}. {one_line(gate.reason, 300)}\n{how}"
            ),
        )
    ]
    due = reminder_at(run)
    # A reminder is for a gate that was open for a while: one that opens inside the reminder's time was just asked for.
    if (
        due is not None
        and run.gate_expires_at is not None
        and run.created_at < due <= view.now < run.gate_expires_at
    ):
        missing = run.short_of_approvals
        notes.append(
            Note(
                f"remind:{run.plan_hash}",
                _text(
                    f":alarm_clock: {code(run.id)} expires in {duration(run.gate_expires_at - view.now)}: {missing} "
                    f"approval{'' if missing == 1 else 's'} of {view.role(gate.approvers)} still missing.\n{how}"
                ),
            )
        )
    return notes


def _expired(run: RunRecord, view: View) -> str:
    return (
        f":alarm_clock: {user(run.requester)}: the approval for {code(run.id)} was not given in time. Nothing was touched. "
        f"To ask again: {view.command(run.action, f'start {run.host}')}."
    )


def _step_note(step: StepRecord, run: RunRecord) -> Note:
    """A step's text for the thread. It comes from the host: escaped, in code type where it has several lines."""
    text = str(step.data["thread_text"])
    title = f"*{one_line(step.title, 150)}*"
    body = code_block(text) if "\n" in text.strip() else escape(text.strip())
    return Note(f"step:{step.step_id}:{step.attempt}", _text(f"{title}\n{body}"))


def _ended(run: RunRecord, view: View) -> Note | None:
    """The end of a run that a person waits for, with a mention; triage cards and quick runs speak for themselves."""
    if not run.status.final or diagnoses(run.action) or run.status in (RunStatus.REFUSED, RunStatus.DENIED):
        return None
    took = (run.ended_at or run.created_at) - (run.started_at or run.created_at)
    if took < LONG_RUN_S and run.status is RunStatus.SUCCEEDED:
        return None
    line = f"{user(run.requester)} {action_name(run.action)} on {one_line(run.host)}: {state_word(run)}. {now_line(run, view)}"
    return Note("end", _text(f"{state_sign(run)} {line}"))


def _text(text: str) -> Message:
    return compose(first_line(text), [section(text)])


def override_shout(run: RunRecord, view: View) -> Message | None:
    """The announcement of an emergency override in the channel; None without one."""
    decision = next((d for d in run.decisions if d.decision == "override"), None)
    if decision is None:
        return None
    return _text(
        f":rotating_light: EMERGENCY OVERRIDE by {user(decision.user)} on {one_line(run_title(run))}. "
        f"Reason: {one_line(decision.reason, 600)}"
    )
