"""The end of an engine's log as it may leave the host: whole lines, without prompts and completions of users.

The patterns of every engine apply to every log, because a tier of an unknown kind may run any of them.
"""

import re

from gpu_actions.serving.interfaces import Unit
from gpu_actions.serving.registry import PROMPT_LINES
from gpu_actions.system.redact import whole_lines

REMOVED = "[prompt removed]"

PIECE_CHARACTERS = 12_000
"""Docker splits lines at 16 KiB, journald at 48 KiB. A line this long may go on in the next, which then has no head."""

_HEAD = re.compile(
    r"\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)(?::\s|\s\d\d-\d\d )|\[\d{4}-\d\d-\d\d[ T]\d\d:"
    r"|\"(?:event|level)\":|\bTraceback \("
)
"""What a new line of a log begins with, apart from the prefix of the journal."""


async def read_engine_log(unit: Unit, max_bytes: int) -> tuple[str, bool]:
    """Return the end of a unit's log without prompts, and whether it has more. Raises what the unit raises."""
    text = await unit.log_tail(max_bytes)
    cut = len(text.encode(errors="replace")) >= max_bytes
    return without_prompts(whole_lines(text, cut=cut)), cut


def without_prompts(log: str) -> str:
    """Return an engine's log without the prompts and completions that its request logging wrote."""
    kept: list[str] = []
    inside = False
    for line in log.splitlines(keepends=True):
        ending = line[len(line.rstrip("\r\n")) :]
        new = _HEAD.search(line[:400]) is not None
        found = next((match for pattern in PROMPT_LINES if (match := pattern.match(line))), None)
        long = len(line) >= PIECE_CHARACTERS
        if found is not None:
            kept.append(f"{found.group(1)}{REMOVED}{ending}")
            inside = long
        elif new or not (inside or long):
            kept.append(line)
            inside = False
        else:  # a piece of a line that was split
            inside = inside or long
            if not kept or not kept[-1].startswith(REMOVED):
                kept.append(f"{REMOVED}{ending}")
    return "".join(kept)
