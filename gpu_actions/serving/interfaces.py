"""The interfaces of a tier: a unit that starts and stops it, an engine that serves it, and a router in front of it.

Actions are written against these interfaces; the drivers are in `units/`, `engines/` and `routers/`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import ConfigDict, Field

from gpu_actions.models import Frozen
from gpu_actions.serving.request_account import RequestAccount
from gpu_actions.serving.startup_phases import StartupPhase


class UnitState(Frozen):
    """The state of a unit. `pids` is its whole process tree; `started_at_s` is a Unix time."""

    active: bool
    frozen: bool
    main_pid: int | None = None
    pids: tuple[int, ...] = ()
    started_at_s: float | None = None
    restarts: int = Field(default=0, description="automatic restarts since it was last started")
    restarted_at_s: tuple[float, ...] = Field(
        default=(), description="Unix times of the latest automatic restarts, if its driver knows them"
    )
    frozen_reason: str = ""
    paused: bool = Field(
        default=False,
        description="its processes are stopped as a group, by a container engine's pause or a freezer",
    )
    resume: str = Field(
        default="", description="the command that lets a paused one go on, if its driver knows it"
    )
    exit_code: int | None = Field(
        default=None, description="of its main process, if it ended and the driver knows"
    )
    oom_killed: bool = Field(default=False, description="the kernel's OOM killer ended it")


class StopReport(Frozen):
    """The outcome of a stop: whether SIGKILL was needed, and which processes ended."""

    was_active: bool
    killed: bool
    pids: tuple[int, ...]
    seconds: float


class UnitError(Exception):
    """Raised if a unit refuses or fails. The message says what happened and what to do."""


class Unit(Protocol):
    """Starts and stops a tier."""

    name: str

    async def start(self) -> None:
        """Start it unless it is active. Raises UnitError if it is frozen or cannot start."""

    async def stop(self, *, grace_s: float | None = None) -> StopReport:
        """Send SIGTERM, then SIGKILL to all its processes after the grace (default: configured). Verify that they are gone."""

    async def state(self) -> UnitState:
        """Return its current state."""

    async def freeze(self, reason: str) -> None:
        """Prevent every start, also by its own supervisor. A running process goes on."""

    async def unfreeze(self) -> None:
        """Allow starts again."""

    async def set_scope(self, variables: Mapping[str, str], *, unset: Sequence[str] = ()) -> None:
        """Set variables of the next start on top of the configured environment, in place of an earlier scope. An empty
        call clears the scope."""

    async def scope(self) -> dict[str, str]:
        """Return the current scope's variables, or an empty dict."""

    async def log_tail(self, max_bytes: int = 65536) -> str:
        """Return the end of its log."""

    def describe_start(self) -> str:
        """Return the command of a start, for plans, without secret values."""


class Histogram(Frozen):
    """A reading of a Prometheus histogram: upper bounds in seconds (the last is infinity) and cumulative counts."""

    bounds_s: tuple[float, ...]
    counts: tuple[float, ...]
    total_s: float


class TokenHistogram(Frozen):
    """A histogram of lengths: upper bounds in tokens (the last is infinity) and cumulative counts of requests."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    bounds_tokens: tuple[float, ...]
    counts: tuple[float, ...]
    total_tokens: float


class ReplicaMetrics(Frozen):
    """The counters of one data-parallel replica. `name` is its number on the engine's page, or the address of its own server,
    which may not answer (`outcome`: refused, timeout, ...)."""

    name: str
    running: float | None = None
    waiting: float | None = None
    progress: float | None = None
    kv_cache_usage: float | None = None
    outcome: str = "ok"
    detail: str = ""


class EngineMetrics(Frozen):
    """A reading of the engine's own counters. A figure that the engine does not export is None and listed in `missing`."""

    taken_at_s: float = Field(description="on the clock of `gpu_actions.system.clock.boot_clock_s`")
    running: float | None = None
    waiting: float | None = None
    generation_tokens: float | None = None
    progress: float | None = Field(
        default=None, description="changes with every generated token; judge progress by this, not by tokens"
    )
    prompt_tokens: float | None = None
    requests_finished: float | None = None
    kv_cache_usage: float | None = None
    ttft: Histogram | None = None
    itl: Histogram | None = None
    e2e: Histogram | None = None
    queue: Histogram | None = None
    prompt_lengths: TokenHistogram | None = None
    answer_lengths: TokenHistogram | None = None
    replicas: tuple[ReplicaMetrics, ...] = Field(default=(), description="if there are several")
    missing: tuple[str, ...] = ()


SERVER_HEADER = "x-gpu-oncall-server"
"""A router may name in it, for our own requests, the server that answered."""


class Completion(Frozen):
    """A finished completion: proof that the engine serves. `server` is what a router says answered it; empty if it does not."""

    text: str
    completion_tokens: int
    finish_reason: str
    ttft_ms: float
    e2e_ms: float
    server: str = ""


class ScoredTokens(Frozen):
    """Generated tokens with their log-probabilities (natural logarithm, nats). Ids are empty if the engine returns none."""

    texts: tuple[str, ...]
    logprobs: tuple[float, ...]
    token_ids: tuple[int, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()


class EngineError(Exception):
    """Raised if an engine does not answer as it should. The message has the URL and the answer."""


class Engine(Protocol):
    """The HTTP server of one tier."""

    url: str
    model: str

    @property
    def kind(self) -> str: ...

    @property
    def startup_phases(self) -> tuple[StartupPhase, ...]: ...

    async def metrics(self, *, timeout_s: float = 2.0) -> EngineMetrics: ...

    async def is_live(self, *, timeout_s: float = 2.0) -> bool:
        """Return True if its health endpoint answers 200. A hung engine still does, for minutes."""

    async def complete(self, prompt: str, *, max_tokens: int, timeout_s: float) -> Completion:
        """Generate a streamed completion. Raises EngineError for anything but a full, well-formed answer."""

    async def complete_scored(self, prompt: str, *, max_tokens: int, timeout_s: float) -> ScoredTokens:
        """Generate greedily and return the tokens with their log-probabilities. Raises EngineError, or its subclass
        LogprobsUnavailable if the engine does not report them."""

    async def score_forced(self, prompt: str, forced: ScoredTokens, *, timeout_s: float) -> tuple[float, ...]:
        """Return the log-probability of each of these tokens after the prompt. Raises as `complete_scored`."""

    async def version(self, *, timeout_s: float = 2.0) -> str:
        """Return the engine's version, or an empty string if it does not report one."""

    async def wait_ready(
        self, *, timeout_s: float, still_starting: "StillStarting | None" = None
    ) -> Completion:
        """Wait until it has generated a token. Raises EngineError at the deadline, or at once if its process is gone."""

    async def sleep(self, *, timeout_s: float) -> None:
        """Release its GPU memory and keep its weights in host memory. Raises EngineError, with the flag to set, if it
        cannot."""

    async def wake(self, *, timeout_s: float) -> None:
        """Restore its weights and its cache on the GPU. Raises EngineError if it cannot."""

    async def is_asleep(self, *, timeout_s: float = 2.0) -> bool | None:
        """Return True if it sleeps, or None if it does not say."""

    async def start_profile(self, *, max_iterations: int) -> None: ...

    async def stop_profile(self) -> tuple[Path, ...]:
        """Stop the profiler and return the trace files that it wrote."""

    def profile_folder(self) -> Path | None:
        """Return the folder that its process was given for traces, or None if it is not known."""


class StillStarting(Protocol):
    """Return False once the starting process is gone, so that waiting for it can end."""

    async def __call__(self) -> bool: ...


class ServerState(Frozen):
    """One server line of a router. `weight` is absolute (0-256)."""

    backend: str
    server: str
    weight: int
    admin_state: str = Field(description="ready, drain or maint")
    operational: str = Field(description="UP, DOWN, ...")
    sessions: int
    queued: int
    requests_total: int
    responses_5xx: int
    responses_4xx: int = 0
    resent: int = Field(
        default=0, description="requests without a byte of answer that went to another server"
    )
    streams_broken: int = Field(default=0, description="answers that broke off in the middle")


KIB = 1024


class ServedAnswer(NamedTuple):
    """A client's request that a server answered with 200 to its end, from a router's record. `first_byte_s` and `seconds` count
    from its arrival at the server; `size` is the answer's bytes. `fault` says why it is none for its client: an error event,
    no end of the stream, no text. `judged`: the router looked for that."""

    server: str
    ended_s: float
    first_byte_s: float
    seconds: float
    size: int
    fault: str = ""
    judged: bool = False

    @property
    def pace_s(self) -> float:
        """Return the seconds per KiB of the answer."""
        return self.seconds / max(self.size / KIB, 0.001)


class RouterError(Exception):
    """Raised if a router refuses, does not answer, or did not apply a change. The message says which and what to do."""


class RouterDenied(RouterError):
    """Raised if permission to control the router is denied."""


class RouterGarbled(RouterError):
    """Raised if the answer is not one of this kind of router."""


class BackendUnknown(RouterError):
    """Raised if the router has no backend of the configured name."""


class RequestsUnknown(RouterError):
    """Raised if a router keeps no record of its requests, or it cannot be read. The message says why."""


class Router(Protocol):
    """Sends requests to tiers. A tier has one server line in each backend (short and long requests)."""

    url: str
    address: str
    """Where it is controlled: a socket or a URL, for messages."""
    standby_weight: int
    """The weight of a stand-by, which gets only requests that another server dropped unanswered; 0: there is none."""

    async def ensure_running(self) -> None:
        """Start a managed router if it is down; check that an existing one answers."""

    async def obstacle(self) -> str:
        """Return why a router that is down cannot be started; empty if nothing prevents it, or if the router is not managed."""

    async def servers(self, *, timeout_s: float = 3.0) -> tuple[ServerState, ...]:
        """Return the server lines of the configured backends. Raises RouterError, or a subclass that says why."""

    async def server(self, server: str) -> ServerState:
        """Return the state of a tier's server line, summed over the backends."""

    async def set_weight(self, server: str, weight: int, *, allow_zero_total: bool = False) -> None:
        """Set and read back an absolute weight. Raises RouterError if no usable weight would be left."""

    async def shift(self, weights: Mapping[str, int]) -> None:
        """Set and read back several weights in an order that never leaves a total usable weight of 0."""

    async def drain(self, server: str, *, allow_zero_total: bool = False) -> None:
        """Send it no new requests; running ones continue."""

    async def undrain(self, server: str) -> None:
        """Let it receive requests again."""

    async def abort_sessions(self, server: str) -> int:
        """End its open sessions and return how many there were."""

    async def apply_back_pressure(
        self, server: str, limits: Mapping[str, int] | None = None
    ) -> dict[str, float]:
        """Apply the configured limits to a tier's server and return those in force, by name.

        `limits` replace configured ones by name until they are lifted; None keeps those that were given before.
        """

    async def clear_back_pressure(self, server: str) -> None:
        """Lift the limits."""

    async def hold(self, *, wait_s: float, limit: int) -> bool:
        """Make new requests wait, at most `limit` of them and each at most `wait_s`; more are answered 429, later ones 503.

        The hold ends by itself after `wait_s`, also if the router restarts meanwhile; a repeated call extends it. Requests of
        gpu-oncall itself are not held. Returns False, and holds nothing, if the router cannot do this.
        """

    async def release(self) -> int:
        """End the hold: what waits goes to the tier that has weight now. Returns how many requests waited."""

    async def requests(self, since_s: float, until_s: float) -> RequestAccount:
        """Count what clients saw between two moments (Unix seconds), from the record of all requests.

        Raises RequestsUnknown if there is no such record.
        """

    async def answers(self, since_s: float, until_s: float) -> tuple[ServedAnswer, ...]:
        """Return the answers to clients that ended between two moments (Unix seconds), oldest first.

        Raises RequestsUnknown if there is no record of requests.
        """
