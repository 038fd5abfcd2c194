"""The clients: they send a schedule through a router, whatever comes back, and note what they see."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from demo.traffic.account import Account, Answer, Ending
from demo.traffic.schedule import Profile, schedule

REFUSALS = (429, 503)
FINISH_REASONS = ("stop", "length")


class Clients:
    """Sends a profile's requests to a server that speaks the OpenAI completions API."""

    def __init__(self, url: str, profile: Profile, *, model: str, account: Account | None = None) -> None:
        self._url = f"{url}/v1/completions"
        self._profile = profile
        self._model = model
        self.account = Account() if account is None else account

    @contextlib.asynccontextmanager
    async def running(self, *, finish: bool = True) -> AsyncIterator[Account]:
        """Send requests until the block ends. Then open requests may `finish`, or count as unfinished."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=None)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as kept,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=timeout
            ) as own,
        ):
            asked: set[asyncio.Task[None]] = set()
            sending = asyncio.create_task(self._send(kept, own, asked))
            try:
                yield self.account
            finally:
                self.account.stopped_at = time.monotonic()
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sending
                if not finish:
                    for task in asked:
                        task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)

    async def _send(
        self, kept: aiohttp.ClientSession, own: aiohttp.ClientSession, asked: set[asyncio.Task[None]]
    ) -> None:
        began = time.monotonic()
        for request in schedule(self._profile):
            due_at = began + request.due_s
            if (wait_s := due_at - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            answer = Answer(request, due_at)
            task = asyncio.create_task(self._ask(kept if request.kept else own, answer))
            asked.add(task)
            task.add_done_callback(asked.discard)

    async def _ask(self, session: aiohttp.ClientSession, answer: Answer) -> None:
        """Ask until there is an answer, or the attempts are spent, and close the account of it."""
        profile = self._profile
        answer.sent_at = time.monotonic()
        self.account.opened(answer)
        ending, detail = Ending.UNFINISHED, ""
        try:
            while True:
                ending, detail = await self._attempt(session, answer)
                if ending is not Ending.REFUSED:
                    break
                answer.refusals += 1
                if not profile.honours_retry_after or answer.refusals >= profile.attempts:
                    break
                await asyncio.sleep(answer.retry_after_s or 0.0)
                answer.sent_at, answer.first_byte_at = time.monotonic(), None
        except asyncio.CancelledError:
            ending, detail = Ending.UNFINISHED, ""
            raise
        finally:
            self.account.closed(answer, ending, detail)

    async def _attempt(self, session: aiohttp.ClientSession, answer: Answer) -> tuple[Ending, str]:
        request = answer.request
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": request.prompt,
            "max_tokens": request.tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": request.streamed,
        }
        try:
            async with (
                asyncio.timeout(self._profile.patience_s),
                session.post(self._url, json=body) as response,
            ):
                answer.first_byte_at, answer.status = time.monotonic(), response.status
                if response.status != 200:
                    text = await response.text()
                    answer.retry_after_s = _seconds(response.headers.get("Retry-After"))
                    ending = Ending.REFUSED if response.status in REFUSALS else Ending.FAILED
                    return ending, f"{response.status}: {text[:200]}"
                if request.streamed:
                    ended = await self._read_stream(response, answer)
                    if ended[0] is Ending.HUNG_UP:
                        response.close()
                    return ended
                return self._read_whole(await response.read(), answer)
        except TimeoutError:
            unanswered = answer.first_byte_at is None
            return (
                Ending.NEVER_ANSWERED if unanswered else Ending.STALLED
            ), f"gave up after {self._profile.patience_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            unanswered = answer.first_byte_at is None
            return (
                Ending.NEVER_ANSWERED if unanswered else Ending.ABORTED
            ), f"{type(error).__name__}: {error}"

    async def _read_stream(self, response: aiohttp.ClientResponse, answer: Answer) -> tuple[Ending, str]:
        """Read an event stream to its end, as a client that trusts only [DONE] and a finish reason would."""
        request, finish_reason = answer.request, None
        async for line in response.content:
            if line.startswith(b"event: error"):
                return Ending.ERROR_EVENT, line.decode(errors="replace")
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                if finish_reason not in FINISH_REASONS or not answer.tokens:
                    return Ending.ERROR_EVENT, f"finish reason {finish_reason}, {answer.tokens} tokens"
                return Ending.FINISHED, ""
            chunk = json.loads(data)
            if chunk.get("error"):
                return Ending.ERROR_EVENT, data[:200].decode(errors="replace")
            answer.served_by = self._server(chunk) or answer.served_by
            for choice in chunk.get("choices") or ():
                finish_reason = choice.get("finish_reason") or finish_reason
                if choice.get("text"):
                    self.account.token(answer)
            if request.hangs_up_after is not None and answer.tokens >= request.hangs_up_after:
                return Ending.HUNG_UP, ""
            if request.slow:
                await asyncio.sleep(self._profile.slow_read_s)
        return Ending.ABORTED, "the stream ended without [DONE]"

    def _server(self, document: dict[str, Any]) -> str:
        """Return who answered: an engine that has several model names answers with its first one."""
        model = document.get("model") or self._model
        return str(document.get("system_fingerprint") or "") if model == self._model else str(model)

    def _read_whole(self, body: bytes, answer: Answer) -> tuple[Ending, str]:
        try:
            document = json.loads(body)
            tokens = int(document["usage"]["completion_tokens"])
            finish_reason = document["choices"][0]["finish_reason"]
        except (ValueError, KeyError, IndexError, TypeError):
            return Ending.ERROR_EVENT, body[:200].decode(errors="replace")
        answer.served_by = self._server(document)
        if tokens <= 0 or finish_reason not in FINISH_REASONS:
            return Ending.ERROR_EVENT, f"finish reason {finish_reason}, {tokens} tokens"
        self.account.token(answer, tokens)
        return Ending.FINISHED, ""


def _seconds(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, or None where it is missing or a date."""
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
