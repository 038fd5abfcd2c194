"""`canvases.*`: documents that people edit. A standalone one can be opened only by those who were given access."""

import re
from typing import Any

from demo.workspace.records import JsonObject, StoredFile
from demo.workspace.webapi.call import ApiCall, ApiError, api_method

MAX_MARKDOWN = 1_048_576
MAX_TABLE_CELLS = 300
ACCESS_LEVELS = ("read", "write", "owner")
_HEADING = re.compile(r"#{4,6} ")
_CELL = re.compile(r"(?<!\\)\|")


@api_method("canvases.create", "canvases:write")
async def create(call: ApiCall) -> JsonObject:
    """Create a canvas. A team on the free plan must tab it in a channel (`channel_id`), which has one tab."""
    markdown = _markdown(call)
    channel = call.channel("channel_id", member=True) if call.text("channel_id") else None
    if call.state.team.plan == "free" and channel is None:
        raise ApiError("free_teams_cannot_create_non_tabbed_canvases")
    _check(markdown)
    title, data = call.text("title"), markdown.encode()
    canvas = StoredFile(
        id=call.state.new_id("F"),
        name=f"{title or 'Untitled'}.md",
        size=len(data),
        user=call.state.bot_user,
        title=title,
        uploaded=True,
        completed=True,
        is_canvas=True,
    )
    if channel is not None:
        canvas.access[channel.id] = "write"
    call.state.save_file(canvas, data)
    return {"canvas_id": canvas.id}


@api_method("canvases.access.set", "canvases:write")
async def access_set(call: ApiCall) -> JsonObject:
    """Give the members of channels, or people, access to a canvas."""
    canvas, level = _canvas(call), call.required("access_level")
    if level not in ACCESS_LEVELS:
        raise ApiError("invalid_arguments", "access_level is read, write or owner")
    channels, users = call.names("channel_ids"), call.names("user_ids")
    if bool(channels) == bool(users):
        raise ApiError("invalid_parameters")
    for channel_id in channels:
        channel = call.state.channels.get(channel_id)
        if channel is None or call.state.bot_user not in channel.members:
            raise ApiError("channel_not_found")
    if any(user not in call.state.people for user in users):
        raise ApiError("user_not_found")
    canvas.access |= dict.fromkeys((*channels, *users), level)
    call.state.save_file(canvas)
    return {}


@api_method("canvases.delete", "canvases:write")
async def delete(call: ApiCall) -> JsonObject:
    call.state.remove_file(_canvas(call).id)
    return {}


def _canvas(call: ApiCall) -> StoredFile:
    found = call.state.files.get(call.required("canvas_id"))
    if found is None or not found.is_canvas:
        raise ApiError("canvas_not_found")
    return found


def _markdown(call: ApiCall) -> str:
    content: Any = call.parsed("document_content")
    match content:
        case None:
            return ""
        case {"type": "markdown", "markdown": str(markdown)}:
            return markdown
    raise ApiError("invalid_arguments", "document_content is {type: markdown, markdown: TEXT}")


def _check(markdown: str) -> None:
    """Refuse what Slack's canvases refuse, with the line, as Slack does."""
    if len(markdown) > MAX_MARKDOWN:
        raise _refused(1, "the markdown is longer than 1 MiB")
    rows, in_code = 0, False
    for number, line in enumerate(markdown.splitlines(), 1):
        if line.startswith("```"):
            in_code = not in_code
        if in_code or not line.startswith("|"):
            rows = 0
        else:
            rows += 1
            if (rows - 1) * (len(_CELL.findall(line)) - 1) > MAX_TABLE_CELLS:  # the line of dashes has none
                raise _refused(number, f"a table may have {MAX_TABLE_CELLS} cells")
        if not in_code and _HEADING.match(line):
            raise _refused(number, "Unsupported heading depth")
        if not in_code and re.match(r">\s*([-*]|\d+\.) ", line):
            raise _refused(number, "Unsupported block type (List) within block quote")


def _refused(line: int, why: str) -> ApiError:
    return ApiError("canvas_creation_failed", fields={"detail": f"'content' error: line {line}: {why}"})
