"""The workspace as one server: builds the parts, listens on loopback, starts and stops."""

import errno
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from aiohttp import web

from demo.workspace.answers import ActError, Answers
from demo.workspace.blocks import BlocksError
from demo.workspace.front import PAGE_FOLDER, Front
from demo.workspace.grants import GrantError, Grants
from demo.workspace.guard import CONTENT_SECURITY_POLICY, checked_bind_address, guard
from demo.workspace.interactions import Interactions
from demo.workspace.journal import Journal
from demo.workspace.panel import Panel, PanelAction
from demo.workspace.seed import DEFAULT_APP_TOKEN, DEFAULT_BOT_TOKEN, Seed
from demo.workspace.socket_mode import SocketMode
from demo.workspace.state import State
from demo.workspace.webapi import Middleware, WebApi
from demo.workspace.webapi.files import MAX_FILE_BYTES, receive_upload

DEFAULT_PORT = 8800
STOP_TIMEOUT_S = 2.0

logger = logging.getLogger(__name__)


class Workspace:
    """A Slack-compatible workspace on loopback.

    `port=0` takes a free one; `state_file=None` keeps everything in memory only. `ack_timeout_s` is how long a person
    waits for the app (Slack: 3 s), `redeliver_after_s` after how long an unacknowledged envelope is sent once more.
    `api_middlewares` stand around every Web API method (rate limits, faults). Raises ValueError for an address that is
    not loopback and for a state file it cannot read.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        seed: Seed | None = None,
        state_file: Path | None = None,
        bot_token: str = DEFAULT_BOT_TOKEN,
        app_token: str = DEFAULT_APP_TOKEN,
        panel: Sequence[PanelAction] = (),
        panel_url: str | None = None,
        ack_timeout_s: float = 3.0,
        redeliver_after_s: float = 5.0,
        api_middlewares: Sequence[Middleware] = (),
    ) -> None:
        self._host = checked_bind_address(host)
        self._port = port
        self.bot_token = bot_token
        self.app_token = app_token
        self.seed = seed or Seed()
        self._journal = Journal(state_file)
        self.state = State(self.seed, self._journal)
        self._grants = Grants()
        self.socket_mode = SocketMode(
            app_id=self.seed.app.app_id,
            app_token=app_token,
            ack_timeout_s=ack_timeout_s,
            redeliver_after_s=redeliver_after_s,
            on_connections=lambda count: self.state.announce({"type": "app", "connected": count > 0}),
        )
        self._answers = Answers(self.state, self._grants)
        self.interactions = Interactions(self.state, self.socket_mode, self._grants, self._answers)
        self.web_api = WebApi(
            state=self.state,
            socket_mode=self.socket_mode,
            grants=self._grants,
            bot_token=bot_token,
            app_token=app_token,
            middlewares=api_middlewares,
        )
        self._front = Front(
            state=self.state,
            socket_mode=self.socket_mode,
            interactions=self.interactions,
            panel=Panel(panel, panel_url),
            start_id=secrets.token_hex(8),
        )
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The page's address, without a slash at the end. The Web API is below `{url}/api/`."""
        return self.state.base_url

    async def start(self) -> None:
        """Listen. Raises OSError, with what to do, when the port is taken."""
        app = web.Application(middlewares=[guard], client_max_size=MAX_FILE_BYTES + 2**20)
        app.add_routes(
            [
                web.route("*", "/api/{method}", self.web_api.handle),
                web.get("/link/", self.socket_mode.handle),
                web.post("/upload/v1/{file_id}", self._upload),
                web.post("/response/{key}", self._respond),
                *self._front.routes(),
                web.static("/page", PAGE_FOLDER),
            ]
        )
        app.on_response_prepare.append(_add_policy)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_TIMEOUT_S)
        await runner.setup()
        site = web.TCPSite(runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            if error.errno == errno.EADDRINUSE:
                raise OSError(
                    error.errno,
                    f"port {self._port} on {self._host} is taken, perhaps by another workspace; stop it or give --port",
                ) from error
            raise
        self._runner = runner
        port = runner.addresses[0][1]
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.state.base_url = f"http://{shown}:{port}"

    async def stop(self) -> None:
        """Send the app's connections away, close everything, keep the state file whole. Can be called twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            for site in list(runner.sites):
                await site.stop()
            await self.interactions.close()
            await self.socket_mode.close()
            await self._front.close()
            await runner.cleanup()
        self._journal.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _upload(self, request: web.Request) -> web.Response:
        return await receive_upload(self.state, request)

    async def _respond(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except ValueError:
            return web.json_response({"ok": False, "error": "invalid_payload"}, status=400)
        if not isinstance(body, dict):
            return web.json_response({"ok": False, "error": "invalid_payload"}, status=400)
        try:
            self._answers.respond(request.match_info["key"], body)
        except GrantError as error:
            return web.json_response({"ok": False, "error": error.code}, status=404)
        except BlocksError as error:
            answer = {"ok": False, "error": error.code, "response_metadata": {"messages": error.messages}}
            return web.json_response(answer, status=400)
        except ActError as error:
            return web.json_response({"ok": False, "error": str(error)}, status=400)
        return web.json_response({"ok": True})


async def _add_policy(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
