"""A message as data, and the function that makes it fit Slack's limits.

A message is composed of parts: blocks that must stay, and lists of lines that may be shortened. `compose` drops lines from
the longest list until everything fits, and says how many it dropped. Slack documents 50 blocks, 3,000 characters per section
and 150 per header (docs.slack.dev/reference/block-kit/blocks); the total of about 13,200 characters of JSON is undocumented.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bot.presenter.mrkdwn import clip, clip_escaped, one_line, unescape
from gpu_actions.system.redact import redact

Block = dict[str, Any]

MAX_BLOCKS = 50
MAX_MODAL_BLOCKS = 100
MAX_MODAL_TITLE = 24
MAX_SECTION = 3000
MAX_HEADER = 150
MAX_TOTAL = 13_200
MAX_MODAL_TOTAL = 100_000
"""Slack refuses a view above 250,000 bytes (`view_too_large`); nobody reads that much on a phone."""
MAX_TEXT = 3000
MAX_BUTTON_TEXT = 75
MAX_BUTTON_VALUE = 2000
MAX_LINE = 600
MAX_LINES = 200
MAX_CONTEXT = 1000
_ROOM_FOR_BLOCK_IDS = 60


TaskStatus = Literal["pending", "in_progress", "complete", "error"]
TASK_SIGNS = {
    "pending": ":white_circle:",
    "in_progress": ":hourglass_flowing_sand:",
    "complete": ":white_check_mark:",
    "error": ":x:",
}


@dataclass(frozen=True)
class Message:
    """A message to post: `text` for notifications and screen readers, `blocks` for the screen."""

    text: str
    blocks: tuple[Block, ...] = ()

    def stamped(self, prefix: str) -> "Message":
        """Return the message with a `block_id` per block; a new prefix at each edit makes clients redraw it."""
        blocks = tuple({**block, "block_id": f"{prefix}:{n}"} for n, block in enumerate(self.blocks))
        return replace(self, blocks=blocks)

    def renamed(self, commands: Mapping[str, str]) -> "Message":
        """Return the message with renamed slash commands; `commands` maps a name to its slash command in the settings.

        Texts of the actions say `/triage`, which may be another app's command here.
        """
        if not commands:
            return self
        names = "|".join(re.escape(name) for name in commands)
        command = re.compile(rf"(?<![\w/-])/({names})(?![\w/-])")

        def renamed(value: Any) -> Any:
            if isinstance(value, str):
                return command.sub(lambda found: commands[found[1]], value)
            if isinstance(value, dict):
                return {key: renamed(item) for key, item in value.items()}
            return [renamed(item) for item in value] if isinstance(value, list) else value

        return Message(renamed(self.text), tuple(renamed(block) for block in self.blocks))

    def plain(self) -> "Message":
        """Return the message with its plan, table and charts as lines of text; unchanged if it has none."""
        if not any(block["type"] in _AS_LINES for block in self.blocks):
            return self
        blocks = [
            section("\n".join(_AS_LINES[block["type"]](block)))
            | {name: block[name] for name in ("block_id",) if name in block}
            if block["type"] in _AS_LINES
            else block
            for block in self.blocks
        ]
        return replace(self, blocks=tuple(blocks))

    def simpler(self) -> "Message":
        """Return the message for a Slack that refuses its blocks: native ones as lines of text, else the text alone."""
        plain = self.plain()
        return replace(self, blocks=()) if plain is self else plain


@dataclass(frozen=True)
class Lines:
    """Lines of mrkdwn of which `dropped` are left out at the end that `drop` names; `noun` is what the count calls them."""

    lines: tuple[str, ...]
    noun: str = "lines"
    drop: Literal["end", "start"] = "end"
    small: bool = False
    dropped: int = 0

    @property
    def kept(self) -> tuple[str, ...]:
        if self.drop == "start":
            return self.lines[self.dropped :]
        return self.lines[: len(self.lines) - self.dropped]

    def blocks(self) -> list[Block]:
        """Return the kept lines in as few blocks as possible, with a note on the dropped ones."""
        note = f"_... {self.dropped} {'earlier' if self.drop == 'start' else 'more'} {self.noun}_"
        notes = (note,) if self.dropped else ()
        limit, make = (MAX_CONTEXT, footnote) if self.small else (MAX_SECTION, section)
        chunks: list[str] = []
        for line in (*notes, *self.kept) if self.drop == "start" else (*self.kept, *notes):
            if chunks and len(chunks[-1]) + 1 + len(line) <= limit:
                chunks[-1] += "\n" + line
            else:
                chunks.append(line)
        return [make(chunk) for chunk in chunks]


Part = Block | Lines


def header(text: str) -> Block:
    return {
        "type": "header",
        "text": {"type": "plain_text", "text": clip(" ".join(redact(text).text.split()), MAX_HEADER)},
    }


def section(text: str) -> Block:
    """Return a section of escaped mrkdwn, clipped to 3,000 characters."""
    return {"type": "section", "text": {"type": "mrkdwn", "text": clip_escaped(text, MAX_SECTION) or " "}}


def footnote(*texts: str) -> Block:
    """Return a context block: small grey text, at most ten elements."""
    shown = [text for text in texts if text][:10] or [" "]
    return {
        "type": "context",
        "elements": [{"type": "mrkdwn", "text": clip_escaped(text, MAX_CONTEXT)} for text in shown],
    }


def button(
    label: str,
    action_id: str,
    value: str,
    *,
    style: Literal["primary", "danger"] | None = None,
    confirm: str = "",
) -> Block:
    """Return a button that carries only an id. `confirm` is the question asked before a press that cannot be undone."""
    if len(value) > MAX_BUTTON_VALUE:
        raise ValueError(f"a button carries an id, not {len(value)} characters")
    element: Block = {
        "type": "button",
        "text": {"type": "plain_text", "text": clip(label, MAX_BUTTON_TEXT)},
        "action_id": action_id,
        "value": value,
    }
    if style is not None:
        element["style"] = style
    if confirm:
        element["confirm"] = {
            "title": {"type": "plain_text", "text": "Are you sure?"},
            "text": {"type": "plain_text", "text": clip(confirm, 300)},
            "confirm": {"type": "plain_text", "text": clip(label, 30)},
            "deny": {"type": "plain_text", "text": "Back"},
        }
    return element


def actions(*buttons: Block) -> Block:
    return {"type": "actions", "elements": list(buttons)}


def table(rows: Sequence[Sequence[str]]) -> Block:
    """Return a native table; its first row is the head, its first column the names. Slack accepts one per message."""
    cells = [
        [{"type": "raw_text", "text": clip(redact(cell).text, 60) or "-"} for cell in row] for row in rows
    ]
    align = [{"align": "left"}, *({"align": "right"} for _ in rows[0][1:])]
    return {"type": "table", "rows": cells, "column_settings": align}


def plan(title: str, tasks: Sequence[Block]) -> Block:
    """Return a native plan: a title and its tasks. Slack accepts one per message and 50 tasks."""
    return {"type": "plan", "title": _literal(title, 150), "tasks": list(tasks)[:50]}


def task(task_id: str, title: str, status: TaskStatus, *, details: str = "") -> Block:
    """Return a task card of a plan; `title` and `details` are escaped text, which the block shows literally."""
    card: Block = {
        "type": "task_card",
        "task_id": task_id[:255],
        "title": _literal(title, 150),
        "status": status,
    }
    if not details:
        return card
    text = {"type": "text", "text": _literal(details, 300)}
    parts = [{"type": "rich_text_section", "elements": [text]}]
    return card | {"details": {"type": "rich_text", "elements": parts}}


def chart(
    title: str,
    categories: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    kind: Literal["bar", "line"] = "bar",
    x_label: str = "",
    y_label: str = "",
) -> Block:
    """Return a native chart of at most 6 series with 20 points. Slack accepts two per message."""
    labels = list(dict.fromkeys(_literal(category, 20) for category in categories))
    if len(labels) != len(categories) or not 1 <= len(labels) <= 20 or not 1 <= len(series) <= 6:
        raise ValueError("a chart has 1 to 20 different categories and 1 to 6 series")
    drawn = [
        {
            "name": _literal(name, 20),
            "data": [{"label": label, "value": value} for label, value in zip(labels, values, strict=True)],
        }
        for name, values in series.items()
    ]
    axis: Block = {"categories": labels}
    axis |= {"x_label": _literal(x_label, 50)} if x_label else {}
    axis |= {"y_label": _literal(y_label, 50)} if y_label else {}
    shape = {"type": kind, "series": drawn, "axis_config": axis}
    return {"type": "data_visualization", "title": _literal(title, 50), "chart": shape}


def _literal(escaped: str, limit: int) -> str:
    """Return escaped text for a field that Slack shows as it is, never empty."""
    return clip(" ".join(redact(unescape(escaped)).text.split()), limit) or "-"


def _table_lines(block: Block) -> list[str]:
    head, *rows = [[cell["text"] for cell in row] for row in block["rows"]]
    lines = []
    for name, *values in rows:
        figures = ", ".join(f"{column} {value}" for column, value in zip(head[1:], values, strict=False))
        lines.append(f"*{one_line(name)}* {one_line(figures)}")
    return lines


def _plan_lines(block: Block) -> list[str]:
    lines = [f"*{one_line(block['title'])}*"]
    for card in block["tasks"]:
        details = card.get("details")
        said = f" {one_line(details['elements'][0]['elements'][0]['text'])}" if details else ""
        lines.append(f"{TASK_SIGNS[card['status']]} {one_line(card['title'])}{said}")
    return lines


def _chart_lines(block: Block) -> list[str]:
    lines = [f"*{one_line(block['title'])}*"]
    for one in block["chart"]["series"]:
        points = ", ".join(f"{point['label']}: {point['value']:g}" for point in one["data"])
        lines.append(f"*{one_line(one['name'])}* {one_line(points, 600)}")
    return lines


_AS_LINES: Mapping[str, Callable[[Block], list[str]]] = {
    "table": _table_lines,
    "plan": _plan_lines,
    "data_visualization": _chart_lines,
}
"""How each of Slack's newer blocks reads where Slack refuses it."""


def modal(
    title: str, blocks: Sequence[Block], *, submit: str = "", metadata: str = "", callback: str = ""
) -> Block:
    """Return a modal; `metadata` comes back with its submission. Without `submit` it can only be closed."""
    view: Block = {
        "type": "modal",
        "title": {"type": "plain_text", "text": clip(title, MAX_MODAL_TITLE)},
        "close": {"type": "plain_text", "text": "Close"},
        "blocks": list(blocks),
        "private_metadata": metadata,
        "callback_id": callback,
    }
    return view | (
        {"submit": {"type": "plain_text", "text": clip(submit, MAX_MODAL_TITLE)}} if submit else {}
    )


def compose(text: str, parts: Sequence[Part], *, of_modal: bool = False) -> Message:
    """Compose a message of at most 50 blocks and 13,200 characters of JSON; a modal may be larger.

    Lines are dropped from the longest list first. Blocks are dropped only if they alone are too many, from the end.
    """
    room = (MAX_MODAL_BLOCKS, MAX_MODAL_TOTAL) if of_modal else (MAX_BLOCKS, MAX_TOTAL)
    fitted = [_clipped(part) if isinstance(part, Lines) else part for part in parts]
    while True:
        blocks = [b for part in fitted for b in (part.blocks() if isinstance(part, Lines) else (part,))]
        shrinkable = [part for part in fitted if isinstance(part, Lines) and part.kept]
        if _fits(blocks, *room) or not shrinkable:
            break
        longest = max(shrinkable, key=lambda part: sum(len(line) + 1 for line in part.kept))
        # Steps of a tenth are fast for thousands of lines and exact for a few.
        more = longest.dropped + max(1, len(longest.kept) // 10)
        fitted[fitted.index(longest)] = replace(longest, dropped=more)
    while len(blocks) > 1 and not _fits(blocks, *room):
        blocks.pop()
    return Message(clip_escaped(text, MAX_TEXT), tuple(blocks))


def _clipped(part: Lines) -> Lines:
    lines = tuple(clip_escaped(line, MAX_LINE) for line in part.lines if line)
    return replace(part, lines=lines, dropped=max(0, len(lines) - MAX_LINES))


def _fits(blocks: Sequence[Block], max_blocks: int, max_total: int) -> bool:
    """Return True if Slack accepts the blocks, with room for the block ids that `stamped` adds."""
    size = len(json.dumps(list(blocks), ensure_ascii=False)) + _ROOM_FOR_BLOCK_IDS * len(blocks)
    return len(blocks) <= max_blocks and size <= max_total
