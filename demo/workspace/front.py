"""What the page and the terminal client talk to, below `/client/` and `/panel`: state, live changes, and people's acts.

These addresses are the workspace's own, not Slack's. Acts need the header `X-Workspace-Client`, which a foreign web page
cannot send without a permission that the workspace never gives.
"""

import asyncio
import json
import logging
from pathlib import Path

from aiohttp import WSMsgType, web

from demo.workspace.answers import ActError
from demo.workspace.interactions import Interactions
from demo.workspace.panel import Panel, PanelError
from demo.workspace.records import INLINE_IMAGE_TYPES
from demo.workspace.socket_mode import SocketMode
from demo.workspace.state import State
from gpu_actions.models import JsonObject

PAGE_FOLDER = Path(__file__).parent / "page"
CLIENT_HEADER = "X-Workspace-Client"
LIVE_QUEUE = 1000
"""Changes kept for a page that does not read; past this the page is cut and loads everything anew."""

logger = logging.getLogger(__name__)


class Front:
    """Routes of the page and the terminal client."""

    def __init__(
        self,
        *,
        state: State,
        socket_mode: SocketMode,
        interactions: Interactions,
        panel: Panel,
        start_id: str,
    ) -> None:
        self._state = state
        self._socket_mode = socket_mode
        self._interactions = interactions
        self._panel = panel
        self._start_id = start_id
        self._live: set[web.WebSocketResponse] = set()

    def routes(self) -> list[web.RouteDef]:
        """Everything this class serves, the static page excepted."""
        return [
            web.get("/", self._page),
            web.get("/archives/{channel}/{message}", self._page),
            web.get("/client/state", self._whole_state),
            web.get("/client/live", self._changes),
            web.get("/client/messages", self._messages),
            web.post("/client/say", self._say),
            web.post("/client/press", self._press),
            web.post("/client/view", self._view),
            web.get("/panel", self._panel_listing),
            web.post("/panel/{action}", self._panel_press),
            web.get("/files/{file_id}", self._file),
        ]

    # the page

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE_FOLDER / "index.html", headers={"Cache-Control": "no-cache"})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        file = self._state.files.get(request.match_info["file_id"])
        data = self._state.content(file.id) if file is not None else None
        if file is None or data is None:
            return web.Response(status=404, text="there is no such file; it may have been deleted\n")
        inline = file.media_type in INLINE_IMAGE_TYPES and "download" not in request.query
        name = file.name.replace('"', "").encode("ascii", "replace").decode()
        return web.Response(
            body=data,
            content_type=file.media_type if inline else "application/octet-stream",
            headers={
                "Content-Disposition": f'{"inline" if inline else "attachment"}; filename="{name}"',
                "Content-Security-Policy": "default-src 'none'; sandbox",
            },
        )

    def _viewer(self, request: web.Request) -> str:
        wanted = request.query.get("user", "")
        person = self._state.user_by_name(wanted)
        if person is None:
            names = ", ".join(entry.name for entry in self._state.people.values())
            raise web.HTTPNotFound(text=f"there is no user {wanted!r} in this workspace; there are {names}\n")
        return person.id

    async def _whole_state(self, request: web.Request) -> web.Response:
        """Everything one user sees: the team, people, channels, commands, messages, the app's connection."""
        viewer = self._viewer(request) if "user" in request.query else next(iter(self._state.people))
        state = self._state
        channels = [entry for entry in state.channels.values() if viewer in entry.members]
        body: JsonObject = {
            "start_id": self._start_id,
            "team": {"id": state.seed.team_id, "name": state.seed.team_name},
            "app": {
                "name": state.seed.app.name,
                "user_id": state.bot_user,
                "connected": self._socket_mode.connection_count > 0,
            },
            "users": [entry.model_dump() for entry in state.people.values()],
            "groups": [entry.model_dump() for entry in state.seed.groups],
            "channels": [entry.as_slack(viewer) | {"bookmarks": entry.bookmarks} for entry in channels],
            "commands": [entry.model_dump() for entry in state.commands.values()],
            "messages": {entry.id: self._visible(entry.id, viewer) for entry in channels},
        }
        return web.json_response(body)

    def _visible(self, channel_id: str, viewer: str | None) -> list[JsonObject]:
        return [
            self._state.message_json(message, with_metadata=True) | {"channel": channel_id}
            for message in self._state.messages[channel_id].values()
            if viewer is None or message.visible_to in (None, viewer)
        ]

    async def _messages(self, request: web.Request) -> web.Response:
        """All messages of a channel, or of all of them, oldest first; with `user` only what that user sees."""
        viewer = self._viewer(request) if request.query.get("user") else None
        wanted = request.query.get("channel")
        if wanted:
            channel = self._state.channel_by_name(wanted)
            if channel is None:
                names = ", ".join(entry.name for entry in self._state.channels.values() if not entry.is_im)
                raise web.HTTPNotFound(text=f"there is no channel {wanted!r}; there are {names}\n")
            chosen = [channel]
        else:
            chosen = list(self._state.channels.values())
        messages = [message for channel in chosen for message in self._visible(channel.id, viewer)]
        names_by_id = {entry.id: entry.name for entry in self._state.people.values()}
        names_by_id |= {self._state.bot_user: self._state.seed.app.name, "USLACKBOT": "Slackbot"}
        channels = {entry.id: entry.name for entry in self._state.channels.values()}
        return web.json_response({"messages": messages, "names": names_by_id, "channels": channels})

    async def _changes(self, request: web.Request) -> web.StreamResponse:
        """A websocket that sends one user every change they may see, from now on."""
        viewer = self._viewer(request)
        socket = web.WebSocketResponse(heartbeat=20.0)
        await socket.prepare(request)
        queue: asyncio.Queue[JsonObject] = asyncio.Queue(LIVE_QUEUE)

        def enqueue(change: JsonObject) -> None:
            if not self._may_see(viewer, change):
                return
            try:
                queue.put_nowait(change)
            except asyncio.QueueFull:
                sender.cancel()

        async def send() -> None:
            while True:
                await socket.send_json(await queue.get())

        sender = asyncio.create_task(send())
        stop_listening = self._state.listen(enqueue)
        self._live.add(socket)
        enqueue({"type": "hello", "start_id": self._start_id})
        enqueue({"type": "app", "connected": self._socket_mode.connection_count > 0})
        sender.add_done_callback(lambda _: asyncio.ensure_future(socket.close()))
        try:
            async for frame in socket:
                if frame.type == WSMsgType.ERROR:
                    break
        finally:
            stop_listening()
            self._live.discard(socket)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        return socket

    def _may_see(self, viewer: str, change: JsonObject) -> bool:
        channel = self._state.channels.get(str(change.get("channel")))
        if channel is not None and viewer not in channel.members:
            return False
        if change["type"] == "view":
            return change.get("user") in ("", viewer)
        return change.get("visible_to") in (None, viewer)

    async def close(self) -> None:
        """Close the pages' websockets."""
        for socket in list(self._live):
            await socket.close()

    # acts

    async def _act(self, request: web.Request) -> JsonObject:
        if CLIENT_HEADER not in request.headers:
            raise web.HTTPForbidden(text=f"acts need the header {CLIENT_HEADER}\n")
        try:
            body = await request.json()
        except json.JSONDecodeError:
            raise web.HTTPBadRequest(text="the body is not JSON\n") from None
        if not isinstance(body, dict):
            raise web.HTTPBadRequest(text="the body is not a JSON object\n")
        return body

    async def _say(self, request: web.Request) -> web.Response:
        body = await self._act(request)
        try:
            outcome = await self._interactions.say(
                user=str(body.get("user", "")),
                channel=str(body.get("channel", "")),
                text=str(body.get("text", "")),
                thread_ts=body.get("thread_ts") or None,
            )
        except ActError as error:
            return _refused(error)
        return web.json_response(outcome.as_json())

    async def _press(self, request: web.Request) -> web.Response:
        body = await self._act(request)
        try:
            outcome = await self._interactions.press(
                user=str(body.get("user", "")),
                channel=str(body.get("channel", "")),
                ts=str(body.get("ts", "")),
                action_id=str(body.get("action_id", "")),
                block_id=body.get("block_id"),
                selected=body.get("selected"),
            )
        except ActError as error:
            return _refused(error)
        return web.json_response(outcome.as_json())

    async def _view(self, request: web.Request) -> web.Response:
        body = await self._act(request)
        values = body.get("values")
        try:
            answer = await self._interactions.submit_view(
                user=str(body.get("user", "")),
                view_id=str(body.get("view_id", "")),
                values=values if isinstance(values, dict) else {},
            )
        except ActError as error:
            return _refused(error)
        return web.json_response({"ok": True, "answer": answer})

    # the panel

    async def _panel_listing(self, request: web.Request) -> web.Response:
        try:
            return web.json_response({"ok": True, "actions": await self._panel.listing()})
        except PanelError as error:
            return web.json_response({"ok": False, "error": str(error), "actions": []})

    async def _panel_press(self, request: web.Request) -> web.Response:
        await self._act(request)
        try:
            return web.json_response(
                {"ok": True, "text": await self._panel.press(request.match_info["action"])}
            )
        except PanelError as error:
            return web.json_response({"ok": False, "text": str(error)})


def _refused(error: ActError) -> web.Response:
    return web.json_response(
        {"ok": False, "kind": "refused", "error": str(error), "notes": []}, status=error.status
    )
