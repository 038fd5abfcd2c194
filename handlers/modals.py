"""How modals open, and what a person filled in. The module that owns a form declares it in its `FORMS`.

A trigger lives 3 s, so a skeleton opens at once and is filled when the content is ready. Where no modal can open (a mention,
an expired trigger) the person gets an answer instead. What a modal is about travels in its `private_metadata`.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from bot.presenter.message import Message, modal, section
from bot.slack.posts import SLACK_FAILURES
from handlers.call import Call

log = structlog.get_logger()

View = dict[str, Any]
Values = Mapping[str, str]
"""What a person filled in: block id -> text or the chosen value; an empty field is left out."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One kind of submission. `check` returns Slack's errors by block id before the acknowledgement; `submit` does the work."""

    submit: Callable[[Call, View, Values], Awaitable[None]]
    check: Callable[[Call, View, Values], Mapping[str, str]] = lambda call, about, values: {}


async def show(
    call: Call, title: str, build: Callable[[], Awaitable[View]], *, otherwise: Message | None = None
) -> None:
    """Open a skeleton, then fill it. If it cannot open, answer with `otherwise` or with the view's text."""
    opened = await _opened(call, title)
    view = await build()
    if opened is None:
        await call.answer(otherwise or _as_message(view))
        return
    try:
        await call.client.views_update(view_id=opened, view=view)
    except SLACK_FAILURES as error:
        log.warning("a modal could not be filled", what=call.what, error=repr(error))
        await call.answer(otherwise or _as_message(view))


async def _opened(call: Call, title: str) -> str | None:
    """Open a skeleton and return its view id, or None where the trigger is missing, used or too old."""
    if not call.trigger_id:
        return None
    skeleton = modal(title, [section(":hourglass_flowing_sand: One moment ...")])
    try:
        answer = await call.client.views_open(trigger_id=call.trigger_id, view=skeleton)
    except SLACK_FAILURES as error:
        log.info("no modal", what=call.what, error=repr(error))
        return None
    return str(answer["view"]["id"])


def _as_message(view: View) -> Message:
    """Return a view as a message: its blocks without the form's fields, as many as a message holds."""
    blocks = [block for block in view["blocks"] if block["type"] != "input"][:20]
    return Message(str(view["title"]["text"]), tuple(blocks))


def values_of(view: View) -> dict[str, str]:
    """Return what a person filled in, without the empty fields."""
    found: dict[str, str] = {}
    for block_id, elements in ((view.get("state") or {}).get("values") or {}).items():
        for element in elements.values():
            value = element.get("value") or (element.get("selected_option") or {}).get("value")
            if value and str(value).strip():
                found[str(block_id)] = str(value).strip()
    return found


def about_of(view: View) -> View:
    """Return what a modal is about; an empty object for one of another version."""
    try:
        about = json.loads(view.get("private_metadata") or "{}")
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}
