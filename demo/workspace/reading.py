"""A channel as data for programs and terminals: messages with their threads, buttons and files; and finding a button.

Pure functions over the JSON that the workspace serves.
"""

import re
import time
from collections.abc import Iterator

from demo.workspace.plain_text import Names, message_lines, plain
from gpu_actions.models import Frozen, JsonObject


class ReadButton(Frozen):
    """A button or menu of a message; `value` is what the app gets with a press. `options` are a menu's values."""

    kind: str
    text: str
    action_id: str
    block_id: str
    value: str = ""
    style: str = ""
    options: tuple[str, ...] = ()


class ReadFile(Frozen):
    """A file shown with a message; `url` gives its bytes."""

    id: str
    name: str
    title: str
    media_type: str
    size_bytes: int
    url: str


class ReadMessage(Frozen):
    """One message as a reader sees it. `text` is the whole message rendered plainly; `fallback` its own text field.

    `visible_to` names the one person who sees it, `replies` are the messages of its thread, oldest first.
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
    """No message has the wanted button; the text says which buttons there are."""


def conversation(messages: list[JsonObject], names: Names) -> tuple[ReadMessage, ...]:
    """The messages of one or more channels, oldest first, each with its thread's replies inside it.

    A reply whose first message is gone stands alone.
    """
    read = [_message(message, names) for message in messages]
    roots = {(entry.channel, entry.ts) for entry in read if entry.thread_ts is None}
    replies: dict[tuple[str, str], list[ReadMessage]] = {}
    top = []
    for entry in read:
        root = (entry.channel, entry.thread_ts or "")
        if entry.thread_ts is not None and root in roots:
            replies.setdefault(root, []).append(entry)
        else:
            top.append(entry)
    threaded = [
        entry.model_copy(update={"replies": tuple(replies.get((entry.channel, entry.ts), ()))})
        for entry in top
    ]
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
        buttons=tuple(_buttons(message, names)),
        files=tuple(
            ReadFile(
                id=file["id"],
                name=file["name"],
                title=file["title"],
                media_type=file["mimetype"],
                size_bytes=file["size"],
                url=file["url_private"],
            )
            for file in message.get("files") or ()
        ),
        reactions=tuple(entry["name"] for entry in message.get("reactions") or ()),
        metadata=message.get("metadata"),
    )


def _buttons(message: JsonObject, names: Names) -> Iterator[ReadButton]:
    for block in message.get("blocks") or []:
        elements = list(block.get("elements") or []) if block.get("type") == "actions" else []
        accessory = block.get("accessory")
        if isinstance(accessory, dict) and accessory.get("type") != "image":
            elements.append(accessory)
        for element in elements:
            label = element.get("text") or element.get("placeholder") or {}
            yield ReadButton(
                kind=element["type"],
                text=plain(label.get("text", ""), names),
                action_id=element["action_id"],
                block_id=block["block_id"],
                value=element.get("value") or "",
                style=element.get("style") or "",
                options=tuple(option.get("value", "") for option in element.get("options") or ()),
            )


def all_messages(read: tuple[ReadMessage, ...]) -> list[ReadMessage]:
    """Messages and replies in one list, oldest first."""
    flat = [entry for message in read for entry in (message, *message.replies)]
    return sorted(flat, key=lambda entry: float(entry.ts))


def _names_run(value: str, run: str) -> bool:
    # Run ids hold hyphens (`fb-7k2m`), so a hyphen does not end a token.
    return re.search(rf"(?<![\w-]){re.escape(run)}(?![\w-])", value) is not None


def _is_called(button: ReadButton, word: str) -> bool:
    wanted = word.casefold()
    return wanted in (button.text.casefold(), re.split(r"[.:]", button.action_id)[-1].casefold())


def find_button(
    read: tuple[ReadMessage, ...], word: str, *, run: str | None = None, ts: str | None = None
) -> tuple[ReadMessage, ReadButton]:
    """The button called `word` (its text, or the last part of its action id) in the newest message that has it.

    With `run` its value must name that run; with `ts` it must be in that message. Raises ButtonNotFound.
    """
    seen = []
    for message in reversed(all_messages(read)):
        if ts is not None and message.ts != ts:
            continue
        for button in message.buttons:
            if run is not None and not _names_run(button.value, run):
                continue
            if _is_called(button, word):
                return message, button
            seen.append(button.text)
    where = f"with run {run}" if run else f"in message {ts}" if ts else "here"
    known = ", ".join(dict.fromkeys(seen))
    raise ButtonNotFound(
        f"there is no button {word!r} {where}; "
        + (f"there are: {known}" if known else "there are no buttons at all")
    )


def rendered(read: tuple[ReadMessage, ...]) -> str:
    """A conversation for a terminal: time, name, message; replies indented; private notes marked."""
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
