"""The HTTP side: OpenAI's routes, health, readiness, metrics and the profiler, on aiohttp in rank 0's main thread."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from demo.engine.answers import Answer
from demo.engine.engine import Engine, Refused
from demo.engine.options import Options
from demo.engine.protocol import ApiError, Asked, read_chat, read_completion
from demo.engine.request import Rejection, Request, TokenEvent

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 1024 * 1024
STOP_PROFILE_TIMEOUT_S = 120
"""A frozen rank never writes its trace; the caller then learns it after this long."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _json(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        text=json.dumps(body, ensure_ascii=False),
        status=status,
        content_type="application/json",
        headers=headers,
    )


def _error(error: ApiError) -> web.Response:
    again = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return _json(error.body(), status=error.status, headers=again)


@web.middleware
async def _openai_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal has OpenAI's shape, also those that aiohttp makes itself (404, 405, 413)."""
    try:
        return await handler(request)
    except ApiError as error:
        return _error(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        what = f"{request.method} {request.path}: {error.reason}"
        return _error(ApiError(error.status, what, code=error.reason.lower().replace(" ", "_")))


class Api:
    """The routes over one engine."""

    def __init__(self, engine: Engine, options: Options) -> None:
        self._engine = engine
        self._options = options

    def application(self) -> web.Application:
        app = web.Application(middlewares=[_openai_errors], client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        if self._options.profiler_dir is not None:
            app.router.add_post("/start_profile", self._start_profile)
            app.router.add_post("/stop_profile", self._stop_profile)
        return app

    # -- state ---------------------------------------------------------------------------------------------------

    async def _health(self, _request: web.Request) -> web.Response:
        """200 once the model is loaded and until a drain begins, also while a collective hangs, as real engines do."""
        return self._state(self._engine.live)

    async def _ready(self, _request: web.Request) -> web.Response:
        """200 once the engine has generated tokens by itself."""
        return self._state(self._engine.ready)

    def _state(self, fine: bool) -> web.Response:
        if self._engine.draining:
            return _json({"status": "shutting_down"}, status=503)
        return _json({"status": "ok"}) if fine else _json({"status": "starting"}, status=503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            text=self._engine.scrape(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _models(self, _request: web.Request) -> web.Response:
        model = {
            "id": self._options.model_name,
            "object": "model",
            "owned_by": "gpu-oncall",
            "max_model_len": self._options.max_model_len,
        }
        return _json({"object": "list", "data": [model]})

    # -- generation ----------------------------------------------------------------------------------------------

    async def _completions(self, http: web.Request) -> web.StreamResponse:
        return await self._generate(http, read_completion(await _body(http), self._options))

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        return await self._generate(http, read_chat(await _body(http), self._options))

    async def _generate(self, http: web.Request, asked: Asked) -> web.StreamResponse:
        try:
            request = self._engine.submit(asked.prompt, asked.parameters)
        except Refused as error:
            raise self._refusal(error.rejection) from error
        try:
            answer = Answer(asked, self._options.model_name)
            if asked.stream:
                return await self._stream(http, asked, request, answer)
            events = [event async for event in self._events(request)]
            return _json(answer.whole(events))
        finally:
            self._engine.abandon(request)  # without effect when it ended; else the client is gone

    def _refusal(self, rejection: Rejection) -> ApiError:
        return ApiError.of(rejection, retry_after_s=self._options.retry_after_s)

    async def _events(self, request: Request) -> AsyncIterator[TokenEvent]:
        """The request's tokens to the last. Raises ApiError when the engine ends it early."""
        while True:
            event = await request.events.get()
            if isinstance(event, Rejection):
                raise self._refusal(event)
            yield event
            if event.finish_reason is not None:
                return

    async def _stream(
        self, http: web.Request, asked: Asked, request: Request, answer: Answer
    ) -> web.StreamResponse:
        """Server-sent events. The status is sent with the first token, so that a time-out in the queue is still a 503."""
        events = self._events(request)
        first = await anext(events)
        response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        await response.prepare(http)

        async def send(body: Any) -> None:
            await response.write(f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode())

        try:
            if asked.chat:
                await send(answer.role_chunk())
            pending: list[TokenEvent] = []
            count = 0
            async for event in _with_first(first, events):
                count += 1
                pending.append(event)
                if event.text or event.finish_reason:  # an unfinished character waits for its next byte
                    await send(answer.token_chunk(event.text, pending))
                    pending = []
            if asked.include_usage:
                await send(answer.usage_chunk(count))
            await response.write(b"data: [DONE]\n\n")
        except ApiError as error:  # in the middle of a stream: an error event, and no [DONE]
            await send(error.body())
        except ConnectionError:
            log.info("a client left in the middle of its stream")
            raise
        await response.write_eof()
        return response

    # -- profiler ------------------------------------------------------------------------------------------------

    async def _start_profile(self, http: web.Request) -> web.Response:
        body = await _body(http) if http.can_read_body else {}
        most = self._options.profiler_max_iterations
        wanted = body.get("max_iterations") if isinstance(body, dict) else None
        if wanted is None:
            wanted = most
        if type(wanted) is not int or wanted < 1:
            message = f"max_iterations must be a whole number above 0, not {wanted!r}"
            raise ApiError(400, message, code="invalid_value", param="max_iterations")
        if not self._engine.ready or self._engine.draining:
            raise self._refusal(Rejection(503, "not_ready", "the engine is starting or shutting down"))
        if self._engine.profiling:
            raise ApiError(409, "a profile is running already: POST /stop_profile first", code="conflict")
        limit = min(wanted, most)
        async with asyncio.timeout(STOP_PROFILE_TIMEOUT_S):
            await self._engine.start_profile(limit)
        return _json({"status": "profiling", "max_iterations": limit})

    async def _stop_profile(self, _http: web.Request) -> web.Response:
        if not self._engine.profiling:
            raise ApiError(409, "no profile is running: POST /start_profile first", code="conflict")
        try:
            async with asyncio.timeout(STOP_PROFILE_TIMEOUT_S):
                files, complete = await self._engine.stop_profile()
        except TimeoutError as error:
            message = f"the ranks did not write their traces within {STOP_PROFILE_TIMEOUT_S} s: one may hang"
            raise ApiError(504, message, code="timeout") from error
        if not complete:
            raise ApiError(500, "a rank could not write its trace: see the log", code="trace_failed")
        return _json({"files": [str(path) for path in files]})


async def _with_first(first: TokenEvent, rest: AsyncIterator[TokenEvent]) -> AsyncIterator[TokenEvent]:
    yield first
    async for event in rest:
        yield event


async def _body(http: web.Request) -> Any:
    try:
        return json.loads(await http.read())
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error
