"""What a tier is driven through: a unit that starts and stops it, an engine that answers for it, a router in front.

Drivers live beside this file; actions are written against these interfaces only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import Field

from gpu_actions.models import Frozen


class UnitState(Frozen):
    """What a unit is doing now. `pids` is its whole process tree, `started_at_s` in Unix seconds."""

    active: bool
    frozen: bool
    main_pid: int | None = None
    pids: tuple[int, ...] = ()
    started_at_s: float | None = None
    restarts: int = Field(default=0, description="times it was started again since somebody started it")
    frozen_reason: str = ""


class StopReport(Frozen):
    """How a stop went: whether SIGKILL was needed, and which processes it took."""

    was_active: bool
    killed: bool
    pids: tuple[int, ...]
    seconds: float


class UnitError(Exception):
    """A unit refused or failed. The message says what happened and what to do."""


class Unit(Protocol):
    """What starts and stops a tier."""

    name: str

    async def start(self) -> None:
        """Start it; nothing happens when it is active. Raises UnitError when frozen or when it cannot start."""

    async def stop(self, *, grace_s: float | None = None) -> StopReport:
        """SIGTERM, SIGKILL of all its processes after the grace (default: configured), verified gone."""

    async def state(self) -> UnitState:
        """Read what it is doing."""

    async def freeze(self, reason: str) -> None:
        """Make sure that nothing starts it again, this unit's own supervisor included. It may still be running."""

    async def unfreeze(self) -> None:
        """Allow starts again."""

    async def set_scope(self, variables: Mapping[str, str], *, unset: Sequence[str] = ()) -> None:
        """Set the environment of the next start on top of the configured one; replaces an earlier scope. An empty
        call clears it."""

    async def scope(self) -> dict[str, str]:
        """Give the variables of the current scope, empty when none is set."""

    async def log_tail(self, max_bytes: int = 65536) -> str:
        """Give the end of its log."""

    def describe_start(self) -> str:
        """The command it would run, for plans (no secret values)."""


class Histogram(Frozen):
    """A Prometheus histogram at one moment: upper bounds in seconds (the last is infinity) and cumulative counts."""

    bounds_s: tuple[float, ...]
    counts: tuple[float, ...]
    total_s: float


class EngineMetrics(Frozen):
    """The engine's own counters at one moment; None where this engine has no such metric (named in `missing`)."""

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
    missing: tuple[str, ...] = ()


class Completion(Frozen):
    """One finished completion, as proof of service."""

    text: str
    completion_tokens: int
    finish_reason: str
    ttft_ms: float
    e2e_ms: float


class EngineError(Exception):
    """The engine did not answer as an engine should. The message names the URL and what came back."""


class Engine(Protocol):
    """The server of one tier, spoken to over HTTP."""

    url: str
    model: str

    @property
    def kind(self) -> str: ...

    async def metrics(self, *, timeout_s: float = 2.0) -> EngineMetrics: ...

    async def is_live(self, *, timeout_s: float = 2.0) -> bool:
        """Say whether its health endpoint answers 200. Not proof of service."""

    async def complete(self, prompt: str, *, max_tokens: int, timeout_s: float) -> Completion:
        """Generate through the API, streamed. Raises EngineError for anything but a full, well-formed answer."""

    async def wait_ready(
        self, *, timeout_s: float, still_starting: "StillStarting | None" = None
    ) -> Completion:
        """Wait until it has generated a token. Raises EngineError at the deadline, or at once when it is known dead."""

    async def start_profile(self, *, max_iterations: int) -> None: ...

    async def stop_profile(self) -> tuple[Path, ...]:
        """Stop the profiler and return the trace files that it wrote."""

    def profile_folder(self) -> Path | None:
        """Return the folder that its process was given for traces, or None if it is not known."""


class StillStarting(Protocol):
    """Asked while waiting for readiness: False means the process is gone and waiting is pointless."""

    async def __call__(self) -> bool: ...


class ServerState(Frozen):
    """One server line of the router. `weight` is absolute (0-256)."""

    backend: str
    server: str
    weight: int
    admin_state: str = Field(description="ready, drain or maint")
    operational: str = Field(description="UP, DOWN, ...")
    sessions: int
    queued: int
    requests_total: int
    responses_5xx: int


class RouterError(Exception):
    """The router refused, is away, or did not do as told. The message says which and what to do."""


class RouterDenied(RouterError):
    """We may not talk to the router."""


class RouterGarbled(RouterError):
    """Something answered that is not a router of this kind."""


class BackendUnknown(RouterError):
    """The router runs, but has no backend of the configured name."""


class Router(Protocol):
    """What sends requests to tiers. A tier has one server line in each backend (short and long requests)."""

    url: str
    address: str
    """Where it is controlled: a socket or a URL, for messages."""

    async def ensure_running(self) -> None:
        """Start a managed router when it is down; for an existing one, check that it answers."""

    async def obstacle(self) -> str:
        """Return why a router that is down cannot be started; empty if nothing prevents it, or if it is not ours."""

    async def servers(self, *, timeout_s: float = 3.0) -> tuple[ServerState, ...]:
        """Return the server lines of the configured backends. Raises RouterError, or a subclass that says why."""

    async def server(self, server: str) -> ServerState:
        """The state of a tier's server line, summed over the backends."""

    async def set_weight(self, server: str, weight: int, *, allow_zero_total: bool = False) -> None:
        """Set and read back an absolute weight. Raises RouterError when no usable weight would be left."""

    async def shift(self, weights: Mapping[str, int]) -> None:
        """Set several servers' weights so that the total usable weight is never 0 on the way; read back."""

    async def drain(self, server: str, *, allow_zero_total: bool = False) -> None:
        """No new requests to it; what runs goes on."""

    async def undrain(self, server: str) -> None:
        """Make it ready for requests again."""

    async def cut_sessions(self, server: str) -> int:
        """End its open sessions; gives how many there were."""

    async def apply_back_pressure(self, server: str) -> dict[str, float]:
        """Apply the configured limits to a tier's server and read them back (name -> value in force)."""

    async def clear_back_pressure(self, server: str) -> None:
        """Lift the limits again."""
