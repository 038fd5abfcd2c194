"""The forms in modals: a decision with a reason, the options of an action, the end of an incident. Pure functions."""

import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

from bot.presenter.message import Block, Message, compose, modal, section
from bot.presenter.mrkdwn import clip, code, one_line
from bot.presenter.render_context import RenderContext
from bot.presenter.vocabulary import action_name
from bot.store.records import IncidentRecord, RunRecord
from gpu_actions.action import ActionSpec

REASON = "reason"
HOST = "host"
OPTION = "option:"
CAUSE = "cause"
REPAIR = "repair"
FIELD = "field"
MAX_REASON = 500


def with_decision(view: Block, submit: str, *, callback: str, metadata: str) -> Block:
    """Return a view with a field for the reason and a button that decides."""
    reason = _text_field(REASON, "Reason, for the record", "", long=True)
    return modal(
        view["title"]["text"],
        [reason, *view["blocks"][:99]],
        submit=submit,
        metadata=metadata,
        callback=callback,
    )


def deny_view(run: RunRecord) -> Block:
    """Return what a denial is about."""
    what = (
        f"*{one_line(action_name(run.action))}* on {one_line(run.host)} will not run, and nothing is changed."
    )
    return modal("Deny", [section(f"{what}\nplan {code(run.plan_hash)} · {code(run.id)}")])


def deny_by_mention(run: RunRecord, context: RenderContext) -> Message:
    """Return how to deny where no form can open."""
    text = f":no_entry: No form could open. To deny, write {context.mention(f'deny {run.id} why')}."
    return compose(text, [section(text)])


def no_form(instead: str) -> Message:
    """Return the answer where no form could open."""
    text = f":no_entry: No form could open. Type it instead: {code(instead)}."
    return compose(text, [section(text)])


def options_view(spec: ActionSpec, host: str, hosts: Sequence[str], *, callback: str, metadata: str) -> Block:
    """Return the form of an action's options; each field is one option, and an empty field is not given."""
    blocks = [_choice(HOST, "Host", "", list(hosts)[:100], chosen=host, optional=False)]
    for name, field in spec.arguments.model_fields.items():
        choices = _choices(field.annotation)
        hint = field.description or ""
        if choices:
            blocks.append(_choice(f"{OPTION}{name}", name, hint, choices))
        else:
            blocks.append(_text_field(f"{OPTION}{name}", name, hint))
    return modal(f"{spec.label} options", blocks[:100], submit="Start", metadata=metadata, callback=callback)


def close_view(incident: IncidentRecord, *, callback: str, metadata: str) -> Block:
    """Return the form that closes an incident."""
    first = section(f"*{one_line(incident.title)}* on {one_line(incident.host)} ({code(incident.id)})")
    fields = [
        _text_field(CAUSE, "What was the cause?", "one line for the timeline"),
        _text_field(REPAIR, "How was it repaired?", "one line for the timeline"),
    ]
    return modal(
        "Close the incident", [first, *fields], submit="Close incident", metadata=metadata, callback=callback
    )


def _choices(annotation: Any) -> list[str]:
    """Return the values that an option accepts if it is a choice, else an empty list."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for arg in get_args(annotation) if (found := _choices(arg))), [])
    if annotation is bool:
        return ["true", "false"]
    return [str(value) for value in get_args(annotation)] if get_origin(annotation) is Literal else []


def _text_field(block_id: str, label: str, hint: str, *, long: bool = False) -> Block:
    element: Block = {"type": "plain_text_input", "action_id": FIELD, "max_length": MAX_REASON}
    return _input(block_id, label, hint, element | ({"multiline": True} if long else {}), optional=True)


def _choice(
    block_id: str, label: str, hint: str, values: Sequence[str], *, chosen: str = "", optional: bool = True
) -> Block:
    options = [{"text": {"type": "plain_text", "text": clip(value, 75)}, "value": value} for value in values]
    element: Block = {"type": "static_select", "action_id": FIELD, "options": options}
    initial = next((option for option in options if option["value"] == chosen), None)
    return _input(
        block_id, label, hint, element | ({"initial_option": initial} if initial else {}), optional=optional
    )


def _input(block_id: str, label: str, hint: str, element: Block, *, optional: bool) -> Block:
    block: Block = {
        "type": "input",
        "block_id": block_id,
        "label": {"type": "plain_text", "text": clip(label, 200)},
        "element": element,
        "optional": optional,
    }
    return block | ({"hint": {"type": "plain_text", "text": clip(hint, 200)}} if hint else {})
