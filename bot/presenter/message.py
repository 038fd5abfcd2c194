"""A message as data, and the one function that makes it fit Slack's sizes.

Builders give parts: blocks that must stay, and lists of lines that may be shortened. `compose` drops lines from the longest
list until everything fits, and says how many it dropped. Sizes: facts of Slack's documentation (50 blocks, 3,000 characters a
section, 150 a header) and the undocumented total of about 13,200 characters, measured here over the blocks' whole JSON.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bot.presenter.mrkdwn import clip, clip_escaped
from gpu_actions.system.redact import redact

Block = dict[str, Any]

MAX_BLOCKS = 50
MAX_SECTION = 3000
MAX_HEADER = 150
MAX_TOTAL = 13_200
MAX_TEXT = 3000
MAX_BUTTON_TEXT = 75
MAX_BUTTON_VALUE = 2000
MAX_LINE = 600
MAX_LINES = 200
MAX_CONTEXT = 1000
_ROOM_FOR_BLOCK_IDS = 60


@dataclass(frozen=True)
class Message:
    """What is posted: `text` for notifications and screen readers, `blocks` for the screen."""

    text: str
    blocks: tuple[Block, ...] = ()

    def stamped(self, prefix: str) -> "Message":
        """The same message with a `block_id` a block; a new prefix at each edit makes clients redraw it."""
        blocks = tuple({**block, "block_id": f"{prefix}:{n}"} for n, block in enumerate(self.blocks))
        return replace(self, blocks=blocks)


@dataclass(frozen=True)
class Lines:
    """Lines of mrkdwn that may be shortened. `noun` names them in "... 12 more findings"; `drop` is the end that goes first."""

    lines: tuple[str, ...]
    noun: str = "lines"
    drop: Literal["end", "start"] = "end"
    small: bool = False


Part = Block | Lines


def header(text: str) -> Block:
    return {
        "type": "header",
        "text": {"type": "plain_text", "text": clip(" ".join(redact(text).text.split()), MAX_HEADER)},
    }


def section(text: str) -> Block:
    """A section of mrkdwn; the text is escaped by its maker, and cut here at 3,000 characters."""
    return {"type": "section", "text": {"type": "mrkdwn", "text": clip_escaped(text, MAX_SECTION) or " "}}


def footnote(*texts: str) -> Block:
    """Small grey text; at most ten elements."""
    shown = [text for text in texts if text][:10] or [" "]
    return {
        "type": "context",
        "elements": [{"type": "mrkdwn", "text": clip_escaped(text, MAX_CONTEXT)} for text in shown],
    }


def divider() -> Block:
    return {"type": "divider"}


def button(
    label: str,
    action_id: str,
    value: str,
    *,
    style: Literal["primary", "danger"] | None = None,
    confirm: str = "",
) -> Block:
    """A button that carries only an id. `confirm` is the question asked before a press that cannot be taken back."""
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


def compose(text: str, parts: Sequence[Part]) -> Message:
    """Make a message of parts that Slack accepts: at most 50 blocks and 13,200 characters of JSON.

    Lists lose lines, the longest list first, each list saying how many it lost. Blocks that must stay are dropped only
    from the end, when they alone are too many (no builder here comes near).
    """
    lists = {
        n: replace(part, lines=tuple(clip_escaped(line, MAX_LINE) for line in part.lines if line))
        for n, part in enumerate(parts)
        if isinstance(part, Lines)
    }
    kept = {n: min(len(part.lines), MAX_LINES) for n, part in lists.items()}
    while True:
        blocks = _blocks(parts, lists, kept)
        too_long = total_size(blocks) - MAX_TOTAL
        if too_long <= 0 and len(blocks) <= MAX_BLOCKS:
            break
        longest = max(kept, key=lambda n: _length(lists[n], kept[n]), default=None)
        if longest is None or kept[longest] == 0:
            blocks = _cut(blocks)
            break
        # Steps of a tenth keep this quick for thousands of lines and exact for a few.
        kept[longest] -= max(1, kept[longest] // 10)
    return Message(clip_escaped(text, MAX_TEXT), tuple(blocks))


def total_size(blocks: Sequence[Block]) -> int:
    """Characters of the blocks' JSON, with room for the block ids that are put on later."""
    return len(json.dumps(list(blocks), ensure_ascii=False)) + _ROOM_FOR_BLOCK_IDS * len(blocks)


def _blocks(parts: Sequence[Part], lists: dict[int, Lines], kept: dict[int, int]) -> list[Block]:
    blocks: list[Block] = []
    for n, part in enumerate(parts):
        if isinstance(part, Lines):
            blocks.extend(_sections(lists[n], kept[n]))
        else:
            blocks.append(part)
    return blocks


def _sections(part: Lines, kept: int) -> list[Block]:
    """The lines in as few sections as hold them, with a note on those left out."""
    if not part.lines:
        return []
    dropped = len(part.lines) - kept
    shown = list(part.lines[dropped:] if part.drop == "start" else part.lines[:kept])
    if dropped:
        note = f"_... {dropped} {'earlier' if part.drop == 'start' else 'more'} {part.noun}_"
        shown = [note, *shown] if part.drop == "start" else [*shown, note]
    limit = MAX_CONTEXT if part.small else MAX_SECTION
    make = footnote if part.small else section
    chunks: list[str] = []
    for line in shown:
        if chunks and len(chunks[-1]) + 1 + len(line) <= limit:
            chunks[-1] += "\n" + line
        else:
            chunks.append(line)
    return [make(chunk) for chunk in chunks]


def _length(part: Lines, kept: int) -> int:
    lines = part.lines[len(part.lines) - kept :] if part.drop == "start" else part.lines[:kept]
    return sum(len(line) + 1 for line in lines)


def _cut(blocks: list[Block]) -> list[Block]:
    blocks = blocks[:MAX_BLOCKS]
    while len(blocks) > 1 and total_size(blocks) > MAX_TOTAL:
        blocks = blocks[:-1]
    return blocks
