"""Hosts that are healthy, hang, stall or serve badly, and the verdict and cause that must follow."""

from collections.abc import Callable

from gpu_actions.snapshot.collectors.engine import EngineReading, EngineSample
from gpu_actions.snapshot.collectors.golden import GoldenCheckReading
from gpu_actions.snapshot.collectors.ranks import RanksReading
from gpu_actions.snapshot.collectors.ras import RasMissingRank, RasPoll, RasReading
from gpu_actions.snapshot.collectors.router import RouterReading
from gpu_actions.snapshot.collectors.stacks import StackReading, StacksReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.target import UnitFacts
from tests.gpu_actions.triage import builders as make

FLAT = make.engine(tokens=(1000, 1000))
IDLE = make.engine(running=0, tokens=(1000, 1000))
HUNG = make.completion("timeout", tokens=0)
SILENT = EngineReading(
    url="u", samples=tuple(EngineSample(at_s=at_s, outcome="timeout") for at_s in (0.0, 3.0))
)
REFUSED = EngineReading(
    url="u", samples=tuple(EngineSample(at_s=at_s, outcome="refused") for at_s in (0.0, 3.0))
)
INSIDE = StacksReading(
    stacks=tuple(StackReading(pid=200 + n, rank=n, collective="all_reduce") for n in range(8))
)


def missing_in_ras() -> RasReading:
    poll = make.ras_poll(0, [5] * 7)
    lost = poll.communicators[0].model_copy(update={"missing": (RasMissingRank(rank=7),), "missing_count": 1})
    return RasReading(address="a", polls=(poll, poll.model_copy(update={"communicators": (lost,)})))


def ras_all(outcome: str) -> RasReading:
    polls = tuple(RasPoll.model_validate({"at_s": at_s, "outcome": outcome}) for at_s in (0.0, 3.0))
    return RasReading(address="a", polls=polls)


def dead_rank() -> RanksReading:
    rows = make.ranks(8)
    ended = tuple(
        row.model_copy(update={"state_last": "gone"}) if row.rank == 5 else row for row in rows.processes
    )
    return rows.model_copy(update={"processes": ended})


def root(state: str, age_s: float = 9000) -> RanksReading:
    row = make.process(100, None, state, root=True, age_s=age_s)
    return RanksReading(roots=(100,), processes=(row,))


def paused(*numbers: int) -> RanksReading:
    """Return a tier whose ranks with these numbers a freezer of cgroup v1 holds: the kernel shows them as blocked (D)."""
    rows = make.ranks(8)
    held = tuple(
        row.model_copy(
            update={
                "paused": True,
                "state_first": "D",
                "state_last": "D",
                "cpu_s": 0,
                "container": "container 0123",
            }
        )
        if row.rank in numbers or len(numbers) == 8
        else row
        for row in rows.processes
    )
    return rows.model_copy(update={"processes": held})


def router(**changes: object) -> RouterReading:
    reading = make.healthy().router
    assert reading is not None
    rows = tuple(row.model_copy(update=changes) for row in reading.servers)
    return reading.model_copy(update={"servers": rows})


def golden(outcome: str, basis: str = "", **changes: object) -> GoldenCheckReading:
    judgement = {"outcome": outcome, "basis": basis, "summary": "golden prompt 1, token 3", **changes}
    return GoldenCheckReading.model_validate({"judgement": judgement})


Make = Callable[[], Snapshot]
CASES: dict[str, tuple[Make, str, str]] = {
    # healthy: none of these may be worse than healthy
    "a host that serves": (lambda: make.healthy(), "healthy", "none"),
    "a host that answers its golden prompts as recorded": (
        lambda: make.healthy(golden=golden("matches")),
        "healthy",
        "none",
    ),
    "a host that answers quickly and wrongly": (
        lambda: make.healthy(golden=golden("differs", "logprobs", difference_nats=5.9)),
        "fall_back",
        "wrong_output",
    ),
    "a host that answers wrongly because of its memory": (
        lambda: make.healthy(
            golden=golden("differs", "logprobs"), nvml=make.with_gpu(3, remapped_failure=True)
        ),
        "fall_back",
        "row_remap_failed",
    ),
    "an idle host with other tokens within the spread": (
        lambda: make.healthy(engine=IDLE, golden=golden("differs", "tokens")),
        "watch",
        "wrong_output",
    ),
    "a host whose golden prompts are of another version": (
        lambda: make.healthy(golden=golden("unknown")),
        "watch",
        "unknown",
    ),
    "an idle host": (lambda: make.healthy(engine=IDLE), "healthy", "none"),
    "an idle host whose RAS counts differ": (
        lambda: make.healthy(engine=IDLE, ras=make.ras([3, 3, 3, 3, 3, 3, 3, 9], [3, 3, 3, 3, 3, 3, 3, 9])),
        "healthy",
        "none",
    ),
    "ranks caught in the middle of a collective": (lambda: make.healthy(stacks=INSIDE), "healthy", "none"),
    "RAS counts that differ but move": (
        lambda: make.healthy(ras=make.ras([10, 11] * 4, [90, 91] * 4)),
        "healthy",
        "none",
    ),
    "no RAS on this host": (lambda: make.healthy(ras=ras_all("refused")), "healthy", "none"),
    "a rank that waits in the kernel for an instant": (
        lambda: make.healthy(
            ranks=make.ranks(8).model_copy(
                update={
                    "processes": tuple(
                        row.model_copy(update={"state_first": "D"}) for row in make.ranks(8).processes
                    )
                }
            )
        ),
        "healthy",
        "none",
    ),
    "harmless NCCL settings": (
        lambda: make.healthy(
            environment=make.environment(NCCL_P2P_DISABLE="0", NCCL_P2P_LEVEL="NVL", NCCL_DEBUG="WARN")
        ),
        "healthy",
        "none",
    ),
    "a tier that is stopped on purpose": (
        lambda: make.healthy(
            expected={"tier_expected": False}, engine=REFUSED, completion=make.completion("refused")
        ),
        "healthy",
        "none",
    ),
    "a frozen tier that was started beside the one that serves": (
        lambda: make.healthy(expected={"tier": "fallback", "unwanted": ("tp (process 5)",)}),
        "watch",
        "frozen_tier_runs",
    ),
    "P2P switched off on a host without links": (
        lambda: make.healthy(expected={"links": 0}, environment=make.environment(NCCL_P2P_DISABLE="1")),
        "healthy",
        "none",
    ),
    # collectives
    "a stopped rank under flat tokens": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, ranks=make.ranks(8, r1="T")),
        "fall_back",
        "nccl_hang",
    ),
    "a stopped rank that only the synthetic completion waits for": (
        lambda: make.healthy(engine=IDLE, completion=HUNG, ranks=make.ranks(8, r1="T")),
        "fall_back",
        "nccl_hang",
    ),
    "a stopped rank of an idle tier": (
        lambda: make.healthy(engine=IDLE, ranks=make.ranks(8, r1="T")),
        "watch",
        "nccl_hang",
    ),
    "a dead rank under flat tokens": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, ranks=dead_rank()),
        "fall_back",
        "nccl_hang",
    ),
    "a zombie rank": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, ranks=make.ranks(8, r6="Z")),
        "fall_back",
        "nccl_hang",
    ),
    "a rank blocked in the driver": (
        lambda: make.healthy(
            engine=FLAT,
            completion=HUNG,
            ranks=make.ranks(8, r2="D").model_copy(
                update={
                    "processes": tuple(
                        row.model_copy(update={"cpu_s": 0.0}) for row in make.ranks(8, r2="D").processes
                    )
                }
            ),
        ),
        "fall_back",
        "nccl_hang",
    ),
    "RAS counts that differ and do not move": (
        lambda: make.healthy(
            engine=FLAT, completion=HUNG, ras=make.ras([9, 9, 9, 9, 9, 9, 9, 8], [9, 9, 9, 9, 9, 9, 9, 8])
        ),
        "fall_back",
        "nccl_hang",
    ),
    "a rank missing in RAS": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, ras=missing_in_ras()),
        "fall_back",
        "nccl_hang",
    ),
    "RAS that accepts connections and does not answer": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, ras=ras_all("silent")),
        "fall_back",
        "nccl_hang",
    ),
    "all ranks inside a collective under flat tokens": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, stacks=INSIDE),
        "fall_back",
        "nccl_hang",
    ),
    "one rank inside a collective, one elsewhere": (
        lambda: make.healthy(
            engine=FLAT,
            completion=HUNG,
            stacks=StacksReading(stacks=(INSIDE.stacks[0], StackReading(pid=201, rank=1))),
        ),
        "unknown",
        "engine_stalled",
    ),
    "a frozen rank behind an engine that does not answer": (
        lambda: make.healthy(engine=SILENT, completion=HUNG, ranks=make.ranks(8, r0="T")),
        "fall_back",
        "nccl_hang",
    ),
    # stalls without a second source
    "flat tokens alone, no completion sent": (
        lambda: make.skipping(make.healthy(engine=FLAT), "completion"),
        "watch",
        "engine_stalled",
    ),
    "flat tokens, no completion sent, no readable second source": (
        lambda: make.skipping(make.healthy(engine=FLAT), "completion", "ranks", "ras"),
        "unknown",
        "engine_stalled",
    ),
    "flat tokens while a completion is answered": (
        lambda: make.healthy(engine=FLAT),
        "watch",
        "engine_stalled",
    ),
    "flat tokens and no answer to a completion": (
        lambda: make.healthy(engine=FLAT, completion=HUNG),
        "unknown",
        "engine_stalled",
    ),
    "flat tokens and no readable second source": (
        lambda: make.without(make.healthy(engine=FLAT, completion=HUNG), "ranks", "ras"),
        "unknown",
        "engine_stalled",
    ),
    "a stall of 31 s": (
        lambda: make.healthy(engine=make.engine(tokens=(5, 5), at_s=31.0), completion=HUNG),
        "fall_back",
        "engine_stalled",
    ),
    # the engine
    "nothing listens, the process runs for hours": (
        lambda: make.healthy(engine=REFUSED, completion=make.completion("refused")),
        "fall_back",
        "engine_down",
    ),
    "nothing listens yet, started a minute ago": (
        lambda: make.healthy(engine=REFUSED, completion=make.completion("refused"), ranks=root("S", 60)),
        "watch",
        "engine_down",
    ),
    "the main process is gone": (
        lambda: make.healthy(
            engine=REFUSED,
            completion=make.completion("refused"),
            ranks=RanksReading(roots=(100,), missing_roots=(100,)),
        ),
        "fall_back",
        "engine_down",
    ),
    "the main process is a zombie": (
        lambda: make.healthy(engine=REFUSED, completion=make.completion("refused"), ranks=root("Z", 60)),
        "fall_back",
        "engine_down",
    ),
    "the fallback tier is down: nothing is below it": (
        lambda: make.healthy(
            engine=REFUSED,
            completion=make.completion("refused"),
            expected={"tier": "fallback", "router_server": "fb"},
        ),
        "watch",
        "engine_down",
    ),
    "an engine that answers 500": (
        lambda: make.healthy(engine=IDLE, completion=make.completion("http_error", status=500)),
        "unknown",
        "engine_errors",
    ),
    "one completion of many fails": (
        lambda: make.healthy(completion=make.completion("error_event")),
        "watch",
        "engine_errors",
    ),
    "an engine that sheds load": (
        lambda: make.healthy(completion=make.completion("http_error", status=503)),
        "watch",
        "serving_regression",
    ),
    "a completion in the queue of a busy engine": (
        lambda: make.healthy(completion=HUNG),
        "watch",
        "serving_regression",
    ),
    "the synthetic completion asks for the wrong model": (
        lambda: make.healthy(completion=make.completion("rejected", status=404)),
        "unknown",
        "unknown",
    ),
    "unreadable counters of an engine that serves": (lambda: make.healthy(engine=None), "watch", "unknown"),
    "unreadable counters and no completion": (
        lambda: make.healthy(engine=None, completion=None),
        "unknown",
        "unknown",
    ),
    "a counter that goes backwards": (
        lambda: make.healthy(engine=make.engine(tokens=(900, 3))),
        "watch",
        "engine_errors",
    ),
    "a slow completion": (
        lambda: make.healthy(completion=make.completion(e2e_ms=3900)),
        "watch",
        "serving_regression",
    ),
    # the router
    "the router is down": (
        lambda: make.healthy(
            router=RouterReading(socket="s", backend="serve", outcome="down", detail="refused")
        ),
        "watch",
        "router_down",
    ),
    "no server takes requests": (lambda: make.healthy(router=router(weight=0)), "watch", "router_down"),
    "a long queue at the router": (
        lambda: make.healthy(router=router(queued=40)),
        "watch",
        "serving_regression",
    ),
    "the router cannot be read": (lambda: make.healthy(router=None), "watch", "unknown"),
    "a unit whose driver fails": (
        lambda: make.healthy(ranks=None, expected={"unit_error": "Connection timed out"}),
        "unknown",
        "unknown",
    ),
    # paused from outside
    "a tier in a paused container": (
        lambda: make.healthy(engine=SILENT, completion=HUNG, ranks=paused(*range(8)), ras=ras_all("silent")),
        "fall_back",
        "engine_paused",
    ),
    "a paused container, told by the unit's driver only": (
        lambda: make.healthy(
            engine=SILENT,
            completion=HUNG,
            ranks=None,
            expected={"unit": UnitFacts(paused=True, resume="docker unpause vllm")},
        ),
        "fall_back",
        "engine_paused",
    ),
    "one rank in a paused container of its own": (
        lambda: make.healthy(engine=FLAT, completion=HUNG, ranks=paused(3)),
        "fall_back",
        "nccl_hang",
    ),
}
