"""`gpu-oncall workspace say|press|read|faults`: what these commands print, and their exit codes."""

import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict

from demo.workspace.client import ActResult, WorkspaceClient, WorkspaceError
from demo.workspace.transcript import ButtonNotFound, rendered

FAILED = 1
USAGE_ERROR = 2


async def _run(url: str, act: Callable[[WorkspaceClient], Awaitable[ActResult | str]]) -> int:
    """Run one act and print what comes of it. Returns 0; 1 if the app did not answer; 2 if the workspace refused."""
    try:
        async with WorkspaceClient(url) as client:
            result = await act(client)
    except (WorkspaceError, ButtonNotFound) as error:
        print(f"workspace: {error}", file=sys.stderr)
        return USAGE_ERROR
    for text in (result,) if isinstance(result, str) else result.notes:
        print(text)
    if isinstance(result, ActResult) and not result.ok:
        print(f"workspace: {result.error or 'the app did not answer'}", file=sys.stderr)
        return FAILED
    return 0


async def say(url: str, *, user: str, channel: str, text: str, thread: str | None) -> int:
    """Write a message or run a command as `user`. Returns the exit code."""
    return await _run(url, lambda client: client.say(user, channel, text, thread))


async def react(url: str, *, user: str, channel: str, ts: str, name: str) -> int:
    """Put a reaction on a message. Return the exit code."""
    return await _run(url, lambda client: client.react(user, channel, ts, name))


async def press(
    url: str, *, user: str, button: str, run: str | None, ts: str | None, channel: str | None
) -> int:
    """Press a button as `user`. Returns the exit code."""
    return await _run(url, lambda client: client.press(user, button, run=run, ts=ts, channel=channel))


async def read(url: str, *, channel: str, user: str | None, as_json: bool) -> int:
    """Print a channel. Returns the exit code."""

    async def text(client: WorkspaceClient) -> str:
        messages = await client.read(channel, user=user)
        return json.dumps([asdict(entry) for entry in messages], indent=1) if as_json else rendered(messages)

    return await _run(url, text)


async def faults(url: str, *, switches: Sequence[str]) -> int:
    """Switch faults of Slack and print those that are on. Returns the exit code."""

    async def text(client: WorkspaceClient) -> str:
        return " ".join(await client.switch_faults(*switches)) or "no fault is on"

    return await _run(url, text)
