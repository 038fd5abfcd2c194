"""The workspace as one server: builds the parts, listens on loopback, starts and stops."""

import errno
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from aiohttp import web

from demo.workspace.faults import Faults
from demo.workspace.interactions import Interactions
from demo.workspace.loopback_only import (
    CONTENT_SECURITY_POLICY,
    checked_bind_address,
    refuse_foreign_requests,
)
from demo.workspace.open_interactions import OpenInteractions
from demo.workspace.page_routes import PageRoutes
from demo.workspace.side_panel import Panel, PanelAction
from demo.workspace.socket_mode import SocketMode
from demo.workspace.state import State
from demo.workspace.state_file import StateFile
from demo.workspace.team import DEFAULT_APP_TOKEN, DEFAULT_BOT_TOKEN, Team
from demo.workspace.webapi import Middleware, WebApi
from demo.workspace.webapi.files import MAX_FILE_BYTES, receive_upload

DEFAULT_PORT = 8800
STOP_TIMEOUT_S = 2.0


class Workspace:
    """A Slack-compatible workspace on loopback.

    `port=0` takes a free port; `state_file=None` keeps everything in memory. `ack_timeout_s` is how long a person waits for
    the app (Slack: 3 s), `redeliver_after_s` when an unacknowledged envelope is sent once more. `api_middlewares` wrap every
    Web API method (rate limits, faults). Raises ValueError for an address that is not loopback and for a state file that it
    cannot read.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        team: Team | None = None,
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
        side_panel = Panel(panel, panel_url)
        self._state_file = StateFile(state_file)
        self.state = State(team or Team(), self._state_file)
        self.open_interactions = OpenInteractions(self.state)
        self.faults = Faults()
        self.state.clock = lambda: time.time() + self.faults.clock_s
        self.socket_mode = SocketMode(
            faults=self.faults,
            app_id=self.state.team.app.app_id,
            app_token=app_token,
            ack_timeout_s=ack_timeout_s,
            redeliver_after_s=redeliver_after_s,
            on_connections=lambda count: self.state.announce({"type": "app", "connected": count > 0}),
        )
        self.interactions = Interactions(self.state, self.socket_mode, self.open_interactions)
        tokens = {bot_token: "bot", app_token: "app"}
        self.web_api = WebApi(
            tokens, [self.faults, *api_middlewares], self.state, self.socket_mode, self.open_interactions
        )
        self._page_routes = PageRoutes(
            self.state, self.socket_mode, self.interactions, side_panel, self.faults
        )
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Return the page's URL without a trailing slash. The Web API is below `{url}/api/`."""
        return self.state.base_url

    async def start(self) -> None:
        """Listen. Raises OSError, saying what to do, if the port is taken."""
        app = web.Application(middlewares=[refuse_foreign_requests], client_max_size=MAX_FILE_BYTES + 2**20)
        app.add_routes(
            [
                web.route("*", "/api/{method}", self.web_api.handle),
                web.get("/link/", self.socket_mode.handle),
                web.post("/upload/v1/{file_id}", self._upload),
                web.post("/response/{key}", self.open_interactions.handle),
                *self._page_routes.routes(),
            ]
        )
        app.on_response_prepare.append(_add_policy)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_TIMEOUT_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            if error.errno != errno.EADDRINUSE:
                raise
            raise OSError(
                error.errno,
                f"port {self._port} on {self._host} is taken, perhaps by another workspace; stop it or choose another --port",
            ) from error
        self._runner = runner
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.state.base_url = f"http://{shown}:{runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Disconnect the app, close everything and the state file. Can be called twice."""
        runner, self._runner = self._runner, None
        if runner is not None:
            for site in list(runner.sites):
                await site.stop()
            await self.socket_mode.close()
            await self._page_routes.close()
            await runner.cleanup()
        self._state_file.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _upload(self, request: web.Request) -> web.Response:
        return await receive_upload(self.state, request)


async def _add_policy(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
