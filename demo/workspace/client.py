"""A client for people's side of the workspace: write, press and read as a chosen user, from programs and terminals.

`gpu-oncall workspace say|press|read` uses it, so that an incident can be played over ssh.
"""

from types import TracebackType
from typing import Any, Self

import aiohttp

from demo.workspace.controls import form_values
from demo.workspace.interactions import ActResult
from demo.workspace.page_routes import CLIENT_HEADER
from demo.workspace.records import JsonObject
from demo.workspace.transcript import ReadMessage, conversation, find_button

__all__ = ["ActResult", "WorkspaceClient", "WorkspaceError"]

DEFAULT_URL = "http://127.0.0.1:8800"
TIMEOUT_S = 30.0


class WorkspaceError(Exception):
    """Raised if the workspace refused an act or cannot be reached; the message says what to do."""


class WorkspaceClient:
    """Acts as any user of the workspace at `url`. Use it as an async context manager, or call `close`."""

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

    async def _request(self, method: str, path: str, **arguments: Any) -> JsonObject:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout, headers={CLIENT_HEADER: "terminal"})
        try:
            async with self._session.request(method, self._url + path, **arguments) as response:
                status = f"the workspace answered {response.status}"
                if response.content_type != "application/json":
                    raise WorkspaceError((await response.text()).strip() or status)
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
            raise WorkspaceError(str(body.get("error") or status))
        return body

    async def _act(self, path: str, body: JsonObject) -> ActResult:
        result = await self._request("POST", path, json=body)
        return ActResult(**result | {"notes": tuple(result["notes"])})

    async def say(self, user: str, channel: str, text: str, thread: str | None = None) -> ActResult:
        """Write a message or run a slash command as `user`; with `thread` (a message's ts) in that thread.

        A command returns when the app has acknowledged it, or after 3 s. Raises WorkspaceError.
        """
        body = {"user": user, "channel": channel, "text": text, "thread_ts": thread}
        return await self._act("/client/say", body)

    async def react(self, user: str, channel: str, ts: str, name: str) -> ActResult:
        """Put the reaction `name` on a message as `user`. Raises WorkspaceError."""
        return await self._act("/client/react", {"user": user, "channel": channel, "ts": ts, "name": name})

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

        The newest message that `user` can see with that button is used: with `run`, one whose value names that run; with
        `ts`, only that message; with `channel`, only there. `selected` is the value chosen in a menu.
        Raises ButtonNotFound (a ValueError), which lists the buttons that exist, and WorkspaceError.
        """
        message, button = find_button(await self.read(channel, user=user), action, run=run, ts=ts)
        body = {
            "user": user,
            "channel": message.channel,
            "ts": message.ts,
            "action_id": button.action_id,
            "block_id": button.block_id,
            "selected": selected,
        }
        return await self._act("/client/press", body)

    async def read(self, channel: str | None = None, *, user: str | None = None) -> tuple[ReadMessage, ...]:
        """Return the messages of one channel or of all, oldest first, with the replies inside their first message.

        With `user` only what that user sees; without, everything, with private notes marked `visible_to`.
        Raises WorkspaceError.
        """
        query = {name: value for name, value in (("channel", channel), ("user", user)) if value}
        body = await self._request("GET", "/client/messages", params=query)
        return conversation(body["messages"], body["names"])

    async def modals(self, user: str) -> list[JsonObject]:
        """Return the modals that a person has open, the newest last. Raises WorkspaceError."""
        return list((await self.state(user))["views"]["modals"])

    async def home(self, user: str) -> JsonObject | None:
        """Open the app's Home tab as a person, and return what is published there now. Raises WorkspaceError."""
        await self._act("/client/home", {"user": user})
        view: JsonObject | None = (await self.state(user))["views"]["home"]
        return view

    async def press_view(self, user: str, action: str, view_id: str) -> ActResult:
        """Press the button with an action id in a modal or on the Home tab. Raises WorkspaceError."""
        return await self._act("/client/press", {"user": user, "view_id": view_id, "action_id": action})

    async def submit(self, user: str, fields: dict[str, str] | None = None) -> JsonObject:
        """Fill in the newest open modal by block id and submit it; return the app's `response_action`, empty if it closed.

        Raises WorkspaceError, and ValueError for a field that the form does not have or if no modal is open.
        """
        open_modals = await self.modals(user)
        if not open_modals:
            raise ValueError(f"{user} has no modal open")
        view = open_modals[-1]
        body = {"user": user, "view_id": view["id"], "values": form_values(view["blocks"], fields or {})}
        answer = (await self._request("POST", "/client/view", json=body))["answer"]
        return dict(answer)

    async def state(self, user: str) -> JsonObject:
        """Return everything that the page of `user` shows, including `app.connected`. Raises WorkspaceError."""
        return await self._request("GET", "/client/state", params={"user": user})

    async def switch_faults(self, *switches: str) -> list[str]:
        """Switch faults of Slack (`deaf`, `error=chat.update:503`, `off`); return what is on. Raises WorkspaceError."""
        body = await self._request("POST", "/faults", json={"switches": list(switches)})
        if not body["ok"]:
            raise WorkspaceError(body["error"])
        return list(body["on"])

    async def panel(self) -> list[JsonObject]:
        """Return the buttons of the side panel. Raises WorkspaceError if they cannot be listed."""
        body = await self._request("GET", "/panel")
        if not body["ok"]:
            raise WorkspaceError(body["error"])
        return list(body["actions"])

    async def panel_press(self, action: str) -> str:
        """Press a button of the side panel and return its text. Raises WorkspaceError."""
        body = await self._request("POST", f"/panel/{action}", json={})
        if not body["ok"]:
            raise WorkspaceError(body["text"])
        return str(body["text"])
