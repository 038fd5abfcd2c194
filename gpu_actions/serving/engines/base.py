"""What every OpenAI-compatible engine shares. A tier serves when it has generated a token, not when /health answers.

An HTTP session lives for one call, so an adapter works in any event loop and leaves nothing open.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gpu_actions.serving.engines.completion import CompletionReader, completion_request
from gpu_actions.serving.engines.logprobs import (
    LogprobsUnavailable,
    forced_request,
    read_forced,
    read_scored,
    scored_request,
)
from gpu_actions.serving.engines.metrics import Names, read_engine_metrics, sum_of
from gpu_actions.serving.engines.profile import folder_of_listener, traces_since
from gpu_actions.serving.engines.settings import EngineSettings
from gpu_actions.serving.http import HttpFailure, request
from gpu_actions.serving.interfaces import (
    SERVER_HEADER,
    Completion,
    EngineError,
    EngineMetrics,
    ScoredTokens,
    StillStarting,
)
from gpu_actions.serving.startup_phases import StartupPhase
from gpu_actions.system.clock import boot_clock_s
from gpu_actions.system.listening import until_listening
from gpu_actions.system.redact import redacted_head
from gpu_actions.system.urls import port_of

if TYPE_CHECKING:
    from aiohttp import ClientResponse

READY_PROMPT = "The quick brown fox"
READY_TOKENS = 2
FIRST_POLL_S = 0.05
LAST_POLL_S = 0.5

REFUSED_FOR_GOOD = frozenset({401, 403, 404})
"""Answers that waiting does not change: a wrong key, or a model that the engine does not serve."""

REFUSALS_BELIEVED = 3
"""An engine whose routes come up one by one may answer 404 for a moment."""

STOP_PROFILE_TIMEOUT_S = 600.0
"""An engine may flush its trace while it stops the profiler, which takes minutes for a large one (vLLM's manual)."""

PROFILE_MEMORY_S = 900.0
"""How far back to search for traces if the bot that started the profiler has been killed since."""


class RefusedError(EngineError):
    """The engine answered with an error status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class HttpEngine:
    """An OpenAI-compatible server. Implements the `Engine` interface.

    A kind of engine is a subclass that sets what differs, and a line in `serving/registry.py`.
    """

    kind: ClassVar[str]
    """Its name in the settings (`engine.kind`)."""

    metric_names: ClassVar[Mapping[str, Names]] = {}
    """The metric names of each figure of `EngineMetrics`. Empty: the page is read as that of the engine whose names it uses."""

    metric_prefix: ClassVar[str] = ""
    """The prefix that only this engine's metrics have. Empty for an engine that exports another's metric names."""

    progress: ClassVar[tuple[str, ...]] = ("generation_tokens",)
    """The figures whose sum changes with every generated token; of a histogram its count."""

    rank_title: ClassVar[re.Pattern[str] | None] = None
    """Finds the coordinates of a worker in its process title, such as `_PP1_TP0`, as group 1."""

    core_title: ClassVar[re.Pattern[str] | None] = None
    """Finds the coordinates, as group 1, of a process that is a rank only if it has no workers."""

    replica_label: ClassVar[str] = ""
    """The label of its metrics that numbers data-parallel replicas."""

    process_words: ClassVar[tuple[str, ...]] = ()
    """Words in the names of its processes that mark them as Python, for stack dumps."""

    prompt_lines: ClassVar[tuple[re.Pattern[str], ...]] = ()
    """Find a line of its log that holds a prompt or a completion; what group 1 matches may stay."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Python packages whose versions belong in an evidence bundle."""

    batch_flag: ClassVar[str] = ""
    """The flag of its command line that limits the requests in a batch."""

    lengths_flag: ClassVar[str] = ""
    """The flag of its command line that makes it export the lengths of prompts and answers, if it needs one."""

    group_stop_hazard: ClassVar[str] = ""
    """What breaks when a stop signals all its processes at once instead of the main process only."""

    profiler_hint: ClassVar[str] = ""
    """How to enable its profiler."""

    profiler_variable: ClassVar[str] = ""
    """The environment variable that names its trace folder."""

    default_trace_folder: ClassVar[str | None] = None

    sleep_path: ClassVar[str] = ""
    """The page that releases its GPU memory and keeps its weights in host memory. Empty: it cannot sleep."""

    wake_path: ClassVar[str] = ""

    asleep_path: ClassVar[str] = ""
    """The page that reports `is_sleeping`. Empty: it does not say whether it sleeps."""

    sleep_hint: ClassVar[str] = "this kind of engine has no sleep mode"
    """How to enable it."""

    sleep_flags: ClassVar[tuple[str, ...]] = ()
    """Flags of its command line without which it answers 200 and keeps its memory, or loses its weights."""

    startup_phases: ClassVar[tuple[StartupPhase, ...]] = ()
    """The lines of its log that say how long a phase of its start took."""

    version_paths: ClassVar[tuple[str, ...]] = ("/version",)
    """The pages that may report its version, as `version` of a JSON object; the first one that does counts."""

    def __init__(self, config: EngineSettings, *, dialects: Sequence[type["HttpEngine"]] = ()) -> None:
        self.config = config
        self.url = config.url
        self.model = config.model
        self._dialects = dialects
        self._profile_began_s: float | None = None

    @classmethod
    def read_page(cls, text: str, *, model: str, taken_at_s: float) -> EngineMetrics:
        """Return the figures of this engine's metrics page. Raises ValueError for a page that is not Prometheus text."""
        return read_engine_metrics(
            text,
            cls.metric_names,
            model=model,
            taken_at_s=taken_at_s,
            progress=cls.progress,
            replica_label=cls.replica_label,
        )

    @classmethod
    def trace_folder(cls, argv: Sequence[str], environment: Mapping[str, str]) -> str | None:
        """Return the folder that a process's arguments or environment set for profiler traces, or None."""
        return environment.get(cls.profiler_variable) or None

    # -- reading -------------------------------------------------------------------------------------------------

    async def metrics(self, *, timeout_s: float = 2.0) -> EngineMetrics:
        """Read its counters: of replicas with pages of their own the sum of those that answer. Raises EngineError if no page
        can be read, or one is not Prometheus text."""
        if self.config.replicas:
            each = (
                self.config.model_copy(update={"url": url, "replicas": ()}) for url in self.config.replicas
            )
            reading = [type(self)(one, dialects=self._dialects).metrics(timeout_s=timeout_s) for one in each]
            read = await asyncio.gather(*reading, return_exceptions=True)
            pages = [one for one in read if not isinstance(one, BaseException)]
            for error in read:
                if isinstance(error, BaseException) and not (pages and isinstance(error, EngineError)):
                    raise error
            return sum_of(pages)
        async with self._request("GET", "/metrics", timeout_s=timeout_s) as response:
            text = await response.text()
        reader = type(self) if self.metric_names else dialect_of(text, self._dialects) or type(self)
        try:
            return reader.read_page(text, model=self.model, taken_at_s=boot_clock_s())
        except ValueError as error:
            raise EngineError(f"{self.url}/metrics did not return metrics: {error}") from error

    async def is_live(self, *, timeout_s: float = 2.0) -> bool:
        try:
            async with self._request("GET", "/health", timeout_s=timeout_s):
                return True
        except EngineError:
            return False

    async def complete(self, prompt: str, *, max_tokens: int, timeout_s: float) -> Completion:
        """Generate up to `max_tokens`, streamed, within `timeout_s` in all. Raises EngineError for anything but a full,
        well-formed answer with at least one token."""
        body = completion_request(self.model, prompt, max_tokens=max_tokens)
        url = f"{self.url}/v1/completions"
        reader = CompletionReader(url, max_tokens=max_tokens, begun=time.monotonic())
        async with self._request("POST", "/v1/completions", timeout_s=timeout_s, body=body) as response:
            if not response.content_type.startswith("text/event-stream"):
                start = redacted_head(await response.text(), 300)
                raise EngineError(f"{url} answered {response.content_type} to a streamed request: {start}")
            server = response.headers.get(SERVER_HEADER, "")
            async for line in response.content:
                reader.feed(line)
        return reader.result().model_copy(update={"server": server})

    async def complete_scored(self, prompt: str, *, max_tokens: int, timeout_s: float) -> ScoredTokens:
        body = scored_request(self.model, prompt, max_tokens=max_tokens)
        return read_scored(self.url, await self._score(body, timeout_s=timeout_s))

    async def score_forced(self, prompt: str, forced: ScoredTokens, *, timeout_s: float) -> tuple[float, ...]:
        body = forced_request(self.model, prompt, forced)
        return read_forced(self.url, await self._score(body, timeout_s=timeout_s), forced)

    async def _score(self, body: dict[str, Any], *, timeout_s: float) -> Any:
        try:
            async with self._request("POST", "/v1/completions", timeout_s=timeout_s, body=body) as response:
                return await response.json(content_type=None)
        except RefusedError as error:
            if error.status in {400, 422}:
                raise LogprobsUnavailable(f"it refuses to report log-probabilities: {error}") from error
            raise

    async def version(self, *, timeout_s: float = 2.0) -> str:
        for path in self.version_paths:
            try:
                async with self._request("GET", path, timeout_s=timeout_s) as response:
                    page = await response.json(content_type=None)
            except EngineError:
                continue
            if isinstance(page, dict) and isinstance(page.get("version"), str):
                return str(page["version"])
        return ""

    async def wait_ready(
        self, *, timeout_s: float, still_starting: StillStarting | None = None
    ) -> Completion:
        """Wait until it has generated a token. Check its port every 30 ms until it listens, then send completions, every
        50 ms at first and every half second later.

        Raises EngineError at the deadline, at once if `still_starting` reports that its process is gone, and soon if it
        refuses permanently (wrong key, unknown model).
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

    # -- sleep mode ----------------------------------------------------------------------------------------------

    async def sleep(self, *, timeout_s: float) -> None:
        await self._sleep_mode(self.sleep_path, timeout_s=timeout_s)

    async def wake(self, *, timeout_s: float) -> None:
        await self._sleep_mode(self.wake_path, timeout_s=timeout_s)

    async def is_asleep(self, *, timeout_s: float = 2.0) -> bool | None:
        if not self.asleep_path:
            return None
        try:
            async with self._request("GET", self.asleep_path, timeout_s=timeout_s) as response:
                page = await response.json(content_type=None)
        except EngineError:
            return None
        asleep = page.get("is_sleeping") if isinstance(page, dict) else None
        return asleep if isinstance(asleep, bool) else None

    async def _sleep_mode(self, path: str, *, timeout_s: float) -> None:
        if not path:
            raise EngineError(f"{self.url} cannot sleep: {self.sleep_hint}")
        try:
            async with self._request("POST", path, timeout_s=timeout_s, body={}) as response:
                await response.read()
        except RefusedError as error:
            if error.status in {404, 405, 501}:
                raise EngineError(f"{self.url} cannot sleep: {self.sleep_hint}") from error
            raise

    # -- profiler ------------------------------------------------------------------------------------------------

    async def start_profile(self, *, max_iterations: int) -> None:
        """Start the engine's torch profiler, for at most `max_iterations` engine steps if the engine can count them.

        Raises EngineError, with the flag to set, if the engine was started without a profiler.
        """
        self._profile_began_s = time.time()
        await self._profile("/start_profile", self._profile_body(max_iterations), timeout_s=30)

    async def stop_profile(self) -> tuple[Path, ...]:
        """Stop the profiler and return the trace files that it wrote. Raises EngineError if none can be found."""
        refusal: RefusedError | None = None
        try:
            reply = await self._profile("/stop_profile", None, timeout_s=STOP_PROFILE_TIMEOUT_S)
        except RefusedError as error:
            # A profiler that counts steps ends by itself and then refuses to be stopped; its trace has been written.
            reply, refusal = {}, error
        if named := [Path(path) for path in reply.get("files", ())]:
            return tuple(named)
        folder = self.profile_folder()
        if folder is None:
            raise EngineError(
                f"the profiler of {self.url} was stopped, but its trace folder is unknown: the engine's process is "
                "not on this host, or it belongs to another user"
            )
        since = self._profile_began_s or time.time() - PROFILE_MEMORY_S
        files = traces_since(folder, since - 1)
        if not files:
            raise EngineError(
                f"no new trace of {self.url} in {folder}: {refusal or 'the profiler was stopped'}"
            )
        return files

    def profile_folder(self) -> Path | None:
        """Return the folder that its process was given for traces, else its default; None if neither is known."""
        folder = folder_of_listener(port_of(self.url), self._trace_folder)
        if folder is None and self.default_trace_folder is not None:
            return Path(self.default_trace_folder)
        return folder

    def _profile_body(self, max_iterations: int) -> dict[str, Any]:
        return {"max_iterations": max_iterations}

    def _trace_folder(self, argv: Sequence[str], environment: Mapping[str, str]) -> str | None:
        found = (engine.trace_folder(argv, environment) for engine in (type(self), *self._dialects))
        return next((folder for folder in found if folder), None)

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
            return {}  # some engines answer with an empty body or a sentence
        return reply if isinstance(reply, dict) else {}

    # -- HTTP ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, *, timeout_s: float, body: dict[str, Any] | None = None
    ) -> AsyncIterator["ClientResponse"]:
        """Send one request and yield its 200 response. Raises EngineError, also while the caller reads."""
        url = f"{self.url}{path}"
        key = None if self.config.api_key is None else self.config.api_key.get_secret_value()
        try:
            async with request(method, url, timeout_s=timeout_s, api_key=key, body=body) as response:
                if response.status != 200:
                    start = redacted_head(await response.text(errors="replace"), 300)
                    raise RefusedError(f"{url} answered {response.status}: {start}", status=response.status)
                yield response
        except HttpFailure as error:
            raise EngineError(str(error)) from error


def dialect_of(text: str, engines: Sequence[type[HttpEngine]]) -> type[HttpEngine] | None:
    """Return the engine whose metric names a page uses, or None for a page that none of them exports."""
    return next((one for one in engines if one.metric_prefix and one.metric_prefix in text), None)
