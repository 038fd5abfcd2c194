"""One websocket of Socket Mode: envelopes to Bolt, acknowledgements back, and the time of the last sign of life.

Only what Slack sends counts as a sign of life: its hello, its pings, its pongs, its envelopes. slack_sdk's own client also
counts the pings that it sends, retries a refused address for ever, and can stay open and deaf for hours.
"""

import asyncio
import json
import logging
import time
from typing import Any

import structlog
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType
from slack_bolt.adapter.socket_mode.async_internals import run_async_bolt_app, send_async_response
from slack_bolt.async_app import AsyncApp
from slack_sdk.proxy_env_variable_loader import load_http_proxy_from_env
from slack_sdk.socket_mode.request import SocketModeRequest
from slack_sdk.socket_mode.response import SocketModeResponse

from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

PING_S = 5.0
SILENT_S = 20.0
"""A socket that brought nothing, no pong either, for this long is dead. Slack answers each ping within a second."""
HELLO_S = 10.0
MAX_FRAME_BYTES = 4 * 2**20


class SocketEnded(Exception):
    """Raised when a socket is of no more use. The message says why."""


class SocketRefreshed(SocketEnded):
    """Raised when Slack itself asks for a new connection, which it does every few hours."""


class Socket:
    """An open websocket. `hello` is set once Slack has greeted; the times are monotonic seconds.

    `heard_at` is its last sign of life, `delivered_at` the last envelope, at first the time of opening.
    """

    logger = logging.getLogger("slack_bolt")

    def __init__(self, ws: ClientWebSocketResponse, app: AsyncApp) -> None:
        self._ws = ws
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()
        self.hello = asyncio.Event()
        self.opened_at = self.heard_at = self.delivered_at = time.monotonic()
        self.connections = 1
        """How many sockets the app has, as Slack said in its hello."""

    @classmethod
    async def open(cls, session: ClientSession, url: str, app: AsyncApp) -> "Socket":
        """Connect to an address of `apps.connections.open`. Raises whatever aiohttp raises."""
        proxy = load_http_proxy_from_env(cls.logger)
        ws = await session.ws_connect(url, autoping=False, max_msg_size=MAX_FRAME_BYTES, proxy=proxy)
        return cls(ws, app)

    async def listen(self) -> None:
        """Receive until the socket is of no more use, then raise SocketEnded."""
        pinging = asyncio.create_task(self._ping())
        try:
            while True:
                try:
                    async with asyncio.timeout(SILENT_S if self.hello.is_set() else HELLO_S):
                        frame = await self._ws.receive()
                except TimeoutError:
                    what = f"was silent for {SILENT_S:.0f} s" if self.hello.is_set() else "was never greeted"
                    raise SocketEnded(f"the socket {what}, although Slack had accepted it") from None
                if frame.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                    raise SocketEnded(f"Slack closed the socket ({self._ws.close_code})")
                self.heard_at = time.monotonic()
                if frame.type is WSMsgType.PING:
                    await self._ws.pong(frame.data)
                elif frame.type is WSMsgType.TEXT:
                    self._read(frame.data)
        except ConnectionError as error:
            raise SocketEnded(f"the socket broke: {redacted_head(repr(error), 200)}") from None
        finally:
            pinging.cancel()

    async def _ping(self) -> None:
        while not self._ws.closed:
            try:
                await self._ws.ping(b"gpu-oncall")
            except ConnectionError:
                return  # the receiver notices it
            await asyncio.sleep(PING_S)

    def _read(self, text: str) -> None:
        try:
            message: dict[str, Any] = json.loads(text)
            kind = message["type"]
        except (ValueError, KeyError, TypeError):
            log.warning("Slack sent a frame that is no envelope; ignored")
            return
        if kind == "hello":
            self.connections = int(message.get("num_connections") or 1)
            self.hello.set()
        elif kind == "disconnect":
            raise SocketRefreshed(f"Slack asked for a new connection ({message.get('reason')})")
        elif (request := SocketModeRequest.from_dict(message)) is not None:
            self.delivered_at = time.monotonic()
            task = asyncio.create_task(self._dispatch(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _dispatch(self, request: SocketModeRequest) -> None:
        try:
            answer = await run_async_bolt_app(self._app, request)
            await send_async_response(self, request, answer, time.time())  # type: ignore[arg-type]
        except ConnectionError as error:  # Slack sends the envelope again on another socket
            log.warning("an envelope could not be acknowledged", error=redacted_head(repr(error), 200))
        except Exception:
            log.exception("an envelope could not be handled", kind=request.type)

    async def send_socket_mode_response(self, response: SocketModeResponse) -> None:
        """Send an acknowledgement; the name is that of slack_sdk, whose place this class takes for Bolt."""
        await self._ws.send_str(json.dumps(response.to_dict()))

    async def close(self, *, linger_s: float = 0.0) -> None:
        """Close, after the envelopes at work were acknowledged or `linger_s` have passed."""
        if self._tasks and linger_s:
            await asyncio.wait(set(self._tasks), timeout=linger_s)
        try:
            async with asyncio.timeout(2.0):
                await self._ws.close()
        except TimeoutError:
            log.warning("a socket did not close in time; continuing without it")
