"""The HTTP routes of the page and the terminal client: state, live changes, files, people's acts, the side panel.

These URLs are the workspace's own, not Slack's. Acts need the header `X-Workspace-Client`, which another web page cannot
send without a permission that the workspace never grants.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from html import escape
from pathlib import Path

from aiohttp import WSMsgType, web
from markdown_it import MarkdownIt

from demo.workspace.fault_switches import SWITCHES, switch, switched_on
from demo.workspace.faults import Faults
from demo.workspace.interactions import ActError, Interactions
from demo.workspace.records import INLINE_IMAGE_TYPES, JsonObject
from demo.workspace.side_panel import Panel, PanelError
from demo.workspace.socket_mode import SocketMode
from demo.workspace.state import State

PAGE_FOLDER = Path(__file__).parent / "page"
CLIENT_HEADER = "X-Workspace-Client"
LIVE_QUEUE = 1000
"""Changes queued for a page that does not read. Beyond this its connection is closed; it then loads everything again."""

Act = Callable[[web.Request, JsonObject], Awaitable[JsonObject]]


class PageRoutes:
    """Handlers of the page and the terminal client."""

    def __init__(
        self, state: State, socket_mode: SocketMode, interactions: Interactions, panel: Panel, faults: Faults
    ) -> None:
        self._state = state
        self._socket_mode = socket_mode
        self._interactions = interactions
        self._panel = panel
        self._faults = faults
        self._live: set[web.WebSocketResponse] = set()

    def routes(self) -> list[web.AbstractRouteDef]:
        """List the routes of this class."""
        return [
            web.get("/", self._page),
            web.get("/archives/{channel}/{message}", self._page),
            web.static("/page", PAGE_FOLDER),
            web.get("/files/{file_id}", self._file),
            web.get("/docs/{team}/{file_id}", self._canvas),
            web.get("/client/state", self._whole_state),
            web.get("/client/live", self._changes),
            web.get("/client/messages", self._messages),
            web.post("/client/say", _act(self._say)),
            web.post("/client/press", _act(self._press)),
            web.post("/client/react", _act(self._react)),
            web.post("/client/view", _act(self._submit_view)),
            web.post("/client/view/close", _act(self._close_view)),
            web.post("/client/home", _act(self._open_home)),
            web.get("/faults", self._faults_on),
            web.post("/faults", _act(self._switch_faults)),
            web.get("/panel", self._panel_listing),
            web.post("/panel/{action}", _act(self._panel_press)),
        ]

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

    async def _canvas(self, request: web.Request) -> web.StreamResponse:
        """Show a canvas to those who have access: members of a channel that was given it, or people by name."""
        canvas = self._state.files.get(request.match_info["file_id"])
        if canvas is None or not canvas.is_canvas or request.match_info["team"] != self._state.team.id:
            return web.Response(status=404, text="there is no such canvas; it may have been deleted\n")
        viewer = self._viewer(request) if "user" in request.query else next(iter(self._state.people))
        places = [self._state.channels[place] for place in canvas.access if place in self._state.channels]
        if viewer not in canvas.access and not any(viewer in place.members for place in places):
            return web.Response(status=403, text="you have no access to this canvas; ask its owner\n")
        markdown = (self._state.content(canvas.id) or b"").decode()
        body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
        return web.Response(
            text=f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(canvas.title)}</title>{body}",
            content_type="text/html",
            headers={"Content-Security-Policy": "default-src 'none'; sandbox"},
        )

    # state

    def _viewer(self, request: web.Request) -> str:
        """Return the id of the user that the request names. Raises HTTPNotFound."""
        wanted = request.query.get("user", "")
        person = self._state.user_by_name(wanted)
        if person is None:
            known = self._state.user_names()
            raise web.HTTPNotFound(text=f"there is no user {wanted!r} in this workspace; there are {known}\n")
        return person.id

    async def _whole_state(self, request: web.Request) -> web.Response:
        """Return everything that one user sees: team, people, channels, commands, messages, the app's connection."""
        viewer = self._viewer(request) if "user" in request.query else next(iter(self._state.people))
        state, team = self._state, self._state.team
        channels = [entry for entry in state.channels.values() if viewer in entry.members]
        connected = self._socket_mode.connection_count > 0
        body: JsonObject = {
            "team": {"id": team.id, "name": team.name},
            "app": {
                "name": team.app.name,
                "user_id": state.bot_user,
                "connected": connected,
                "has_home_tab": team.app.has_home_tab,
                "has_messages_tab": team.app.has_messages_tab,
            },
            "users": [asdict(entry) for entry in state.people.values()],
            "groups": [asdict(entry) for entry in team.groups],
            "channels": [entry.as_slack(viewer) | {"bookmarks": entry.bookmarks} for entry in channels],
            "commands": [asdict(entry) for entry in state.commands.values()],
            "messages": {entry.id: self._visible(entry.id, viewer) for entry in channels},
            "views": state.open_views(viewer),
        }
        return web.json_response(body)

    def _visible(self, channel_id: str, viewer: str | None) -> list[JsonObject]:
        return [
            self._state.message_json(message, with_metadata=True) | {"channel": channel_id}
            for message in self._state.messages[channel_id].values()
            if viewer is None or message.visible_to in (None, viewer)
        ]

    async def _messages(self, request: web.Request) -> web.Response:
        """Return the messages of one or all channels, oldest first; with `user` only what that user sees."""
        viewer = self._viewer(request) if request.query.get("user") else None
        everything = self._state.channels.values()
        chosen = [channel for channel in everything if viewer is None or viewer in channel.members]
        if wanted := request.query.get("channel"):
            channel = self._state.channel_by_name(wanted)
            if channel is None:
                known = self._state.channel_names()
                raise web.HTTPNotFound(text=f"there is no channel {wanted!r}; there are {known}\n")
            chosen = [channel]
        messages = [message for channel in chosen for message in self._visible(channel.id, viewer)]
        return web.json_response({"messages": messages, "names": self._state.names_by_id()})

    async def _changes(self, request: web.Request) -> web.StreamResponse:
        """Send one user every change that they may see, over a websocket."""
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

    async def _say(self, request: web.Request, body: JsonObject) -> JsonObject:
        texts = _texts(body, "user", "channel", "text")
        return asdict(await self._interactions.say(**texts, thread_ts=body.get("thread_ts") or None))

    async def _press(self, request: web.Request, body: JsonObject) -> JsonObject:
        block_id, selected = body.get("block_id"), body.get("selected")
        if body.get("view_id"):
            texts = _texts(body, "user", "view_id", "action_id")
            return asdict(await self._interactions.press_view(**texts, block_id=block_id, selected=selected))
        texts = _texts(body, "user", "channel", "ts", "action_id")
        return asdict(await self._interactions.press(**texts, block_id=block_id, selected=selected))

    async def _react(self, request: web.Request, body: JsonObject) -> JsonObject:
        texts = _texts(body, "user", "channel", "ts", "name")
        return asdict(await self._interactions.react(**texts, away=body.get("away") is True))

    async def _submit_view(self, request: web.Request, body: JsonObject) -> JsonObject:
        values = body["values"] if isinstance(body.get("values"), dict) else {}
        answer = await self._interactions.submit_view(**_texts(body, "user", "view_id"), values=values)
        return {"ok": True, "answer": answer}

    async def _close_view(self, request: web.Request, body: JsonObject) -> JsonObject:
        return asdict(await self._interactions.close_view(**_texts(body, "user", "view_id")))

    async def _open_home(self, request: web.Request, body: JsonObject) -> JsonObject:
        return asdict(await self._interactions.open_home(**_texts(body, "user")))

    async def _faults_on(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True, "on": switched_on(self._faults), "switches": list(SWITCHES)})

    async def _switch_faults(self, request: web.Request, body: JsonObject) -> JsonObject:
        """Switch faults of Slack on or off."""
        words = body.get("switches")
        if not isinstance(words, list):
            return {"ok": False, "error": "switches is a list of words"}
        try:
            switch(self._faults, [str(word) for word in words])
        except ValueError as error:
            return {"ok": False, "error": str(error)}
        return {"ok": True, "on": switched_on(self._faults)}

    async def _panel_listing(self, request: web.Request) -> web.Response:
        try:
            return web.json_response({"ok": True, "actions": await self._panel.listing()})
        except PanelError as error:
            return web.json_response({"ok": False, "error": str(error), "actions": []})

    async def _panel_press(self, request: web.Request, body: JsonObject) -> JsonObject:
        try:
            return {"ok": True, "text": await self._panel.press(request.match_info["action"])}
        except PanelError as error:
            return {"ok": False, "text": str(error)}


def _texts(body: JsonObject, *names: str) -> dict[str, str]:
    return {name: str(body.get(name, "")) for name in names}


def _act(act: Act) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Wrap an act: check the header and the body, and answer an ActError with its status."""

    async def handle(request: web.Request) -> web.Response:
        if CLIENT_HEADER not in request.headers:
            raise web.HTTPForbidden(text=f"acts need the header {CLIENT_HEADER}\n")
        try:
            body = await request.json()
        except ValueError:
            raise web.HTTPBadRequest(text="the body is not JSON\n") from None
        if not isinstance(body, dict):
            raise web.HTTPBadRequest(text="the body is not a JSON object\n")
        try:
            return web.json_response(await act(request, body))
        except ActError as error:
            refusal = {"ok": False, "kind": "refused", "error": str(error), "notes": []}
            return web.json_response(refusal, status=error.status)

    return handle
