"""One keep-alive HTTP/1.1 connection of the generator: it writes a request, reads the event stream and judges the answer.

It is a protocol on the event loop, without a task or a stream object per request. This keeps a chunk at some tens of
microseconds and a connection at a few kilobytes (measured by `benchmarks/loadtest_clients.py` and `loadtest_memory.py`).
"""

import asyncio
from array import array
from time import monotonic
from typing import Any, Protocol

from pydantic_core import from_json

from gpu_actions.loadtest.outcomes import Outcome

MAX_HEAD_BYTES = 64 * 1024
MAX_CHUNK_BYTES = 8 * 1024 * 1024
MAX_KEPT_BODY_BYTES = 2048
KEPT_DETAIL = 1000
"""Characters kept of an error; more than are shown, so that secrets are removed before they are cut."""

IDLE = -1


class Owner(Protocol):
    """The generator that a connection reports to."""

    ignore_eos: bool
    require_usage: bool

    def request_ended(self, connection: "Connection", outcome: Outcome, detail: str, at_s: float) -> None: ...

    def connection_gone(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """A connection and the one request on it. Times are monotonic seconds; `row` is -1 while idle."""

    __slots__ = (
        "_body", "_chunked", "_head_read", "_keep", "_length", "_owner", "_partial", "_pending", "_streaming",
        "asked_tokens", "chunks", "done_at", "due_at", "error_text", "finish_reason", "first_at", "gaps", "got_bytes",
        "heard_at", "last_token_at", "open", "retried", "row", "served", "status", "transport", "usage_prompt",
        "usage_tokens", "written_at",
    )  # fmt: skip

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.transport: asyncio.Transport | None = None
        self.open = False
        self.row = IDLE
        self.served = 0  # requests answered on this connection, so 0 means fresh
        self.gaps = array("f")
        self._pending = b""
        self._reset(IDLE, 0.0, 0, retried=False)

    def _reset(self, row: int, due_at: float, asked_tokens: int, *, retried: bool) -> None:
        self.row = row
        self.due_at = due_at
        self.asked_tokens = asked_tokens
        self.retried = retried
        self.written_at = self.first_at = self.last_token_at = self.done_at = self.heard_at = 0.0
        self.chunks = 0
        self.usage_tokens = self.usage_prompt = -1
        self.finish_reason: str | None = None
        self.error_text: str | None = None
        self.status = 0
        self.got_bytes = False
        self._head_read = False
        self._chunked = False
        self._streaming = False
        self._keep = True
        self._length: int | None = None
        self._body = b""
        self._partial = b""
        self._pending = b""
        del self.gaps[:]

    # -- sending ----------------------------------------------------------------------------------------------------

    def send(self, row: int, due_at: float, asked_tokens: int, request: bytes, *, retried: bool) -> None:
        """Write a whole request. The connection must be open and idle."""
        assert self.transport is not None  # noqa: S101  (set by connection_made)
        self._reset(row, due_at, asked_tokens, retried=retried)
        self.transport.write(request)
        self.written_at = self.heard_at = monotonic()

    def abandon(self) -> None:
        """Close at once without reporting anything."""
        self.row = IDLE
        self.open = False
        if self.transport is not None:
            self.transport.abort()

    # -- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream protocol gets a Transport
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self.row != IDLE:
            self._ended_by_close(exc)
        self._owner.connection_gone(self)

    def eof_received(self) -> bool:
        return False  # close our side too: connection_lost follows and judges

    def data_received(self, data: bytes) -> None:
        now = monotonic()
        if self.row == IDLE:  # bytes without a request: the connection cannot be trusted
            self.abandon()
            return
        self.heard_at = now
        self.got_bytes = True
        if self._pending:
            data = self._pending + data
            self._pending = b""
        position = 0
        while not self._head_read:
            end = data.find(b"\r\n\r\n", position)
            if end < 0:
                if len(data) > MAX_HEAD_BYTES:
                    self._fail(Outcome.BAD_RESPONSE, "the header of the answer never ends", now)
                    return
                self._pending = data[position:]
                return
            if not self._read_head(data[position:end], now):
                return
            position = end + 4
        if self._chunked:
            self._read_chunks(data, position, now)
        else:
            self._read_plain(data[position:] if position else data, now)

    # -- HTTP -------------------------------------------------------------------------------------------------------

    def _read_head(self, head: bytes, now: float) -> bool:
        lines = head.split(b"\r\n")
        parts = lines[0].split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            self._fail(Outcome.BAD_RESPONSE, f"not HTTP/1.1: {_printable(lines[0])}", now)
            return False
        status = int(parts[1])
        if 100 <= status < 200:
            return True  # interim answer: the final head follows
        self.status = status
        self._keep = parts[0] != b"HTTP/1.0"
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            name = name.lower()
            if name == b"transfer-encoding":
                self._chunked = b"chunked" in value.lower()
            elif name == b"content-length":
                if not value.strip().isdigit():
                    self._fail(Outcome.BAD_RESPONSE, f"bad Content-Length: {_printable(value)}", now)
                    return False
                self._length = int(value)
            elif name == b"content-type":
                self._streaming = b"text/event-stream" in value.lower()
            elif name == b"connection":
                self._keep = b"close" not in value.lower() and (self._keep or b"keep-alive" in value.lower())
        self._streaming = self._streaming and status == 200
        self._head_read = True
        if self._length == 0 and not self._chunked:
            self._body_ended(now)
            return False
        return True

    def _read_chunks(self, data: bytes, position: int, now: float) -> None:
        length = len(data)
        while position < length:
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                break
            try:
                size = int(data[position:line_end].partition(b";")[0], 16)
            except ValueError:
                self._fail(
                    Outcome.BAD_RESPONSE, f"bad chunk size: {_printable(data[position:line_end])}", now
                )
                return
            begin = line_end + 2
            if size == 0:
                if data[begin : begin + 2] == b"\r\n" or data.find(b"\r\n\r\n", line_end) >= 0:
                    self._body_ended(now)
                    return
                break
            end = begin + size
            if end + 2 > length:
                if not 0 < size <= MAX_CHUNK_BYTES:
                    self._fail(Outcome.BAD_RESPONSE, f"a chunk of {size} bytes", now)
                    return
                break
            self._read_body(data[begin:end], now)
            position = end + 2
        self._pending = data[position:]

    def _read_plain(self, data: bytes, now: float) -> None:
        """Read a body with a Content-Length, or up to the end of the connection."""
        self._read_body(data, now)
        if self._length is not None:
            self._length -= len(data)
            if self._length <= 0:
                self._body_ended(now)

    # -- server-sent events -----------------------------------------------------------------------------------------

    def _read_body(self, payload: bytes, now: float) -> None:
        if not self._streaming:
            if len(self._body) < MAX_KEPT_BODY_BYTES:
                self._body += payload[:MAX_KEPT_BODY_BYTES]
            return
        if self._partial:
            payload = self._partial + payload
            self._partial = b""
        lines = payload.split(b"\n")
        self._partial = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._read_event(line[5:], now)
            elif line.startswith(b"event:") and b"error" in line and self.error_text is None:
                self.error_text = "event: error"

    def _read_event(self, raw: bytes, now: float) -> None:
        if raw.startswith((b" [DONE]", b"[DONE]")):
            self.done_at = now
            return
        try:
            event: Any = from_json(raw)
            choices = event.get("choices")
            if choices:
                choice = choices[0]
                text = choice.get("text")
                if text is None:
                    delta = choice.get("delta") or {}
                    text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
                if text:
                    self._token(now)
                if (reason := choice.get("finish_reason")) is not None:
                    self.finish_reason = str(reason)
            if usage := event.get("usage"):
                self.usage_tokens = int(usage["completion_tokens"])
                self.usage_prompt = int(usage.get("prompt_tokens") or 0)
            if error := event.get("error"):
                self.error_text = _error_text(error)
        except (ValueError, AttributeError, TypeError, KeyError, IndexError) as problem:
            self.error_text = self.error_text or f"unreadable event ({problem}): {_printable(raw)}"

    def _token(self, now: float) -> None:
        if self.chunks:
            self.gaps.append(now - self.last_token_at)
        else:
            self.first_at = now
        self.chunks += 1
        self.last_token_at = now

    # -- the end of a request ---------------------------------------------------------------------------------------

    def _body_ended(self, now: float) -> None:
        if self._partial and self._streaming:  # a last line without its newline
            self._read_body(b"\n", now)
        outcome, detail = self.judge()
        self._end(outcome, detail, self.done_at or now)

    def judge(self) -> tuple[Outcome, str]:
        """Judge the complete answer. Return its class and the detail."""
        if self.status != 200:
            detail = f"HTTP {self.status} {_body_text(self._body)}".strip()
            by_status = {429: Outcome.HTTP_429, 503: Outcome.HTTP_503}
            by_class = Outcome.HTTP_5XX if self.status >= 500 else Outcome.HTTP_4XX
            return by_status.get(self.status, by_class), detail
        if not self._streaming:
            return Outcome.BAD_RESPONSE, f"not an event stream: {_printable(self._body)}"
        if self.error_text is not None:
            return Outcome.ERROR_EVENT, self.error_text
        if not self.done_at:
            outcome = Outcome.CUT_STREAM if self.finish_reason is None else Outcome.MISSING_DONE
            return outcome, f"ended after {self.chunks} chunks"
        allowed = ("length",) if self._owner.ignore_eos else ("length", "stop")
        if self.finish_reason not in allowed:
            return Outcome.WRONG_FINISH_REASON, f"finish_reason {self.finish_reason!r}"
        if self.usage_tokens < 0 and self._owner.require_usage:
            return Outcome.MISSING_USAGE, f"{self.chunks} chunks, no usage"
        if self.chunks == 0:
            return Outcome.EMPTY_RESPONSE, f"usage says {self.usage_tokens} tokens, no chunk has text"
        if self.usage_tokens >= 0:
            return self._judge_counts()
        return Outcome.OK, ""

    def _judge_counts(self) -> tuple[Outcome, str]:
        asked, counted = self.asked_tokens, self.usage_tokens
        fits = counted == asked or (self.finish_reason == "stop" and 0 < counted <= asked)
        if not fits:
            return Outcome.WRONG_TOKEN_COUNT, f"asked {asked} tokens, usage says {counted}"
        if self.chunks > counted:
            return Outcome.WRONG_TOKEN_COUNT, f"usage says {counted} tokens, {self.chunks} chunks had text"
        return Outcome.OK, ""

    def _ended_by_close(self, exc: Exception | None) -> None:
        now = monotonic()
        ends_with_connection = self._head_read and self._length is None and not self._chunked
        if ends_with_connection or self.done_at or self.status not in (0, 200):
            self._keep = self._keep and not ends_with_connection
            self._body_ended(now)  # `judge` decides if it is whole
        elif not self.status:
            reason = f"{type(exc).__name__}: {exc}" if exc else "closed by the server"
            self._end(Outcome.CONNECTION_RESET, reason, now)
        elif self.error_text is not None:
            self._end(Outcome.ERROR_EVENT, self.error_text, now)
        else:
            self._end(Outcome.CUT_STREAM, f"the connection closed after {self.chunks} chunks", now)

    def _fail(self, outcome: Outcome, detail: str, now: float) -> None:
        self._keep = False
        self._end(outcome, detail, now)

    def _end(self, outcome: Outcome, detail: str, at_s: float) -> None:
        if not self._keep and self.transport is not None:
            self.open = False
            self.transport.close()
        self.served += 1
        self._pending = b""
        self._owner.request_ended(self, outcome, detail, at_s)


def _printable(raw: bytes) -> str:
    return raw[:KEPT_DETAIL].decode("ascii", errors="replace").strip()


def _error_text(error: object) -> str:
    if isinstance(error, dict):
        return str(error.get("message") or error)[:KEPT_DETAIL]
    return str(error)[:KEPT_DETAIL]


def _body_text(body: bytes) -> str:
    """Return the message in an error body of a usual shape, else the beginning of the body."""
    try:
        document = from_json(body)
    except ValueError:
        return _printable(body)
    if isinstance(document, dict):
        return _error_text(
            document.get("error") or document.get("message") or document.get("detail") or document
        )
    return _printable(body)
