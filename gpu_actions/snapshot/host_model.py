"""The parts of a snapshot that are not NVML: kernel log, collectives, processes, engine, router, deep probe.

Every list is capped by its collector; texts that come from elsewhere are cut there too.
"""

from typing import Literal

from pydantic import AwareDatetime, Field

from gpu_actions.models import Frozen


class FabricManagerReading(Frozen):
    """The fabric manager's unit as systemd sees it."""

    unit: str
    load_state: str = Field(description="loaded, not-found, masked, ...")
    active_state: str = Field(description="active, inactive, failed, ...")
    sub_state: str = ""
    result: str = ""


class XidEvent(Frozen):
    """One NVIDIA error of the kernel log. `kind` off_bus needs no Xid number."""

    kind: Literal["xid", "sxid", "off_bus"]
    code: int | None = None
    pci: str = Field(default="", description="bus id as logged, normalised to lower case without function")
    at: AwareDatetime | None = None
    text: str = ""


class KernelLogReading(Frozen):
    """NVIDIA errors since a time. `source` says what was read."""

    source: str
    since: AwareDatetime | None = None
    lines_read: int = 0
    truncated: bool = Field(default=False, description="only the end of the log was read")
    events: tuple[XidEvent, ...] = ()
    dropped_events: int = 0


class RasRank(Frozen):
    """A rank that answered RAS, with its operation counts by collective."""

    rank: int
    pid: int | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    async_error: int = 0


class RasMissingRank(Frozen):
    """A rank that RAS knows of and that did not answer."""

    rank: int
    pid: int | None = None
    unresponsive: bool = True
    dead: bool = False


class RasCommunicator(Frozen):
    """One communicator in one poll. `mismatch` is RAS's own word (text protocol) or differing counts (JSON)."""

    id: str
    size: int | None = None
    ranks: tuple[RasRank, ...] = ()
    missing: tuple[RasMissingRank, ...] = ()
    missing_count: int = 0
    mismatch: bool = False


class RasPoll(Frozen):
    """One answer of RAS, or why there was none."""

    at_s: float = Field(description="seconds after the snapshot began")
    outcome: Literal["ok", "refused", "silent", "garbage"]
    protocol: Literal["json", "text"] | None = None
    nccl_version: str = ""
    communicators: tuple[RasCommunicator, ...] = ()
    timeouts: int = 0
    detail: str = ""


class RasReading(Frozen):
    """Two polls of NCCL's RAS, a window apart."""

    address: str
    polls: tuple[RasPoll, ...]


class EngineSample(Frozen):
    """One scrape of /metrics. `missing` names what this engine does not export or exported as no number."""

    at_s: float
    outcome: Literal["ok", "refused", "timeout", "http_error", "not_metrics"]
    detail: str = ""
    dialect: str = ""
    running: float | None = None
    waiting: float | None = None
    generation_tokens: float | None = None
    progress: float | None = Field(default=None, description="changes with every generated token")
    prompt_tokens: float | None = None
    kv_cache_usage: float | None = None
    ttft_count: float | None = None
    ttft_sum_s: float | None = None
    missing: tuple[str, ...] = ()

    @property
    def tokens(self) -> float | None:
        """The count that changes with every token; snapshots of older versions have only `generation_tokens`."""
        return self.generation_tokens if self.progress is None else self.progress


class EngineReading(Frozen):
    """The engine's counters at the start and the end of the window."""

    url: str
    samples: tuple[EngineSample, ...]


class CompletionReading(Frozen):
    """What became of one synthetic completion."""

    url: str
    outcome: Literal[
        "ok", "refused", "timeout", "http_error", "empty", "malformed", "cut", "error_event", "rejected"
    ]
    status: int | None = None
    tokens: int = 0
    ttft_ms: float | None = None
    e2e_ms: float | None = None
    deadline_s: float = 0
    detail: str = ""
    model: str = ""


class RankProcess(Frozen):
    """One process of the tier's tree. States are the kernel's letters (R, S, D, T, t, Z, X, I); `gone` = it ended."""

    pid: int
    parent: int | None = None
    name: str = ""
    rank: int | None = Field(default=None, description="its rank where command line or environment tell it")
    root: bool = False
    state_first: str | None = None
    state_last: str | None = None
    wchan: str | None = None
    cpu_s: float | None = Field(default=None, description="CPU time used within the window")
    age_s: float | None = None


class RanksReading(Frozen):
    """The tier's process tree over the window."""

    roots: tuple[int, ...] = ()
    missing_roots: tuple[int, ...] = Field(default=(), description="main processes that do not exist")
    processes: tuple[RankProcess, ...] = ()
    more_processes: int = 0
    unit_active: bool | None = None


class StackReading(Frozen):
    """Where a process stands: its Python frames, innermost first, and the collective among them."""

    pid: int
    rank: int | None = None
    outcome: Literal["ok", "failed"] = "ok"
    detail: str = ""
    collective: str | None = Field(default=None, description="function name of the collective it is in")
    frames: tuple[str, ...] = ()


class StacksReading(Frozen):
    """py-spy's view of the ranks; taken only while the token counter stands still."""

    stacks: tuple[StackReading, ...] = ()


class EnvironmentReading(Frozen):
    """NCCL_* and CUDA_* of the running tier, by process. Values are kept only for names on the allow-list."""

    pids: tuple[int, ...] = ()
    values: dict[str, dict[str, tuple[int, ...]]] = Field(
        default_factory=dict, description="name -> value -> pids that have it"
    )
    names_only: tuple[str, ...] = ()
    unreadable: tuple[int, ...] = ()


class RouterServer(Frozen):
    """One server line of the router."""

    server: str
    weight: int
    admin_state: str
    operational: str
    sessions: int
    queued: int
    responses_5xx: int = 0


class RouterReading(Frozen):
    """The router's backend, or why it did not answer."""

    socket: str
    backend: str
    outcome: Literal["ok", "down", "no_backend"]
    detail: str = ""
    servers: tuple[RouterServer, ...] = ()


class DeepGpu(Frozen):
    """What one child measured on its GPU; None where it did not get that far."""

    index: int
    uuid: str = ""
    gemm_tflops: float | None = None
    error: str = ""


class DeepPair(Frozen):
    """A measured copy from one GPU to another."""

    source: int
    target: int
    gbps: float = Field(ge=0)


class DeepReading(Frozen):
    """What the deep probe measured. `backend` gloo means CPU tensors: its figures are not a GPU's."""

    backend: Literal["nccl", "gloo"]
    outcome: Literal["ok", "timeout", "failed"]
    detail: str = ""
    world_size: int = 0
    message_bytes: int = 0
    allreduce_ms: float | None = None
    busbw_gbps: float | None = None
    gpus: tuple[DeepGpu, ...] = ()
    pairs: tuple[DeepPair, ...] = ()
    startup_s: float | None = None
    measure_s: float | None = None
    nccl_version: str = ""
    torch_version: str = ""
