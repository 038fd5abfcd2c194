"""Messages as plain text for a terminal: mrkdwn and blocks to lines, emoji to short words, buttons in brackets."""

import re
from collections.abc import Callable, Mapping

from gpu_actions.models import JsonObject

EMOJI_WORDS = {
    "white_check_mark": "[ok]",
    "heavy_check_mark": "[ok]",
    "x": "[failed]",
    "no_entry": "[stop]",
    "no_entry_sign": "[stop]",
    "warning": "[!]",
    "rotating_light": "[!!]",
    "hourglass": "[..]",
    "hourglass_flowing_sand": "[..]",
    "large_green_circle": "[green]",
    "large_yellow_circle": "[yellow]",
    "large_orange_circle": "[orange]",
    "red_circle": "[red]",
    "white_circle": "[ ]",
    "large_blue_circle": "[blue]",
    "grey_question": "[?]",
    "question": "[?]",
}
TASK_WORDS = {"pending": "[ ]", "in_progress": "[..]", "complete": "[ok]", "error": "[failed]"}

Names = Mapping[str, str]
"""Names shown for user ids."""

_EMOJI = re.compile(r":([a-z0-9_+-]+):")
_MARK = re.compile(r"<([^<>]+)>")


def unescaped(text: str) -> str:
    """Slack's `&lt;`, `&gt;` and `&amp;` as the signs they stand for."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def plain(text: str, names: Names) -> str:
    """One mrkdwn text: mentions as names, links as `label (address)`, known emoji as words. Other marks stay."""

    def mark(found: re.Match[str]) -> str:
        body, _, label = found.group(1).partition("|")
        if body.startswith("@"):
            return f"@{names.get(body[1:], label or body[1:])}"
        if body.startswith("#"):
            return f"#{label or names.get(body[1:], body[1:])}"
        if body.startswith("!"):
            return label or "@" + body[1:].split("^")[0]
        address = body.removeprefix("mailto:")
        return f"{label} ({address})" if label and label != address else address

    worded = _EMOJI.sub(lambda found: EMOJI_WORDS.get(found.group(1), found.group(0)), text)
    return unescaped(_MARK.sub(mark, worded))


def message_lines(message: JsonObject, names: Names) -> list[str]:
    """The lines of a message: its blocks, or its text where it has none, then its files."""
    lines: list[str] = []
    for block in message.get("blocks") or []:
        lines.extend(block_lines(block, names))
    if not message.get("blocks") and message.get("text"):
        lines.extend(plain(message["text"], names).split("\n"))
    for attachment in message.get("attachments") or []:
        lines.extend(
            plain(str(attachment.get("text") or attachment.get("fallback") or ""), names).split("\n")
        )
    for file in message.get("files") or []:
        lines.append(f"[file] {file['title']} ({file['name']}, {file['size']} bytes): {file['url_private']}")
    return lines


def block_lines(block: JsonObject, names: Names) -> list[str]:
    """One block as lines. A block of an unknown type is named, not left out."""
    show = _BLOCKS.get(str(block.get("type")))
    return show(block, names) if show else [f"[{block.get('type')} block]"]


def _text_of(value: object, names: Names) -> str:
    return plain(str(value.get("text", "")), names) if isinstance(value, dict) else ""


def button_label(element: JsonObject, names: Names) -> str:
    """`[ Approve ]`, or `[ Choose: a | b ]` for a menu."""
    if element.get("type") == "button":
        return f"[ {_text_of(element.get('text'), names)} ]"
    options = " | ".join(_text_of(option.get("text"), names) for option in element.get("options") or [])
    return f"[ {_text_of(element.get('placeholder'), names) or 'choose'}: {options} ]"


def _section(block: JsonObject, names: Names) -> list[str]:
    lines = _text_of(block.get("text"), names).split("\n") if block.get("text") else []
    for field in block.get("fields") or []:
        lines.append("  " + _text_of(field, names).replace("\n", " "))
    accessory = block.get("accessory")
    if isinstance(accessory, dict):
        lines += (
            _image(accessory, names) if accessory["type"] == "image" else [button_label(accessory, names)]
        )
    return lines


def _header(block: JsonObject, names: Names) -> list[str]:
    text = _text_of(block.get("text"), names)
    return [text, "=" * len(text)]


def _context(block: JsonObject, names: Names) -> list[str]:
    shown = [
        f"[image: {element.get('alt_text')}]" if element.get("type") == "image" else _text_of(element, names)
        for element in block.get("elements") or []
    ]
    return ["  " + "  ".join(shown)]


def _actions(block: JsonObject, names: Names) -> list[str]:
    return [" ".join(button_label(element, names) for element in block.get("elements") or [])]


def _image(block: JsonObject, names: Names) -> list[str]:
    file = block.get("slack_file") or {}
    return [f"[image: {block.get('alt_text')}] {block.get('image_url') or file.get('url') or file.get('id')}"]


def rich_text(element: object, names: Names) -> str:
    """The text of a rich_text block or of any element in it."""
    if not isinstance(element, dict):
        return ""
    kind = element.get("type")
    if kind in (
        "rich_text",
        "rich_text_list",
        "rich_text_section",
        "rich_text_preformatted",
        "rich_text_quote",
    ):
        parts = [rich_text(entry, names) for entry in element.get("elements") or []]
        if kind == "rich_text_list":
            return "\n".join(f"- {part}" for part in parts)
        return ("\n" if kind == "rich_text" else "").join(parts)
    if kind == "user":
        user = str(element.get("user_id"))
        return f"@{names.get(user, user)}"
    if kind == "emoji":
        name = str(element.get("name"))
        return EMOJI_WORDS.get(name, f":{name}:")
    if kind == "link":
        url = str(element.get("url"))
        return f"{element['text']} ({url})" if element.get("text") else url
    return str(element.get("text") or element.get("channel_id") or "")


def _rich(block: JsonObject, names: Names) -> list[str]:
    return rich_text(block, names).split("\n")


def _cell(cell: JsonObject, names: Names) -> str:
    text = (
        rich_text(cell, names)
        if cell.get("type") == "rich_text"
        else str(cell.get("text", cell.get("value", "")))
    )
    return text.replace("\n", " ")


def _table(block: JsonObject, names: Names) -> list[str]:
    rows = [[_cell(cell, names) for cell in row] for row in block.get("rows") or []]
    columns = max((len(row) for row in rows), default=0)
    widths = [max((len(row[i]) for row in rows if i < len(row)), default=0) for i in range(columns)]
    return ["  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in rows]


def _task(block: JsonObject, names: Names) -> list[str]:
    lines = [f"{TASK_WORDS.get(str(block.get('status')), '[?]')} {block.get('title')}"]
    for name in ("details", "output"):
        if block.get(name):
            lines += [f"     {line}" for line in rich_text(block[name], names).split("\n")]
    return lines


def _plan(block: JsonObject, names: Names) -> list[str]:
    lines = [str(block.get("title"))]
    for task in block.get("tasks") or []:
        lines += [f"  {line}" for line in _task(task, names)]
    return lines


def _input(block: JsonObject, names: Names) -> list[str]:
    return [f"{_text_of(block.get('label'), names)}: ____"]


_BLOCKS: dict[str, Callable[[JsonObject, Names], list[str]]] = {
    "section": _section,
    "header": _header,
    "divider": lambda block, names: ["-" * 40],
    "context": _context,
    "actions": _actions,
    "image": _image,
    "rich_text": _rich,
    "markdown": lambda block, names: str(block.get("text", "")).split("\n"),
    "table": _table,
    "task_card": _task,
    "plan": _plan,
    "input": _input,
    "alert": lambda block, names: [f"[{block.get('level', 'note')}] {_text_of(block.get('text'), names)}"],
}
