"""The connection to Slack, kept for as long as the bot lives: Socket Mode with one live socket, or HTTP.

A socket that is deaf, refused or closed is replaced, each time at a new address from `apps.connections.open`. Pings prove a
connection, not that it delivers: a socket that brought no envelope for a while is tried with an event that the bot causes
itself, and where none can be caused it is replaced after a longer while. If nothing helps while Slack's Web API answers, the
process ends itself, so that its supervisor starts a new one.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout, WSServerHandshakeError, web
from aiohttp.typedefs import Handler, Middleware
from slack_bolt.async_app import AsyncApp
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from bot.settings.model import Settings
from bot.slack.identity import TOKEN_REFUSED, Identity
from bot.slack.self_event import SelfEvent
from bot.slack.socket import HELLO_S, Socket, SocketEnded, SocketRefreshed
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

RETRY_S = 0.5
RETRY_MAX_S = 15.0
STEADY_S = 30.0
"""A socket that lived for this long was no flapping one: the next pause starts anew."""
RENEW_S = 900.0
"""A socket without an envelope for this long is replaced: no event of our own could be caused either."""
RENEW_RETRY_S = 60.0
"""`apps.connections.open` is asked at most this often while a socket is only suspect (Slack: once a minute and more)."""
PROBE_S = 20.0
"""A socket without an envelope for this long is tried with an event of our own. With the two tries of `SelfEvent` a deaf one
turns the health red within a minute."""
TICK_S = 5.0
RED_S = 45.0
"""Without a sign of life for this long the health turns red."""
END_S = 600.0
"""Without a socket for this long, although Slack's Web API answers, the process ends."""
FLAPS, FLAPS_S = 3, 600.0
"""A socket lost so often within this time flaps: each command may come seconds late."""
LINGER_S = 5.0
FIRST_S = 5.0


class Connection:
    """Keeps one live socket. `give_up` is called, at most once, when the process should end."""

    def __init__(
        self,
        app: AsyncApp,
        settings: Settings,
        identity: Identity,
        *,
        give_up: Callable[[], None] = lambda: None,
        self_event: SelfEvent | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        slack = settings.slack
        self._app = app
        self._identity = identity
        self._token = slack.app_token.get_secret_value()
        self._socket_mode = slack.mode == "socket"
        self._client = AsyncWebClient(base_url=slack.api_url, timeout=10)
        self._give_up = give_up
        self._self_event = self_event
        self._clock = clock
        self._lost_at = clock()
        self._reason = "not connected yet"
        self._refused = False
        self._web_answers = False
        self._deaf_since: float | None = None
        self._request_at = clock()
        self._try_at = self._renew_at = 0.0
        self._current: Socket | None = None
        self._losses: list[tuple[float, str]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self.connected = asyncio.Event()

    def silent_s(self) -> float | None:
        """Return the seconds since Slack's last sign of life, or None before the first. In HTTP mode each request is one: 0."""
        if not self._socket_mode:
            return 0.0
        if self._current is not None:
            return self._clock() - self._current.heard_at
        return self._clock() - self._lost_at if self.connected.is_set() else None

    def problem(self) -> str:
        """Return why Slack does not reach the bot or the bot Slack, or an empty string."""
        if self._identity.problem:
            return self._identity.problem
        if not self._socket_mode:
            if self._deaf_since is None:
                return ""
            return (
                f"no request of Slack has come for {self._clock() - self._request_at:.0f} s, although I caused an event: check "
                "the reverse proxy, and the request URLs of the app"
            )
        if self._current is not None:
            silent_s = self.silent_s() or 0.0
            if self._deaf_since is not None:
                return (
                    f"the socket has been deaf for {self._clock() - self._deaf_since:.0f} s: Slack answers its pings, but "
                    "an event that I caused did not arrive"
                )
            return f"the socket has been silent for {silent_s:.0f} s" if silent_s > RED_S else ""
        return self._reason if self._refused or self._clock() - self._lost_at > RED_S else ""

    def warnings(self) -> list[str]:
        """Return what works, but not as it should: missing scopes, a second bot on the same app token, a socket that flaps."""
        found = []
        if self._identity.missing_scopes:
            found.append(
                f"missing scopes: {', '.join(self._identity.missing_scopes)}; apply `gpu-oncall manifest` "
                "and install the app again"
            )
        if ahead_s := self._identity.clock_ahead_s:
            found.append(
                f"this machine's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} Slack's: "
                "set it right; times in messages and reports are wrong"
            )
        if self._current is not None and self._current.connections > 1:
            found.append(
                f"the app has {self._current.connections} sockets: another bot uses this app token "
                "and gets some of the commands"
            )
        if self._self_event is not None and self._self_event.never_came_back:
            found.append(
                "an event that I caused did not arrive, and none ever did: apply `gpu-oncall manifest` (it subscribes to "
                "reaction_added), or else a deaf socket is noticed only by its age"
            )
        losses = self._recent_losses()
        if len(losses) >= FLAPS:
            found.append(
                f"the socket to Slack was lost {len(losses)} times in {FLAPS_S / 60:.0f} minutes, at last because "
                f"{losses[-1][1]}: commands may come late; check the network and its proxy"
            )
        return found

    async def run(self) -> None:
        """Keep a socket until cancelled."""
        pause_s = RETRY_S
        async with ClientSession(timeout=ClientTimeout(total=None, sock_connect=10)) as session:
            try:
                while True:
                    opened_at = self._clock()
                    try:
                        await self._serve(session)
                    except SocketEnded as ended:
                        self._lost(str(ended), refresh=isinstance(ended, SocketRefreshed))
                    if self._clock() - opened_at > STEADY_S:
                        pause_s = RETRY_S
                    if self._web_answers and self._clock() - self._lost_at > END_S and not self._refused:
                        log.critical(
                            "no socket to Slack; the process ends, so that a new one starts",
                            reason=self._reason,
                        )
                        self._give_up()
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, RETRY_MAX_S)
            finally:
                if self._current is not None:
                    await self._current.close()
                for task in tuple(self._closing):
                    task.cancel()

    def requests_noted(self) -> Middleware:
        """Return a middleware of HTTP mode that notes the requests that Slack has signed: Bolt refuses all others."""

        @web.middleware
        async def noted(request: web.Request, handler: Handler) -> web.StreamResponse:
            answer = await handler(request)
            if answer.status < 400:
                self._request_at = self._clock()
                self._hears()
            return answer

        return noted

    async def watch_requests(self) -> None:
        """In HTTP mode, cause an event while no request comes, until cancelled: does Slack reach us?"""
        try_at = self._clock() + PROBE_S
        while self._self_event is not None:
            await asyncio.sleep(TICK_S)
            try_at = max(try_at, self._request_at + PROBE_S) if self._deaf_since is None else try_at
            if self._clock() < try_at:
                continue
            try_at = self._clock() + PROBE_S
            if await self._self_event.arrives(lambda: self._request_at) is False and self._deaf_since is None:
                self._deaf_since = self._clock()
                log.error("Slack's requests do not arrive: an event of our own did not")

    def _recent_losses(self) -> list[tuple[float, str]]:
        return [loss for loss in self._losses if self._clock() - loss[0] < FLAPS_S]

    def _lost(self, reason: str, *, refresh: bool) -> None:
        if self._current is not None:
            self._retire(self._current)
            self._lost_at, self._current = self._current.heard_at, None
            if not refresh:
                self._losses = [*self._recent_losses(), (self._clock(), reason)]
                if len(self._losses) == FLAPS:
                    log.error("the socket to Slack flaps", losses=FLAPS, within_s=FLAPS_S, reason=reason)
        if reason != self._reason:
            log.warning("no socket to Slack", reason=reason)
        self._reason = reason

    def _retire(self, socket: Socket) -> None:
        task = asyncio.create_task(socket.close(linger_s=LINGER_S))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _serve(self, session: ClientSession) -> None:
        """Open a socket and listen, replacing it while it brings nothing. Raises SocketEnded."""
        socket, listening = await self._open(session)
        try:
            while True:
                if self._current is not socket:
                    self._current, self._reason = socket, ""
                    self.connected.set()
                    log.info("a socket to Slack is open", connections=socket.connections)
                await self._until_suspect(socket, listening)
                try:
                    renewed = await self._open(session)
                except SocketEnded as ended:  # the one we have may be good: keep it
                    log.warning("the socket could not be renewed", reason=str(ended))
                    self._renew_at = time.monotonic() + RENEW_RETRY_S
                    continue
                listening.cancel()
                self._retire(socket)
                socket, listening = renewed
        finally:
            listening.cancel()

    async def _until_suspect(self, socket: Socket, listening: "asyncio.Task[None]") -> None:
        """Return when a socket should be replaced: it is deaf, or old and could not be tried. Raises SocketEnded."""
        if self._deaf_since is not None:
            self._try_at = 0.0  # the last one was deaf: is this one?
        else:
            self._try_at = self._try_at or socket.opened_at + PROBE_S
        while True:
            done, _ = await asyncio.wait({listening}, timeout=min(TICK_S, RENEW_S))
            if done:
                listening.result()
            now = time.monotonic()
            if socket.delivered_at > socket.opened_at:
                self._hears()
                self._try_at = max(self._try_at, socket.delivered_at + PROBE_S)
            is_old = now - socket.delivered_at >= RENEW_S
            is_alone = socket.connections == 1  # else Slack may send our event to the other bot
            if now >= self._try_at and self._self_event is not None and is_alone:
                self._try_at = now + PROBE_S
                if await self._is_deaf(self._self_event, socket, listening):
                    self._try_at = 0.0
                    is_old = now - socket.opened_at >= RENEW_RETRY_S
            if is_old and time.monotonic() >= self._renew_at:
                return

    async def _is_deaf(self, event: SelfEvent, socket: Socket, listening: "asyncio.Task[None]") -> bool:
        """Cause events until the socket delivers one. Return True if it delivered none, though it should have."""
        heard = await event.arrives(lambda: socket.delivered_at, is_over=listening.done)
        if heard:
            self._hears()
        if heard is not False:
            return False
        if self._deaf_since is None:
            self._deaf_since = self._clock()
            log.error("the socket to Slack is deaf: it answers pings, but an event of our own did not arrive")
        elif self._clock() - self._deaf_since > END_S:
            log.critical(
                "no socket to Slack delivers anything; the process ends, so that a new one starts",
                reason="deaf",
            )
            self._give_up()
        return True

    def _hears(self) -> None:
        if self._deaf_since is not None:
            log.info("events of Slack arrive again")
        self._deaf_since = None

    async def _open(self, session: ClientSession) -> tuple[Socket, "asyncio.Task[None]"]:
        """Open a socket at a new address and wait for Slack's hello. Raises SocketEnded."""
        self._refused = self._web_answers = False
        own = len(self._closing) + (self._current is not None)
        try:
            url = str((await self._client.apps_connections_open(app_token=self._token))["url"])
        except SlackApiError as error:
            code = str(error.response.get("error") or error.response.status_code)
            self._refused = code in TOKEN_REFUSED or code == "missing_scope"
            if self._refused:
                raise SocketEnded(
                    f"Slack refuses the app token ({code}): make one with connections:write and set slack.app_token"
                ) from None
            raise SocketEnded(f"apps.connections.open failed: {code}") from None
        except (SlackClientError, ClientError, OSError, TimeoutError) as error:
            raise SocketEnded(f"Slack cannot be reached: {redacted_head(repr(error), 200)}") from None
        self._web_answers = True
        try:
            socket = await Socket.open(session, url, self._app)
        except WSServerHandshakeError as error:
            raise SocketEnded(f"Slack refused the socket with status {error.status}") from None
        except (ClientError, OSError, TimeoutError) as error:
            raise SocketEnded(f"the socket could not be opened: {redacted_head(repr(error), 200)}") from None
        listening = asyncio.create_task(socket.listen())
        greeted = asyncio.create_task(socket.hello.wait())
        await asyncio.wait({listening, greeted}, timeout=HELLO_S + 1, return_when=asyncio.FIRST_COMPLETED)
        greeted.cancel()
        if not socket.hello.is_set():
            self._retire(socket)
            if listening.done():
                listening.result()
            listening.cancel()
            raise SocketEnded("the socket was never greeted, although Slack had accepted it")
        socket.connections = max(socket.connections - own, 1)  # ours that are open until this one serves
        return socket, listening


@contextlib.asynccontextmanager
async def connected(
    app: AsyncApp,
    settings: Settings,
    identity: Identity,
    *,
    give_up: Callable[[], None],
    self_event: SelfEvent | None = None,
) -> AsyncIterator[Connection]:
    """Receive events from Slack during the block. An absent Slack is waited for."""
    slack = settings.slack
    connection = Connection(app, settings, identity, give_up=give_up, self_event=self_event)
    async with contextlib.AsyncExitStack() as stack:
        tasks = [asyncio.create_task(identity.follow())]
        if slack.mode == "http":
            application = app.server(port=settings.web.port + 1, path="/slack/events").web_app
            application.middlewares.append(connection.requests_noted())
            runner = web.AppRunner(application, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, settings.web.host, settings.web.port + 1).start()
            tasks.append(asyncio.create_task(connection.watch_requests()))
        else:
            tasks.append(asyncio.create_task(connection.run()))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_S):
                    await identity.known.wait()
                    if slack.mode == "socket":
                        await connection.connected.wait()
            yield connection
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled() and (failure := task.exception()) is not None:
                    log.error("the connection to Slack failed", error=redacted_head(repr(failure), 300))
