"""An incident's report as a canvas that the members of a channel can edit. Its limits are Slack's."""

import contextlib
import re
from collections.abc import Iterator

from slack_sdk.web.async_client import AsyncWebClient

from bot.slack.identity import Identity
from bot.slack.posts import SLACK_FAILURES

MAX_TABLE_CELLS = 300
_RULE = re.compile(r"\|(\s*:?-+:?\s*\|)+$")
_CELL = re.compile(r"(?<!\\)\|")


async def create_canvas(
    client: AsyncWebClient, identity: Identity, *, title: str, markdown: str, channel: str
) -> str:
    """Create a canvas that the channel's members may edit. Return its link. Raises what `SLACK_FAILURES` lists.

    It stands alone and is linked, because a channel has room for few tabs.
    """
    content = {"type": "markdown", "markdown": fitted(markdown)}
    canvas = str((await client.canvases_create(title=title, document_content=content))["canvas_id"])
    try:
        await client.canvases_access_set(canvas_id=canvas, access_level="write", channel_ids=[channel])
    except SLACK_FAILURES:
        with contextlib.suppress(*SLACK_FAILURES):
            await client.canvases_delete(canvas_id=canvas)  # nobody could open it
        raise
    return f"{identity.team_url.rstrip('/')}/docs/{identity.team_id}/{canvas}"


def fitted(markdown: str) -> str:
    """Return Markdown whose tables are cut into several where they have more cells than a canvas takes in one."""
    return "\n".join(_cut(markdown.split("\n")))


def _cut(lines: list[str]) -> Iterator[str]:
    head: list[str] = []
    rows, in_code = 0, False
    for number, line in enumerate(lines):
        in_code ^= line.startswith("```")
        if in_code or not line.startswith("|"):
            head = []
        elif not head and number + 1 < len(lines) and _RULE.match(lines[number + 1]):
            head, rows = [line, lines[number + 1]], 0
        elif head and line != head[1]:
            rows += 1
            if (rows + 1) * (len(_CELL.findall(line)) - 1) > MAX_TABLE_CELLS:
                yield from ("", *head)
                rows = 1
        yield line
