"""The HTTP side, on aiohttp in rank 0's main thread: OpenAI's routes, health, readiness, metrics and the profiler."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import web

from demo.engine.engine import Engine
from demo.engine.openai import Answer, GenerateRequest, read_request
from demo.engine.options import Options
from demo.engine.request import ApiError, Request, TokenEvent

log = logging.getLogger(__name__)

VERSION = "1"
"""Changes when the same seed no longer draws the same model."""

MAX_BODY_BYTES = 16 * 1024 * 1024
STOP_PROFILE_TIMEOUT_S = 120
"""A frozen rank never writes its trace; the caller gets an error after this time."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _json(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    text = json.dumps(body, ensure_ascii=False)
    return web.Response(text=text, status=status, content_type="application/json", headers=headers)


async def _body(http: web.Request) -> Any:
    try:
        return json.loads(await http.read())
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from error


class HttpApi:
    """The routes over one engine."""

    def __init__(self, engine: Engine, options: Options) -> None:
        self._engine = engine
        self._options = options

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._openai_errors], client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        if self._options.enable_sleep_mode:
            app.router.add_post("/sleep", self._sleep)
            app.router.add_post("/wake_up", self._wake_up)
            app.router.add_get("/is_sleeping", self._is_sleeping)
        if self._options.profiler_dir is not None:
            app.router.add_post("/start_profile", self._start_profile)
            app.router.add_post("/stop_profile", self._stop_profile)
        return app

    @web.middleware
    async def _openai_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Return every refusal in OpenAI's shape, also those that aiohttp raises itself (404, 405, 413)."""
        try:
            return await handler(request)
        except ApiError as raised:
            error = raised
        except web.HTTPException as raised:
            if raised.status < 400:
                raise
            message = f"{request.method} {request.path}: {raised.reason}"
            error = ApiError(raised.status, raised.reason.lower().replace(" ", "_"), message)
        headers = {"Retry-After": str(self._options.retry_after_s)} if error.status == 503 else None
        return _json(error.body(), status=error.status, headers=headers)

    # -- state ---------------------------------------------------------------------------------------------------

    async def _health(self, _request: web.Request) -> web.Response:
        """Return 200 once the model is loaded and until a drain begins, also while a collective hangs, as real engines do."""
        return self._state(self._engine.live)

    async def _ready(self, _request: web.Request) -> web.Response:
        """Return 200 once the engine has generated tokens by itself."""
        return self._state(self._engine.ready)

    def _state(self, fine: bool) -> web.Response:
        if self._engine.draining:
            return _json({"status": "shutting_down"}, status=503)
        return _json({"status": "ok"}) if fine else _json({"status": "starting"}, status=503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(text=self._engine.scrape(), headers=headers)

    async def _version(self, _request: web.Request) -> web.Response:
        """Return the version at the path that vLLM uses."""
        return _json({"version": VERSION})

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
        return await self._generate(http, read_request(await _body(http), self._options, chat=False))

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        return await self._generate(http, read_request(await _body(http), self._options, chat=True))

    async def _generate(self, http: web.Request, asked: GenerateRequest) -> web.StreamResponse:
        request = Request(asked.prompt, asked.max_tokens, asked.ignore_eos, asked.logprobs, asked.echo)
        self._engine.submit(request)
        answer = Answer(asked, self._options.model_name)
        try:
            if asked.stream:
                return await self._stream(http, asked, request, answer)
            events = [event async for event in self._events(request)]
            return _json(answer.whole(events, request.echoed))
        finally:
            self._engine.abandon(request)  # no effect on an ended request; any other has lost its client

    async def _events(self, request: Request) -> AsyncIterator[TokenEvent]:
        """Yield the request's tokens to the last. Raises ApiError when the engine ends it early."""
        while True:
            event = await request.events.get()
            if isinstance(event, ApiError):
                raise event
            yield event
            if event.finish_reason is not None:
                return

    async def _stream(
        self, http: web.Request, asked: GenerateRequest, request: Request, answer: Answer
    ) -> web.StreamResponse:
        """Send server-sent events. The status goes out with the first token, so a time-out in the queue is still a 503."""
        events = self._events(request)
        event = await anext(events)
        response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        await response.prepare(http)

        async def send(body: Any) -> None:
            await response.write(f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode())

        try:
            if asked.chat:
                await send(answer.role_chunk())
            await send(answer.token_chunk([event], request.echoed, first=True))
            count = 1
            async for event in events:
                count += 1
                await send(answer.token_chunk([event]))
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

    # -- sleep mode ----------------------------------------------------------------------------------------------

    async def _sleep(self, _http: web.Request) -> web.Response:
        if not self._engine.ready or self._engine.draining:
            raise ApiError(503, "not_ready", "the engine is starting or shutting down")
        if not self._engine.asleep:
            await self._engine.sleep()
        return _json({"is_sleeping": True})

    async def _wake_up(self, _http: web.Request) -> web.Response:
        if self._engine.asleep:
            await self._engine.wake_up()
        return _json({"is_sleeping": False})

    async def _is_sleeping(self, _http: web.Request) -> web.Response:
        return _json({"is_sleeping": self._engine.asleep})

    # -- profiler ------------------------------------------------------------------------------------------------

    async def _start_profile(self, http: web.Request) -> web.Response:
        body = await _body(http) if http.can_read_body else {}
        most = self._options.profiler_max_iterations
        limit = body.get("max_iterations") if isinstance(body, dict) else None
        if limit is None:
            limit = most
        if type(limit) is not int or limit < 1:
            message = f"max_iterations must be a whole number above 0, not {limit!r}"
            raise ApiError(400, "invalid_value", message, param="max_iterations")
        if not self._engine.ready or self._engine.draining:
            raise ApiError(503, "not_ready", "the engine is starting or shutting down")
        if self._engine.profiling:
            raise ApiError(409, "conflict", "a profile is running already: POST /stop_profile first")
        async with asyncio.timeout(STOP_PROFILE_TIMEOUT_S):
            await self._engine.start_profile(min(limit, most))
        return _json({"status": "profiling", "max_iterations": min(limit, most)})

    async def _stop_profile(self, _http: web.Request) -> web.Response:
        if not self._engine.profiling:
            raise ApiError(409, "conflict", "no profile is running: POST /start_profile first")
        try:
            async with asyncio.timeout(STOP_PROFILE_TIMEOUT_S):
                files, complete = await self._engine.stop_profile()
        except TimeoutError as error:
            message = f"the ranks did not write their traces within {STOP_PROFILE_TIMEOUT_S} s: one may hang"
            raise ApiError(504, "timeout", message) from error
        if not complete:
            raise ApiError(500, "trace_failed", "a rank could not write its trace: see the log")
        return _json({"files": [str(path) for path in files]})
