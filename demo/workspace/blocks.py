"""Block Kit: one walk over a message's blocks checks them as Slack does and renders them as plain text.

A kind of block is one function, registered under its type. It reports what Slack would refuse, in Slack's words, and
returns the block's lines for a terminal. Limits: docs.slack.dev/reference/block-kit (read November 2025). Slack does not
document the total size of a message; 13,200 is what bots measured (slackapi/bolt-js issues 2509 and 2867), counted here as
the length of the blocks' compact JSON.
"""

import copy
import json
import secrets
from collections.abc import Callable
from itertools import zip_longest

from demo.workspace.block_walk import INPUT_TYPES, BlockWalk, type_of
from demo.workspace.plain_text import Names
from demo.workspace.records import JsonObject

MAX_MESSAGE_BLOCKS = 50
MAX_VIEW_BLOCKS = 100
MAX_TOTAL_CHARACTERS = 13_200
MAX_TABLE_CHARACTERS = 10_000
MAX_PER_MESSAGE = {"table": 1, "plan": 1, "data_visualization": 2}
MAX_SERIES = 12
MAX_POINTS = 20
SURFACES: dict[str, tuple[str, ...]] = {
    "alert": ("modal",),
    "data_visualization": ("message",),
    "markdown": ("message",),
    "plan": ("message",),
    "table": ("message", "home"),
    "task_card": ("message",),
}
"""Where the blocks exist that are not for every surface."""


class BlocksError(Exception):
    """Raised for blocks that Slack refuses: `code` is Slack's error code, `messages` say what is wrong and where."""

    def __init__(self, code: str, messages: list[str]) -> None:
        super().__init__(f"{code}: {'; '.join(messages)}")
        self.code = code
        self.messages = messages


def checked_blocks(
    blocks: object,
    *,
    limit: int = MAX_MESSAGE_BLOCKS,
    total: int = MAX_TOTAL_CHARACTERS,
    surface: str = "message",
) -> list[JsonObject]:
    """Return a copy of the blocks with missing `block_id` and `action_id` filled in.

    `surface` is `message`, `modal` or `home`: some blocks exist on some of them only.

    Raises BlocksError (`invalid_blocks_format`, `invalid_blocks`, `msg_blocks_too_long`).
    """
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise BlocksError("invalid_blocks_format", ["blocks is not a list of objects"])
    copied: list[JsonObject] = copy.deepcopy(blocks)
    walk = BlockWalk({})
    if len(copied) > limit:
        walk.refuse(f"no more than {limit} items allowed", "/blocks")
    _walk(walk, copied)
    _check_surface(walk, copied, surface)
    if walk.problems:
        raise BlocksError("invalid_blocks", walk.problems)
    if len(json.dumps(copied, ensure_ascii=False, separators=(",", ":"))) > total:
        raise BlocksError("msg_blocks_too_long", [f"all blocks together exceed {total} characters"])
    for block in copied:
        block["block_id"] = block.get("block_id") or secrets.token_urlsafe(4)
    for _, element in walk.controls:
        element["action_id"] = element.get("action_id") or secrets.token_urlsafe(4)
    return copied


def _check_surface(walk: BlockWalk, blocks: list[JsonObject], surface: str) -> None:
    """Refuse blocks that the surface does not have, and more of a kind than one message may have."""
    for index, block in enumerate(blocks):
        if surface not in SURFACES.get(type_of(block), (surface,)):
            walk.refuse(f"unsupported type: {type_of(block)}", f"/blocks/{index}/type")
    for kind, most in MAX_PER_MESSAGE.items():
        many = f"no more than {most} {kind} blocks allowed"
        problem = f"only_one_{kind}_allowed" if most == 1 else many
        for index in [n for n, block in enumerate(blocks) if type_of(block) == kind][most:]:
            walk.refuse(problem, f"/blocks/{index}")


def sent_blocks(value: object) -> list[JsonObject] | None:
    """Return the checked blocks that an app sent as a list or as JSON text, or None if there are none.

    Raises BlocksError.
    """
    try:
        blocks = json.loads(value) if isinstance(value, str) and value else value
    except ValueError as error:
        raise BlocksError("invalid_blocks_format", [f"blocks is not JSON: {error}"]) from error
    return None if blocks in (None, "") else checked_blocks(blocks)


def block_lines(blocks: list[JsonObject], names: Names) -> list[str]:
    """Render blocks as lines of plain text. A block of an unknown type is named, not left out."""
    return _walk(BlockWalk(names), blocks)


def pressable_elements(blocks: list[JsonObject]) -> list[tuple[JsonObject, JsonObject]]:
    """Return `(block, element)` for every button and menu of a message; inputs of a form are left out."""
    walk = BlockWalk({})
    _walk(walk, blocks)
    return [(block, element) for block, element in walk.controls if block["type"] != "input"]


def _walk(walk: BlockWalk, blocks: list[JsonObject]) -> list[str]:
    lines: list[str] = []
    block_ids: set[str] = set()
    for index, block in enumerate(blocks):
        place = f"/blocks/{index}"
        kind = KINDS.get(type_of(block))
        if kind is None:
            walk.refuse(f"unsupported type: {type_of(block)}", f"{place}/type")
            lines.append(f"[{type_of(block)} block]")
        else:
            walk.length(block.get("block_id"), 255, f"{place}/block_id")
            lines += kind(walk, block, place)
        walk.unique("block_id", block, block_ids, place)
    return lines


Kind = Callable[[BlockWalk, JsonObject, str], list[str]]
KINDS: dict[str, Kind] = {}
"""What checks and renders a block, by the block's type."""


def block_kind(name: str) -> Callable[[Kind], Kind]:
    """Register the function that checks and renders the blocks of one type."""

    def register(kind: Kind) -> Kind:
        KINDS[name] = kind
        return kind

    return register


@block_kind("section")
def _section(walk: BlockWalk, block: JsonObject, place: str) -> list[str]:
    lines = []
    if "text" not in block and not block.get("fields"):
        walk.refuse("missing required field: text or fields", place)
    if "text" in block:
        lines += walk.text(block["text"], 3000, f"{place}/text").split("\n")
    if "fields" in block:
        for field, where in walk.items(block["fields"], 1, 10, f"{place}/fields"):
            lines.append("  " + walk.text(field, 2000, where).replace("\n", " "))
    if "accessory" in block:
        lines.append(walk.element(block, block["accessory"], f"{place}/accessory"))
    return lines


@block_kind("header")
def _header(walk: BlockWalk, block: JsonObject, place: str) -> list[str]:
    text = walk.text(block.get("text"), 150, f"{place}/text", plain_only=True)
    return [text, "=" * len(text)]


@block_kind("context")
def _context(walk: BlockWalk, block: JsonObject, place: str) -> list[str]:
    shown = []
    for element, where in walk.items(block.get("elements"), 1, 10, f"{place}/elements"):
        if type_of(element) == "image":
            walk.image(element, where)
            shown.append(f"[image: {element.get('alt_text')}]")
        else:
            shown.append(walk.text(element, 3000, where))
    return ["  " + "  ".join(shown)]


@block_kind("actions")
def _actions(walk: BlockWalk, block: JsonObject, place: str) -> list[str]:
    shown = []
    action_ids: set[str] = set()
    for element, where in walk.items(block.get("elements"), 1, 25, f"{place}/elements"):
        shown.append(walk.element(block, element, where))
        if isinstance(element, dict):
            walk.unique("action_id", element, action_ids, where, " in this block")
    return [" ".join(shown)]


@block_kind("markdown")
def _markdown(walk: BlockWalk, block: JsonObject, place: str) -> list[str]:
    if not isinstance(block.get("text"), str):
        walk.refuse("missing required field: text", place)
    walk.length(block.get("text"), 12_000, f"{place}/text")
    return str(block.get("text", "")).split("\n")


@block_kind("table")
def _table(walk: BlockWalk, block: JsonObject, place: str) -> list[str]:
    rows = []
    for row, where in walk.items(block.get("rows"), 1, 100, f"{place}/rows"):
        rows.append([_cell(walk, cell, at) for cell, at in walk.items(row, 1, 20, where)])
    if sum(len(cell) for row in rows for cell in row) > MAX_TABLE_CHARACTERS:
        walk.refuse(f"must be less than {MAX_TABLE_CHARACTERS + 1} characters", f"{place}/rows")
    for settings, where in walk.items(block.get("column_settings", []), 0, 20, f"{place}/column_settings"):
        if isinstance(settings, dict):
            walk.one_of(settings.get("align"), ("left", "center", "right"), f"{where}/align")
    widths = [max(len(cell) for cell in column) for column in zip_longest(*rows, fillvalue="")]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _cell(walk: BlockWalk, cell: object, place: str) -> str:
    kind = type_of(cell)
    if not isinstance(cell, dict) or kind not in ("raw_text", "raw_number", "rich_text"):
        walk.refuse(f"unsupported type: {kind}", f"{place}/type")
        return ""
    if kind == "rich_text":
        return walk.rich_text(cell, place).replace("\n", " ")
    if kind == "raw_text":
        walk.required(cell, "text", place)
    return str(cell.get("text", cell.get("value", ""))).replace("\n", " ")


@block_kind("plan")
def _plan(walk: BlockWalk, block: JsonObject, place: str) -> list[str]:
    walk.required(block, "title", place)
    lines = [str(block.get("title"))]
    for task, where in walk.items(block.get("tasks", []), 0, 50, f"{place}/tasks"):
        if isinstance(task, dict):
            walk.one_of(task.get("type", "task_card"), ("task_card",), f"{where}/type")
            lines += [f"  {line}" for line in walk.task(task, where)]
        else:
            walk.refuse("must be an object", where)
    return lines


@block_kind("data_visualization")
def _data_visualization(walk: BlockWalk, block: JsonObject, place: str) -> list[str]:
    """Check a chart (docs.slack.dev/reference/block-kit/blocks/data-visualization-block)."""
    walk.required(block, "title", place)
    walk.length(block.get("title"), 50, f"{place}/title")
    chart = block.get("chart")
    if not isinstance(chart, dict) or type_of(chart) not in ("pie", "bar", "area", "line"):
        walk.refuse("unsupported chart", f"{place}/chart")
        return [f"[chart: {block.get('title')}]"]
    lines = [f"[{type_of(chart)} chart: {block.get('title')}]"]
    if type_of(chart) == "pie":
        segments = list(walk.items(chart.get("segments"), 1, MAX_SERIES, f"{place}/chart/segments"))
        return [*lines, *(f"  {_point(walk, segment, where, least=0)}" for segment, where in segments)]
    axis = chart.get("axis_config")
    if not isinstance(axis, dict):
        walk.refuse("missing required field: axis_config", f"{place}/chart")
        axis = {}
    at = f"{place}/chart/axis_config"
    for name in ("x_label", "y_label"):
        walk.length(axis.get(name), 50, f"{at}/{name}")
    categories = [
        category for category, _ in walk.items(axis.get("categories"), 1, MAX_POINTS, f"{at}/categories")
    ]
    for index, category in enumerate(categories):
        walk.length(category, 20, f"{at}/categories/{index}")
    if len({str(category) for category in categories}) != len(categories):
        walk.refuse("categories must be unique", f"{at}/categories")
    names: set[str] = set()
    for series, where in walk.items(chart.get("series"), 1, MAX_SERIES, f"{place}/chart/series"):
        if not isinstance(series, dict):
            walk.refuse("must be an object", where)
            continue
        walk.required(series, "name", where)
        walk.length(series.get("name"), 20, f"{where}/name")
        walk.unique("name", series, names, where)
        data = list(walk.items(series.get("data"), 1, MAX_POINTS, f"{where}/data"))
        lines.append(f"  {series.get('name')}: {', '.join(_point(walk, one, point) for one, point in data)}")
        if [one.get("label") for one, _ in data if isinstance(one, dict)] != categories:
            walk.refuse("labels must match axis_config.categories", f"{where}/data")
    return lines


def _point(walk: BlockWalk, point: object, place: str, *, least: float | None = None) -> str:
    """Check a point of a series or a segment of a pie."""
    if not isinstance(point, dict):
        walk.refuse("must be an object", place)
        return ""
    walk.required(point, "label", place)
    walk.length(point.get("label"), 20, f"{place}/label")
    value = point.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        walk.refuse("must be a number", f"{place}/value")
    elif least is not None and value <= least:
        walk.refuse(f"must be greater than {least:g}", f"{place}/value")
    return f"{point.get('label')} {value}"


@block_kind("input")
def _input(walk: BlockWalk, block: JsonObject, place: str) -> list[str]:
    label = walk.text(block.get("label"), 2000, f"{place}/label", plain_only=True)
    if "hint" in block:
        walk.text(block["hint"], 2000, f"{place}/hint", plain_only=True)
    element = block.get("element")
    if type_of(element) not in INPUT_TYPES:
        walk.refuse(f"unsupported type: {type_of(element)}", f"{place}/element/type")
    elif isinstance(element, dict):
        walk.element(block, element, f"{place}/element")
        high = element.get("max_length")
        if high is not None and not (isinstance(high, int) and 1 <= high <= 3000):
            walk.refuse("must be between 1 and 3000", f"{place}/element/max_length")
    return [f"{label}: ____"]


@block_kind("alert")
def _alert(walk: BlockWalk, block: JsonObject, place: str) -> list[str]:
    if block.get("level") not in (None, "default", "info", "warning", "error", "success"):
        walk.refuse(f"unsupported level: {block['level']}", f"{place}/level")
    return [f"[{block.get('level', 'note')}] {walk.text(block.get('text'), 3000, f'{place}/text')}"]


block_kind("divider")(lambda walk, block, place: ["-" * 40])
block_kind("image")(lambda walk, block, place: [walk.image(block, place)])
block_kind("rich_text")(lambda walk, block, place: walk.rich_text(block, place).split("\n"))
block_kind("task_card")(BlockWalk.task)
