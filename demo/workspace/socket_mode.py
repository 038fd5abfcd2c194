"""Socket Mode: the app's websocket connections, the envelopes sent over them and their acknowledgements.

As in Slack, each envelope goes to any one of up to 10 connections, a person waits 3 s for the acknowledgement, and an
unacknowledged envelope is sent once more with `retry_attempt`, so an app must remember what it did.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import secrets
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from aiohttp import WSMsgType, web

from demo.workspace.faults import Faults
from demo.workspace.records import JsonObject

MAX_CONNECTIONS = 10
TICKET_LIFE_S = 60.0
HEARTBEAT_S = 10.0
DEBUG_INFO = {"host": "local-workspace", "build_number": 1, "approximate_connection_time": 18060}

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Delivery:
    """The result of sending an envelope, within the time that a person waits.

    `error` is None if the app acknowledged it, `dispatch_failed` if no connection took it, `operation_timeout` if no
    answer came in time. `payload` is what the app sent with its acknowledgement.
    """

    error: str | None
    payload: JsonObject = field(default_factory=dict)
    waited_ms: float = 0.0


class SocketMode:
    """The server side of Socket Mode for one app.

    `on_connections` is called with the number of connections whenever it changes.
    """

    def __init__(
        self,
        *,
        app_id: str,
        app_token: str,
        faults: Faults | None = None,
        ack_timeout_s: float = 3.0,
        redeliver_after_s: float = 5.0,
        on_connections: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._app_id = app_id
        self._faults = faults or Faults()
        self._key = app_token.encode()
        self._ack_timeout_s = ack_timeout_s
        self._redeliver_after_s = redeliver_after_s
        self._connections: list[web.WebSocketResponse] = []
        self._turn = 0
        self._pending: dict[str, asyncio.Future[JsonObject]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._on_connections = on_connections

    @property
    def connection_count(self) -> int:
        """Return the number of the app's open connections."""
        return len(self._connections)

    async def wait_connected(self, timeout_s: float = 10.0) -> None:
        """Wait until the app is connected. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: bool(self._connections))

    def new_ticket(self) -> str:
        """Return a ticket for one websocket URL. It is signed, not stored, so it survives a restart of the workspace."""
        body = f"{int(time.time() * 1000)}-{secrets.token_hex(8)}"
        return f"{body}-{self._sign(body)}"

    def _sign(self, body: str) -> str:
        digest = hmac.new(self._key, body.encode(), hashlib.sha256).digest()[:18]
        return base64.b32encode(digest).decode().rstrip("=").lower()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve `/link/?ticket=...`: one connection of the app, until it closes."""
        body, _, signature = request.query.get("ticket", "").rpartition("-")
        if not body or not hmac.compare_digest(signature.encode(), self._sign(body).encode()):
            return web.Response(status=401, text="invalid ticket: call apps.connections.open for a new URL\n")
        if self._faults.refuse_socket:
            return web.Response(status=self._faults.refuse_socket)
        if self._faults.silent_socket:
            return await self._keep_silent(request)
        is_expired = time.time() - int(body.split("-")[0]) / 1000 > TICKET_LIFE_S
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=4 * 2**20)
        await socket.prepare(request)
        if is_expired or len(self._connections) >= MAX_CONNECTIONS:
            # slack_sdk asks for a new URL only after a disconnect message; after a refused handshake it retries the old one.
            await _disconnect(socket, "refresh_requested" if is_expired else "too_many_websockets")
            return socket
        await self._set_connections([*self._connections, socket])
        try:
            hello = {"num_connections": len(self._connections), "connection_info": {"app_id": self._app_id}}
            await socket.send_json({"type": "hello", "debug_info": DEBUG_INFO} | hello)
            async for frame in socket:
                if frame.type == WSMsgType.TEXT:
                    self._receive(frame.data)
        except ConnectionError as error:
            logger.info("a Socket Mode connection broke: %s", error)
        finally:
            await self._set_connections([entry for entry in self._connections if entry is not socket])
        return socket

    async def _keep_silent(self, request: web.Request) -> web.StreamResponse:
        """Accept a connection and neither send nor read anything, until the fault is over or the app has gone."""
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        while True:
            await asyncio.sleep(0.1)
            if not self._faults.silent_socket or request.transport is None or request.transport.is_closing():
                return socket

    async def _set_connections(self, connections: list[web.WebSocketResponse]) -> None:
        async with self._changed:
            self._connections = connections
            self._changed.notify_all()
        self._on_connections(len(connections))

    def _receive(self, text: str) -> None:
        try:
            message = json.loads(text)
        except ValueError:
            logger.warning("the app sent a frame that is not JSON; ignored")
            return
        envelope_id = message.get("envelope_id") if isinstance(message, dict) else None
        future = self._pending.get(str(envelope_id))
        if future is not None and not future.done():
            payload = message.get("payload")
            future.set_result(payload if isinstance(payload, dict) else {})

    async def deliver(self, kind: str, payload: JsonObject, *, accepts_response: bool) -> Delivery:
        """Send an envelope (`slash_commands`, `interactive` or `events_api`) and wait for its acknowledgement."""
        envelope: JsonObject = {
            "envelope_id": str(uuid.uuid4()),
            "type": kind,
            "accepts_response_payload": accepts_response,
            "payload": payload,
        }
        if kind == "events_api":
            envelope |= {"retry_attempt": 0, "retry_reason": ""}
        started = time.monotonic()
        future: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        self._pending[envelope["envelope_id"]] = future
        sent = await self._send(envelope)
        if sent or kind == "events_api":
            self._in_background(self._redeliver(envelope, future))
        else:
            self._pending.pop(envelope["envelope_id"], None)
        if not sent:
            return Delivery(error="dispatch_failed")
        done, _ = await asyncio.wait({future}, timeout=self._ack_timeout_s)
        waited_ms = round((time.monotonic() - started) * 1000, 1)
        if not done:
            return Delivery(error="operation_timeout", waited_ms=waited_ms)
        return Delivery(error=None, payload=future.result(), waited_ms=waited_ms)

    def deliver_event(self, payload: JsonObject) -> None:
        """Send an `events_api` envelope in the background; nobody waits for its acknowledgement."""

        async def deliver() -> None:
            delivery = await self.deliver("events_api", payload, accepts_response=False)
            if delivery.error:
                logger.info("event %s was not acknowledged: %s", payload["event_id"], delivery.error)

        self._in_background(deliver())

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _redeliver(self, envelope: JsonObject, future: asyncio.Future[JsonObject]) -> None:
        try:
            done, _ = await asyncio.wait({future}, timeout=self._redeliver_after_s)
            if not done:
                await self._send({**envelope, "retry_attempt": 1, "retry_reason": "timeout"})
                await asyncio.wait({future}, timeout=self._redeliver_after_s)
        finally:
            self._pending.pop(envelope["envelope_id"], None)

    async def _send(self, envelope: JsonObject) -> bool:
        if self._faults.late_s:
            await asyncio.sleep(self._faults.late_s)
        if self._faults.deaf:
            return bool(self._connections)
        sent = await self._send_once(envelope)
        if sent and self._faults.duplicate:
            await self._send_once(envelope)
        return sent

    async def _send_once(self, envelope: JsonObject) -> bool:
        connections = (
            self._connections
        )  # the list is replaced, never changed, when a connection ends meanwhile
        for _ in connections:
            self._turn += 1
            socket = connections[self._turn % len(connections)]
            try:
                await socket.send_json(envelope)
            except (ConnectionError, RuntimeError) as error:
                logger.info("a Socket Mode connection did not take an envelope: %s", error)
                continue
            return True
        return False

    async def close(self) -> None:
        """Ask the app to reconnect elsewhere, close its connections and drop undelivered envelopes."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for socket in list(self._connections):
            await _disconnect(socket, "refresh_requested")


async def _disconnect(socket: web.WebSocketResponse, reason: str) -> None:
    try:
        await socket.send_json({"type": "disconnect", "reason": reason, "debug_info": DEBUG_INFO})
        await asyncio.wait_for(socket.close(), timeout=1.0)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        logger.info("a Socket Mode connection did not close cleanly: %s", error)
