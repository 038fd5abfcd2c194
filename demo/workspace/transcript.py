"""A conversation as data for programs and as text for terminals: messages with their threads, buttons and files.

Pure functions over the JSON that the workspace serves.
"""

import re
import time
from dataclasses import dataclass, replace

from demo.workspace.blocks import block_lines, pressable_elements
from demo.workspace.plain_text import Names, plain
from demo.workspace.records import JsonObject


@dataclass(frozen=True, slots=True)
class ReadButton:
    """A button or menu of a message. The app receives `value` with a press; `options` are a menu's values."""

    kind: str
    text: str
    action_id: str
    block_id: str
    value: str = ""
    style: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file of a message; `url` serves its bytes."""

    id: str
    name: str
    title: str
    media_type: str
    size_bytes: int
    url: str


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """A message as a reader sees it. `text` is the whole message as plain text; `fallback` its own text field.

    `visible_to` names the only person who sees it; `replies` are the messages of its thread, oldest first.
    """

    channel: str
    ts: str
    user: str
    text: str
    fallback: str = ""
    thread_ts: str | None = None
    visible_to: str | None = None
    edited: bool = False
    from_app: bool = False
    blocks: tuple[JsonObject, ...] = ()
    buttons: tuple[ReadButton, ...] = ()
    files: tuple[ReadFile, ...] = ()
    reactions: tuple[str, ...] = ()
    metadata: JsonObject | None = None
    replies: tuple["ReadMessage", ...] = ()


class ButtonNotFound(ValueError):
    """Raised if no message has the wanted button; the message lists the buttons that exist."""


def message_lines(message: JsonObject, names: Names) -> list[str]:
    """Return the lines of a message: its blocks, or its text if it has none, then attachments and files."""
    blocks = message.get("blocks") or []
    lines = block_lines(blocks, names)
    texts = [] if blocks else [message.get("text")]
    texts += [entry.get("text") or entry.get("fallback") for entry in message.get("attachments") or []]
    for text in texts:
        lines += plain(str(text), names).split("\n") if text else []
    for file in message.get("files") or []:
        lines.append(f"[file] {file['title']} ({file['name']}, {file['size']} bytes): {file['url_private']}")
    return lines


def conversation(messages: list[JsonObject], names: Names) -> tuple[ReadMessage, ...]:
    """Return the messages of one or more channels, oldest first, each with the replies of its thread.

    Replies to a deleted message appear on their own.
    """
    read = [_message(message, names) for message in messages]
    roots = {(entry.channel, entry.ts) for entry in read if entry.thread_ts is None}
    replies: dict[tuple[str, str], list[ReadMessage]] = {}
    top = []
    for entry in read:
        root = (entry.channel, entry.thread_ts or "")
        if root in roots:
            replies.setdefault(root, []).append(entry)
        else:
            top.append(entry)
    threaded = [replace(entry, replies=tuple(replies.get((entry.channel, entry.ts), ()))) for entry in top]
    return tuple(sorted(threaded, key=lambda entry: float(entry.ts)))


def _message(message: JsonObject, names: Names) -> ReadMessage:
    thread_ts = message.get("thread_ts")
    visible_to = message.get("visible_to")
    return ReadMessage(
        channel=message["channel"],
        ts=message["ts"],
        user=names.get(message["user"], message["user"]),
        text="\n".join(message_lines(message, names)),
        fallback=message.get("text", ""),
        thread_ts=thread_ts if thread_ts != message["ts"] else None,
        visible_to=names.get(visible_to, visible_to) if visible_to else None,
        edited=bool(message.get("edited")),
        from_app="bot_id" in message,
        blocks=tuple(message.get("blocks") or ()),
        buttons=tuple(
            _button(block, element, names)
            for block, element in pressable_elements(message.get("blocks") or [])
        ),
        files=tuple(
            ReadFile(*(file[name] for name in ("id", "name", "title", "mimetype", "size", "url_private")))
            for file in message.get("files") or ()
        ),
        reactions=tuple(entry["name"] for entry in message.get("reactions") or ()),
        metadata=message.get("metadata"),
    )


def _button(block: JsonObject, element: JsonObject, names: Names) -> ReadButton:
    label = element.get("text") or element.get("placeholder") or {}
    return ReadButton(
        kind=element["type"],
        text=plain(label.get("text", ""), names),
        action_id=element["action_id"],
        block_id=block["block_id"],
        value=element.get("value") or "",
        style=element.get("style") or "",
        options=tuple(option.get("value", "") for option in element.get("options") or ()),
    )


def find_button(
    read: tuple[ReadMessage, ...], word: str, *, run: str | None = None, ts: str | None = None
) -> tuple[ReadMessage, ReadButton]:
    """Return the button called `word` (its text, or the last part of its action id) in the newest message that has it.

    With `run` the button's value must name that run; with `ts` it must be in that message. Raises ButtonNotFound.
    """
    seen = []
    flat = [entry for message in read for entry in (message, *message.replies)]
    for message in sorted(flat, key=lambda entry: float(entry.ts), reverse=True):
        if ts is not None and message.ts != ts:
            continue
        for button in message.buttons:
            # Run ids contain hyphens (`fb-7k2m`), so a hyphen does not end a word.
            if run is not None and not re.search(rf"(?<![\w-]){re.escape(run)}(?![\w-])", button.value):
                continue
            last_part = re.split(r"[.:]", button.action_id)[-1]
            if word.casefold() in (button.text.casefold(), last_part.casefold()):
                return message, button
            seen.append(button.text)
    where = f"with run {run}" if run else f"in message {ts}" if ts else "here"
    known = ", ".join(dict.fromkeys(seen))
    raise ButtonNotFound(
        f"there is no button {word!r} {where}; "
        + (f"there are: {known}" if known else "there are no buttons at all")
    )


def rendered(read: tuple[ReadMessage, ...]) -> str:
    """Render a conversation for a terminal: time, name, message; replies indented; private notes marked."""
    lines: list[str] = []
    for message in read:
        lines += _rendered_message(message, "")
        for reply in message.replies:
            lines += _rendered_message(reply, "    | ")
        lines.append("")
    return "\n".join(lines).rstrip("\n")


def _rendered_message(message: ReadMessage, indent: str) -> list[str]:
    clock = time.strftime("%H:%M:%S", time.localtime(float(message.ts)))
    marks = f"  (only visible to {message.visible_to})" if message.visible_to else ""
    marks += "  (edited)" if message.edited else ""
    lines = [f"{clock}  {message.user}{marks}", *(f"  {line}" for line in message.text.split("\n"))]
    return [(indent + line).rstrip() for line in lines]
