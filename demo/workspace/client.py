"""A client for people's side of the workspace: write, press and read as a chosen user, from programs and terminals.

`gpu-oncall workspace say|press|read` stands on it, so that an incident can be played over ssh.
"""

from types import TracebackType
from typing import Self

import aiohttp

from demo.workspace.front import CLIENT_HEADER
from demo.workspace.plain_text import message_lines
from demo.workspace.reading import ReadMessage, conversation, find_button, rendered
from gpu_actions.models import Frozen, JsonObject

DEFAULT_URL = "http://127.0.0.1:8800"
TIMEOUT_S = 30.0

__all__ = ["DEFAULT_URL", "ActResult", "WorkspaceClient", "WorkspaceError", "rendered"]


class WorkspaceError(Exception):
    """The workspace refused or could not be reached; the text says what to do."""


class ActResult(Frozen):
    """What came of an act at once.

    `kind` is `message`, `command`, `press` or `refused`; `ok` is false when the app did not answer (`error` is Slack's
    word); `ts` is the message written or pressed; `notes` are the plain texts shown to the person with it.
    """

    ok: bool
    kind: str
    ts: str | None = None
    error: str | None = None
    waited_ms: float = 0.0
    notes: tuple[str, ...] = ()


class WorkspaceClient:
    """Talks to the workspace at `url` as any of its users. Use it as an async context manager, or call `close`."""

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self._url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()

    async def _request(self, method: str, path: str, **arguments: JsonObject) -> JsonObject:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout, headers={CLIENT_HEADER: "terminal"})
        try:
            async with self._session.request(method, self._url + path, **arguments) as response:  # type: ignore[arg-type]
                if response.content_type != "application/json":
                    raise WorkspaceError(
                        (await response.text()).strip() or f"the workspace said {response.status}"
                    )
                body: JsonObject = await response.json()
        except aiohttp.ClientConnectionError as error:
            raise WorkspaceError(
                f"no workspace answers at {self._url}; start one with `make demo` or `python -m demo.workspace`"
            ) from error
        except TimeoutError as error:
            raise WorkspaceError(
                f"the workspace at {self._url} did not answer within {TIMEOUT_S:.0f} s"
            ) from error
        if response.status >= 400:
            raise WorkspaceError(str(body.get("error") or f"the workspace said {response.status}"))
        return body

    async def say(self, user: str, channel: str, text: str, thread: str | None = None) -> ActResult:
        """Write a message, or run a slash command, as `user`; in a thread when `thread` (a message's ts) is given.

        A command returns when the app has acknowledged it, or after 3 s. Raises WorkspaceError.
        """
        body: JsonObject = {"user": user, "channel": channel, "text": text, "thread_ts": thread}
        return _result(await self._request("POST", "/client/say", json=body))

    async def press(
        self,
        user: str,
        action: str,
        *,
        run: str | None = None,
        ts: str | None = None,
        channel: str | None = None,
        selected: str | None = None,
    ) -> ActResult:
        """Press the button called `action` (its text, or the last part of its action id) as `user`.

        It is looked for in the newest message that `user` can see which has it: with `run`, a button whose value names
        that run; with `ts`, in that message; with `channel`, only there. `selected` is the value chosen in a menu.
        Raises ButtonNotFound (a ValueError) naming the buttons there are, and WorkspaceError.
        """
        message, button = find_button(await self.read(channel, user=user), action, run=run, ts=ts)
        body: JsonObject = {
            "user": user,
            "channel": message.channel,
            "ts": message.ts,
            "action_id": button.action_id,
            "block_id": button.block_id,
            "selected": selected,
        }
        return _result(await self._request("POST", "/client/press", json=body))

    async def read(self, channel: str | None = None, *, user: str | None = None) -> tuple[ReadMessage, ...]:
        """The messages of a channel (of all channels without one), oldest first, replies inside their first message.

        With `user` only what that user sees; without, everything, private notes marked `visible_to`.
        Raises WorkspaceError.
        """
        query = {name: value for name, value in (("channel", channel), ("user", user)) if value}
        body = await self._request("GET", "/client/messages", params=query)
        return conversation(body["messages"], body["names"] | body["channels"])

    async def state(self, user: str) -> JsonObject:
        """Everything the page of `user` shows, `app.connected` among it. Raises WorkspaceError."""
        return await self._request("GET", "/client/state", params={"user": user})

    async def panel(self) -> list[JsonObject]:
        """The buttons of the side panel. Raises WorkspaceError when they cannot be listed."""
        body = await self._request("GET", "/panel")
        if not body["ok"]:
            raise WorkspaceError(body["error"])
        return list(body["actions"])

    async def panel_press(self, action: str) -> str:
        """Press a button of the side panel and give its text. Raises WorkspaceError."""
        body = await self._request("POST", f"/panel/{action}", json={})
        if not body["ok"]:
            raise WorkspaceError(body["text"])
        return str(body["text"])


def _result(body: JsonObject) -> ActResult:
    notes = tuple("\n".join(message_lines(note, {})) for note in body.get("notes") or ())
    return ActResult(
        ok=body["ok"],
        kind=body["kind"],
        ts=body.get("ts"),
        error=body.get("error"),
        waited_ms=body.get("waited_ms", 0.0),
        notes=notes,
    )
