"""What Slack checks of blocks before it takes a message, with the same error words.

Limits: docs.slack.dev/reference/block-kit (read November 2025). The total of a message is undocumented; 13,200 is what
bots measured (slackapi/bolt-js issues 2509 and 2867), counted here as the length of the blocks' compact JSON.
"""

import json
import secrets
from collections.abc import Callable, Iterator

from gpu_actions.models import JsonObject

MAX_MESSAGE_BLOCKS = 50
MAX_VIEW_BLOCKS = 100
MAX_TOTAL_CHARACTERS = 13_200

ELEMENT_TYPES = frozenset(
    {
        "button", "static_select", "overflow", "users_select", "channels_select", "conversations_select",
        "external_select", "multi_static_select", "multi_users_select", "checkboxes", "radio_buttons", "datepicker",
        "timepicker", "plain_text_input", "number_input", "image", "workflow_button",
    }
)  # fmt: skip
TASK_STATUSES = frozenset({"pending", "in_progress", "complete", "error"})

Problems = Iterator[tuple[str, str]]
"""Pairs of what is wrong and the JSON pointer of where."""


class BlocksError(Exception):
    """Blocks that Slack would refuse: `code` is its error word, `messages` say what is wrong and where."""

    def __init__(self, code: str, messages: list[str]) -> None:
        super().__init__(f"{code}: {'; '.join(messages)}")
        self.code = code
        self.messages = messages


def checked_blocks(blocks: object, *, limit: int = MAX_MESSAGE_BLOCKS) -> list[JsonObject]:
    """The blocks, checked and with `block_id` and `action_id` filled in where they were missing.

    Raises BlocksError (`invalid_blocks_format`, `invalid_blocks`, `msg_blocks_too_long`).
    """
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise BlocksError("invalid_blocks_format", ["blocks is not a list of objects"])
    problems: list[tuple[str, str]] = []
    if len(blocks) > limit:
        problems.append((f"no more than {limit} items allowed", "/blocks"))
    seen: set[str] = set()
    for index, block in enumerate(blocks):
        place = f"/blocks/{index}"
        problems.extend(_block(block, place))
        block_id = block.get("block_id")
        if block_id is not None:
            if block_id in seen:
                problems.append((f"`block_id` {block_id!r} already exists", f"{place}/block_id"))
            seen.add(str(block_id))
    if problems:
        raise BlocksError("invalid_blocks", [f"{what} [json-pointer:{where}]" for what, where in problems])
    if len(json.dumps(blocks, ensure_ascii=False, separators=(",", ":"))) > MAX_TOTAL_CHARACTERS:
        raise BlocksError(
            "msg_blocks_too_long", [f"all blocks together exceed {MAX_TOTAL_CHARACTERS} characters"]
        )
    return [_with_ids(block) for block in blocks]


def _with_ids(block: JsonObject) -> JsonObject:
    filled = {**block, "block_id": block.get("block_id") or secrets.token_urlsafe(4)}
    if isinstance(filled.get("elements"), list) and filled["type"] == "actions":
        filled["elements"] = [_with_action_id(element) for element in filled["elements"]]
    for name in ("accessory", "element"):
        if isinstance(filled.get(name), dict) and filled[name].get("type") != "image":
            filled[name] = _with_action_id(filled[name])
    return filled


def _with_action_id(element: JsonObject) -> JsonObject:
    return {**element, "action_id": element.get("action_id") or secrets.token_urlsafe(4)}


def _block(block: JsonObject, place: str) -> Problems:
    kind = block.get("type")
    check = _CHECKS.get(str(kind))
    if check is None:
        yield f"unsupported type: {kind}", f"{place}/type"
        return
    yield from _length(block.get("block_id"), 255, f"{place}/block_id")
    yield from check(block, place)


def _length(value: object, limit: int, place: str) -> Problems:
    if value is None:
        return
    if not isinstance(value, str):
        yield "must be a string", place
    elif len(value) > limit:
        yield f"must be less than {limit + 1} characters", place


def _text(value: object, limit: int, place: str, *, plain: bool = False) -> Problems:
    if not isinstance(value, dict):
        yield "missing required field: text object", place
        return
    kinds = ("plain_text",) if plain else ("plain_text", "mrkdwn")
    if value.get("type") not in kinds:
        yield f"must be one of {', '.join(kinds)}: {value.get('type')}", f"{place}/type"
    if not isinstance(value.get("text"), str) or not value["text"]:
        yield "must be more than 0 characters", f"{place}/text"
    else:
        yield from _length(value["text"], limit, f"{place}/text")


def _items(value: object, low: int, high: int, place: str) -> Problems:
    if not isinstance(value, list):
        yield "must be an array", place
    elif len(value) < low:
        yield f"no less than {low} items allowed", place
    elif len(value) > high:
        yield f"no more than {high} items allowed", place


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _section(block: JsonObject, place: str) -> Problems:
    if "text" not in block and not block.get("fields"):
        yield "missing required field: text or fields", place
    if "text" in block:
        yield from _text(block["text"], 3000, f"{place}/text")
    if "fields" in block:
        yield from _items(block["fields"], 1, 10, f"{place}/fields")
        for index, field in enumerate(_listed(block["fields"])):
            yield from _text(field, 2000, f"{place}/fields/{index}")
    if "accessory" in block:
        yield from _element(block["accessory"], f"{place}/accessory")


def _header(block: JsonObject, place: str) -> Problems:
    yield from _text(block.get("text"), 150, f"{place}/text", plain=True)


def _context(block: JsonObject, place: str) -> Problems:
    yield from _items(block.get("elements"), 1, 10, f"{place}/elements")
    for index, element in enumerate(_listed(block.get("elements"))):
        where = f"{place}/elements/{index}"
        if isinstance(element, dict) and element.get("type") == "image":
            yield from _image(element, where)
        else:
            yield from _text(element, 3000, where)


def _actions(block: JsonObject, place: str) -> Problems:
    yield from _items(block.get("elements"), 1, 25, f"{place}/elements")
    seen: set[str] = set()
    for index, element in enumerate(_listed(block.get("elements"))):
        where = f"{place}/elements/{index}"
        yield from _element(element, where)
        action_id = element.get("action_id") if isinstance(element, dict) else None
        if action_id is not None:
            if action_id in seen:
                yield f"`action_id` {action_id!r} already exists in this block", f"{where}/action_id"
            seen.add(str(action_id))


def _element(element: object, place: str) -> Problems:
    kind = element.get("type") if isinstance(element, dict) else None
    if not isinstance(element, dict) or kind not in ELEMENT_TYPES:
        yield f"unsupported type: {kind}", f"{place}/type"
        return
    yield from _length(element.get("action_id"), 255, f"{place}/action_id")
    if kind == "image":
        yield from _image(element, place)
    if kind == "button":
        yield from _text(element.get("text"), 75, f"{place}/text", plain=True)
        yield from _length(element.get("value"), 2000, f"{place}/value")
        yield from _length(element.get("url"), 3000, f"{place}/url")
        if element.get("style") not in (None, "primary", "danger"):
            yield f"must be one of primary, danger: {element['style']}", f"{place}/style"
    if "confirm" in element:
        yield from _confirm(element["confirm"], f"{place}/confirm")
    if (
        kind in ("static_select", "overflow", "checkboxes", "radio_buttons")
        and "option_groups" not in element
    ):
        yield from _items(element.get("options"), 1, 5 if kind == "overflow" else 100, f"{place}/options")
        for index, option in enumerate(_listed(element.get("options"))):
            where = f"{place}/options/{index}"
            if not isinstance(option, dict):
                yield "must be an object", where
                continue
            yield from _text(option.get("text"), 75, f"{where}/text")
            yield from _length(option.get("value"), 150, f"{where}/value")


def _confirm(confirm: object, place: str) -> Problems:
    if not isinstance(confirm, dict):
        yield "must be an object", place
        return
    yield from _text(confirm.get("title"), 100, f"{place}/title", plain=True)
    yield from _text(confirm.get("text"), 300, f"{place}/text")
    for name in ("confirm", "deny"):
        yield from _text(confirm.get(name), 30, f"{place}/{name}", plain=True)


def _image(block: JsonObject, place: str) -> Problems:
    if not isinstance(block.get("alt_text"), str) or not block["alt_text"]:
        yield "missing required field: alt_text", place
    yield from _length(block.get("alt_text"), 2000, f"{place}/alt_text")
    file = block.get("slack_file")
    if not block.get("image_url") and not (isinstance(file, dict) and (file.get("id") or file.get("url"))):
        yield "missing required field: image_url or slack_file", place
    yield from _length(block.get("image_url"), 3000, f"{place}/image_url")
    if isinstance(block.get("title"), dict):
        yield from _text(block["title"], 2000, f"{place}/title", plain=True)


def _rich_text(block: JsonObject, place: str) -> Problems:
    yield from _items(block.get("elements"), 1, 1000, f"{place}/elements")
    allowed = ("rich_text_section", "rich_text_list", "rich_text_preformatted", "rich_text_quote")
    for index, element in enumerate(_listed(block.get("elements"))):
        kind = element.get("type") if isinstance(element, dict) else None
        if not isinstance(element, dict) or kind not in allowed:
            yield f"unsupported type: {kind}", f"{place}/elements/{index}/type"
        else:
            yield from _items(element.get("elements"), 0, 1000, f"{place}/elements/{index}/elements")


def _markdown(block: JsonObject, place: str) -> Problems:
    if not isinstance(block.get("text"), str):
        yield "missing required field: text", place
    yield from _length(block.get("text"), 12_000, f"{place}/text")


def _table(block: JsonObject, place: str) -> Problems:
    yield from _items(block.get("rows"), 1, 100, f"{place}/rows")
    for number, row in enumerate(_listed(block.get("rows"))):
        yield from _items(row, 1, 20, f"{place}/rows/{number}")
        for index, cell in enumerate(_listed(row)):
            where = f"{place}/rows/{number}/{index}"
            kind = cell.get("type") if isinstance(cell, dict) else None
            if not isinstance(cell, dict) or kind not in ("raw_text", "raw_number", "rich_text"):
                yield f"unsupported type: {kind}", f"{where}/type"
            elif kind == "rich_text":
                yield from _rich_text(cell, where)
            elif kind == "raw_text" and not isinstance(cell.get("text"), str):
                yield "missing required field: text", where


def _task_card(block: JsonObject, place: str) -> Problems:
    for name in ("task_id", "title"):
        if not isinstance(block.get(name), str) or not block[name]:
            yield f"missing required field: {name}", place
    if block.get("status") not in TASK_STATUSES:
        yield f"must be one of {', '.join(sorted(TASK_STATUSES))}: {block.get('status')}", f"{place}/status"
    for name in ("details", "output"):
        value = block.get(name)
        if value is not None:
            if not isinstance(value, dict) or value.get("type") != "rich_text":
                yield "must be a rich_text block", f"{place}/{name}"
            else:
                yield from _rich_text(value, f"{place}/{name}")


def _plan(block: JsonObject, place: str) -> Problems:
    if not isinstance(block.get("title"), str) or not block["title"]:
        yield "missing required field: title", place
    yield from _items(block.get("tasks", []), 0, 50, f"{place}/tasks")
    for index, task in enumerate(_listed(block.get("tasks"))):
        if isinstance(task, dict):
            yield from _task_card(task, f"{place}/tasks/{index}")
        else:
            yield "must be an object", f"{place}/tasks/{index}"


def _input(block: JsonObject, place: str) -> Problems:
    yield from _text(block.get("label"), 2000, f"{place}/label", plain=True)
    yield from _element(block.get("element"), f"{place}/element")


def _alert(block: JsonObject, place: str) -> Problems:
    yield from _text(block.get("text"), 3000, f"{place}/text")
    if block.get("level") not in (None, "default", "info", "warning", "error", "success"):
        yield f"unsupported level: {block['level']}", f"{place}/level"


_CHECKS: dict[str, Callable[[JsonObject, str], Problems]] = {
    "section": _section,
    "header": _header,
    "divider": lambda block, place: iter(()),
    "context": _context,
    "actions": _actions,
    "image": _image,
    "rich_text": _rich_text,
    "markdown": _markdown,
    "table": _table,
    "task_card": _task_card,
    "plan": _plan,
    "input": _input,
    "alert": _alert,
}
