"""The terminal's side of the workspace: what `gpu-oncall workspace say|press|read` print, and their exit codes."""

import json
import sys

from demo.workspace.client import ActResult, WorkspaceClient, WorkspaceError, rendered
from demo.workspace.reading import ButtonNotFound

FAILED = 1
USAGE_ERROR = 2


def _shown(result: ActResult) -> int:
    for note in result.notes:
        print(note)
    if not result.ok:
        print(f"workspace: {result.error or 'the app did not answer'}", file=sys.stderr)
        return FAILED
    return 0


def _refused(error: Exception) -> int:
    print(f"workspace: {error}", file=sys.stderr)
    return USAGE_ERROR


async def say(url: str, *, user: str, channel: str, text: str, thread: str | None) -> int:
    """Write or command as `user`. Exit 0; 1 when the app did not answer; 2 when the workspace refused."""
    try:
        async with WorkspaceClient(url) as client:
            return _shown(await client.say(user, channel, text, thread))
    except WorkspaceError as error:
        return _refused(error)


async def press(
    url: str, *, user: str, button: str, run: str | None, ts: str | None, channel: str | None
) -> int:
    """Press a button as `user`. Exit as `say`."""
    try:
        async with WorkspaceClient(url) as client:
            return _shown(await client.press(user, button, run=run, ts=ts, channel=channel))
    except (WorkspaceError, ButtonNotFound) as error:
        return _refused(error)


async def read(url: str, *, channel: str, user: str | None, as_json: bool) -> int:
    """Print a channel. Exit 0; 2 when the workspace refused."""
    try:
        async with WorkspaceClient(url) as client:
            messages = await client.read(channel, user=user)
    except WorkspaceError as error:
        return _refused(error)
    if as_json:
        print(json.dumps([message.model_dump(mode="json") for message in messages], indent=1))
    else:
        print(rendered(messages))
    return 0
