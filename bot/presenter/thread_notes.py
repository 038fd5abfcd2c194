"""Replies in a run's thread, beside its one live message: step results as text, approval requests, reminders, the end.

Each note has a key under which it is posted once, even across a restart. Slack notifies nobody of an edit, so whatever a
person must notice (a request for approval, the end of a long run) is a note.
"""

from dataclasses import dataclass
from typing import Literal

from bot.presenter.approval_request import approval_request, reminder
from bot.presenter.message import Block, Lines, Message, chart, compose, section, table
from bot.presenter.mrkdwn import capitalized, code, code_block, escape, first_line, gist, one_line, user
from bot.presenter.render_context import RenderContext
from bot.presenter.run_message import now_line, run_title, state_sign, state_word
from bot.presenter.vocabulary import action_name, diagnoses
from bot.store.records import RunRecord, RunStatus, StepRecord

ASK = "ask:"
REMIND = "remind:"
"""A request and its reminder have the plan's hash behind these; once it is replaced, they say so."""
MAX_ROWS = 4
LONG_RUN_S = 20.0
"""The end of a longer run is announced in a note: its requester has looked away by then."""


@dataclass(frozen=True)
class Note:
    """One reply in the thread, posted once under its key. With `if_posted` it is only edited: it is too late to post it."""

    key: str
    message: Message
    if_posted: bool = False


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
        end = first_line(now_line(run, context))
        notes.append(Note("end", _text(f"{state_sign(run)} {who}: {state_word(run)}. {end}")))
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
    """Return the request for approval and, near its end, the reminder; both as they read now."""
    gate = run.plan.gate if run.plan is not None else None
    if gate is None or run.status is RunStatus.PLANNING:
        return []
    waits, expires_at = run.status is RunStatus.WAITING, run.gate_expires_at
    request = approval_request(run, context)
    notes = [Note(f"{ASK}{run.plan_hash}", request, if_posted=not waits)]
    if not waits:
        return [*notes, Note(f"{REMIND}{run.plan_hash}", request, if_posted=True)]
    # A request that is shorter than the reminder's time needs no reminder: it was made just now.
    if expires_at is not None and gate.remind_before_s > 0:
        remind_at = expires_at - gate.remind_before_s
        if run.created_at < remind_at <= context.now < expires_at:
            notes.append(
                Note(f"{REMIND}{run.plan_hash}", reminder(run, gate, remind_at, expires_at, context))
            )
    return notes


def _step_note(step: StepRecord) -> Note:
    """Return a step's result for the thread: its first line, then its figures as a table, or its text as it is."""
    text = str(step.data["thread_text"])
    rows, drawn = _rows(step.data.get("table")), _chart(step.data.get("chart"))
    if rows:
        said = step.data.get("table_notes")
        lines = tuple(gist(str(line), 25) for line in said) if isinstance(said, list) else ()
        notes = [Lines(lines, noun="notes")] if lines else []
        first = f"*{capitalized(gist(step.title, 10))}*\n{capitalized(gist(first_line(text) or first_line(step.summary), 30))}"
        return Note(
            f"step:{step.step_id}:{step.attempt}",
            compose(first_line(first), [section(first), *drawn, table(rows), *notes]),
        )
    body = code_block(text) if "\n" in text.strip() else escape(text.strip())
    return Note(
        f"step:{step.step_id}:{step.attempt}", _text(f"*{capitalized(one_line(step.title, 150))}*\n{body}")
    )


def _rows(value: object) -> list[list[str]]:
    """Return the rows of a step's table, or an empty list if its data has none that can be shown."""
    if (
        not isinstance(value, list)
        or not all(isinstance(row, list) and row for row in value)
        or len(value) < 2
    ):
        return []
    return [[str(cell) for cell in row] for row in value if len(row) == len(value[0])][:MAX_ROWS]


def _chart(value: object) -> list[Block]:
    """Return the chart of a step's data, or an empty list if there is none that can be drawn."""
    if not isinstance(value, dict):
        return []
    try:
        series = {str(name): [float(v) for v in values] for name, values in value["series"].items()}
        kind: Literal["bar", "line"] = "line" if value.get("kind") == "line" else "bar"
        labels = {name: str(value.get(name) or "") for name in ("x_label", "y_label")}
        return [
            chart(str(value["title"]), [str(c) for c in value["categories"]], series, kind=kind, **labels)
        ]
    except (KeyError, TypeError, ValueError, AttributeError):  # stored by another version
        return []


def _end_is_announced(run: RunRecord) -> bool:
    """Return True for an end that someone is waiting for; triage cards and quick runs need no announcement."""
    if not run.status.final or diagnoses(run.action) or run.status in (RunStatus.REFUSED, RunStatus.DENIED):
        return False
    took_s = (run.ended_at or run.created_at) - (run.started_at or run.created_at)
    return took_s >= LONG_RUN_S or run.status is not RunStatus.SUCCEEDED


def _text(text: str) -> Message:
    return compose(first_line(text), [section(text)])
