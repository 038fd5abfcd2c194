"""Engine adapters: the server of a tier over HTTP, proved by a generated token and never by its health endpoint alone.

Differences between engines are a table of metric names (`engine_metrics.py`) and their profilers. A session lives for one
call, so that an adapter works in any event loop and nothing is left open.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import aiohttp

from gpu_actions.config.host import EngineConfig, EngineKind
from gpu_actions.serving.engines.engine_metrics import read_engine_metrics
from gpu_actions.serving.engines.engine_profile import folder_of_listener, traces_since
from gpu_actions.serving.engines.engine_stream import CompletionReader
from gpu_actions.serving.interfaces import (
    Completion,
    EngineError,
    EngineMetrics,
    StillStarting,
)
from gpu_actions.system.clock import boot_clock_s
from gpu_actions.system.listening import until_listening
from gpu_actions.system.urls import port_of

READY_PROMPT = "The quick brown fox"
READY_TOKENS = 2
FIRST_POLL_S = 0.05
LAST_POLL_S = 0.5

REFUSED_FOR_GOOD = frozenset({401, 403, 404})
"""Answers that more waiting does not change: a wrong key or a model name that the engine does not serve."""

REFUSALS_BELIEVED = 3
"""An engine whose routes come up one by one may answer 404 for a moment."""

STOP_PROFILE_TIMEOUT_S = 600.0
"""vLLM flushes its trace while it stops the profiler; its manual speaks of minutes for a large one."""

PROFILE_MEMORY_S = 900.0
"""Traces are looked for this far back when the profiler was started by a bot that has been killed since."""


class RefusedError(EngineError):
    """The engine answered with an error status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class HttpEngine:
    """An OpenAI-compatible server. Satisfies the `Engine` interface."""

    profiler_hint: ClassVar[str] = (
        "its kind is openai, of which no profiler is known: set engine.kind to reference, vllm or sglang"
    )

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.kind: str = config.kind
        self.url = config.url
        self.model = config.model
        self._profile_began_s: float | None = None

    # -- reading -------------------------------------------------------------------------------------------------

    async def metrics(self, *, timeout_s: float = 2.0) -> EngineMetrics:
        """Read its counters. Raises EngineError when the page does not come or is not Prometheus text."""
        url = f"{self.url}/metrics"
        async with self._request("GET", "/metrics", timeout_s=timeout_s) as response:
            text = await response.text()
        try:
            return read_engine_metrics(
                text, kind=self.config.kind, model=self.model, taken_at_s=boot_clock_s()
            )
        except ValueError as error:
            raise EngineError(f"{url} answered with something else than metrics: {error}") from error

    async def is_live(self, *, timeout_s: float = 2.0) -> bool:
        """Say whether its health endpoint answers 200. A hung engine still does, for minutes."""
        try:
            async with self._request("GET", "/health", timeout_s=timeout_s):
                return True
        except EngineError:
            return False

    async def complete(self, prompt: str, *, max_tokens: int, timeout_s: float) -> Completion:
        """Generate up to `max_tokens`, streamed, within `timeout_s` in all. Raises EngineError for anything but a full,
        well-formed answer with at least one token."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        url = f"{self.url}/v1/completions"
        reader = CompletionReader(url, max_tokens=max_tokens, begun=time.monotonic())
        async with self._request("POST", "/v1/completions", timeout_s=timeout_s, body=body) as response:
            if not response.content_type.startswith("text/event-stream"):
                start = (await response.text())[:300]
                raise EngineError(f"{url} answered {response.content_type} to a streamed request: {start}")
            async for line in response.content:
                reader.feed(line)
        return reader.result()

    async def wait_ready(
        self, *, timeout_s: float, still_starting: StillStarting | None = None
    ) -> Completion:
        """Wait until it has generated a token. Until somebody listens on its port only that is asked, every 30 ms; then a
        completion, every 50 ms at first, every half second later.

        Raises EngineError at the deadline, at once when `still_starting` says that its process is gone, and soon when
        it refuses for good (wrong key, unknown model).
        """
        deadline = time.monotonic() + timeout_s
        pause_s = FIRST_POLL_S
        refusals = 0
        while True:
            await until_listening(self.url, deadline=deadline, still_starting=still_starting)
            left = deadline - time.monotonic()
            try:
                return await self.complete(
                    READY_PROMPT,
                    max_tokens=READY_TOKENS,
                    timeout_s=max(0.1, min(left, self.config.request_timeout_s)),
                )
            except EngineError as error:
                last = error
            refused = isinstance(last, RefusedError) and last.status in REFUSED_FOR_GOOD
            refusals = refusals + 1 if refused else 0
            if refusals >= REFUSALS_BELIEVED:
                raise EngineError(f"the engine is up but refuses to serve: {last}") from last
            if still_starting is not None and not await still_starting():
                raise EngineError(f"the engine's process is gone, so it never got ready: {last}") from last
            if time.monotonic() + pause_s >= deadline:
                raise EngineError(f"the engine was not ready within {timeout_s:.0f} s: {last}") from last
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.3, LAST_POLL_S)

    # -- profiler ------------------------------------------------------------------------------------------------

    async def start_profile(self, *, max_iterations: int) -> None:
        """Start the engine's torch profiler, for at most `max_iterations` engine steps where the engine can count them.

        Raises EngineError that names the missing flag when the engine was started without one.
        """
        self._profile_began_s = time.time()
        await self._profile("/start_profile", self._profile_body(max_iterations), timeout_s=30)

    async def stop_profile(self) -> tuple[Path, ...]:
        """Stop the profiler; gives the trace files that it wrote. Raises EngineError when none can be found."""
        refusal: RefusedError | None = None
        try:
            reply = await self._profile("/stop_profile", None, timeout_s=STOP_PROFILE_TIMEOUT_S)
        except RefusedError as error:
            # SGLang's profiler ends by itself after its steps and then refuses to be stopped: its trace is there.
            reply, refusal = {}, error
        if named := [Path(path) for path in reply.get("files", ())]:
            return tuple(named)
        folder = folder_of_listener(port_of(self.url)) or self._default_profile_folder()
        if folder is None:
            raise EngineError(
                f"the profiler of {self.url} was stopped, but its trace folder is not known: the engine's process is "
                "not on this host, or belongs to somebody else"
            )
        since = self._profile_began_s or time.time() - PROFILE_MEMORY_S
        files = traces_since(folder, since - 1)
        if not files:
            raise EngineError(
                f"no new trace of {self.url} in {folder}: {refusal or 'the profiler was stopped'}"
            )
        return files

    def _profile_body(self, max_iterations: int) -> dict[str, Any]:
        return {"max_iterations": max_iterations}

    def _default_profile_folder(self) -> Path | None:
        return None

    async def _profile(self, path: str, body: dict[str, Any] | None, *, timeout_s: float) -> dict[str, Any]:
        try:
            async with self._request("POST", path, timeout_s=timeout_s, body=body) as response:
                text = await response.text()
        except RefusedError as error:
            if error.status in {404, 405, 501}:
                raise EngineError(f"{self.url} has no profiler: {self.profiler_hint}") from error
            raise
        try:
            reply = json.loads(text)
        except json.JSONDecodeError:
            return {}  # vLLM answers with an empty body, SGLang with a sentence
        return reply if isinstance(reply, dict) else {}

    # -- HTTP ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, *, timeout_s: float, body: dict[str, Any] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request and give its 200 response. Every failure, also one while reading, becomes an EngineError."""
        url = f"{self.url}{path}"
        headers = {}
        if self.config.api_key is not None:
            headers["Authorization"] = f"Bearer {self.config.api_key.get_secret_value()}"
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=timeout_s), headers=headers
                ) as session,
                session.request(method, url, json=body) as response,
            ):
                if response.status != 200:
                    start = (await response.text(errors="replace"))[:300]
                    raise RefusedError(f"{url} answered {response.status}: {start}", status=response.status)
                yield response
        except TimeoutError as error:
            raise EngineError(f"{url} gave no full answer within {timeout_s:.1f} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EngineError(f"{url} failed: {type(error).__name__}: {error}") from error


class ReferenceEngine(HttpEngine):
    """The project's own engine, for drills and tests; it names its trace files itself."""

    profiler_hint = "start the reference engine with --profiler-dir /path/of/traces"


class VllmEngine(HttpEngine):
    """vLLM. Its profiler must be configured at its start; it takes no number of iterations by request."""

    profiler_hint = (
        'start vLLM with --profiler-config \'{"profiler": "torch", "torch_profiler_dir": "/path/of/traces"}\' '
        "(before 0.13: with VLLM_TORCH_PROFILER_DIR=/path/of/traces in its environment)"
    )


class SglangEngine(HttpEngine):
    """SGLang. Its profiler needs no flag; without SGLANG_TORCH_PROFILER_DIR it writes to /tmp."""

    profiler_hint = "this SGLang has no /start_profile: is the URL the engine's own and not a gateway's?"

    def _profile_body(self, max_iterations: int) -> dict[str, Any]:
        return {"num_steps": max_iterations, "activities": ["CPU", "GPU"]}

    def _default_profile_folder(self) -> Path | None:
        return Path("/tmp")  # noqa: S108  (SGLang's own default)

    async def metrics(self, *, timeout_s: float = 2.0) -> EngineMetrics:
        """Read its counters; SGLang has them only with --enable-metrics."""
        try:
            return await super().metrics(timeout_s=timeout_s)
        except RefusedError as error:
            if error.status == 404:
                raise EngineError(
                    f"{self.url} has no /metrics: start SGLang with --enable-metrics"
                ) from error
            raise


ENGINES: dict[EngineKind, type[HttpEngine]] = {
    "reference": ReferenceEngine,
    "vllm": VllmEngine,
    "sglang": SglangEngine,
    "openai": HttpEngine,
}


def build_http_engine(config: EngineConfig) -> HttpEngine:
    """Give the adapter of the engine's kind."""
    return ENGINES[config.kind](config)
