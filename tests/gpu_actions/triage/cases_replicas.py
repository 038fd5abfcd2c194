"""Tiers of several replicas, of which some hang, load, fail, are down or answer wrongly, and the verdict that must follow."""

from typing import Any

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collectors.completion import CompletionReading
from gpu_actions.snapshot.collectors.golden import GoldenCheckReading
from gpu_actions.snapshot.collectors.ranks import RanksReading
from gpu_actions.snapshot.collectors.stacks import StackReading, StacksReading
from gpu_actions.snapshot.model import Snapshot
from tests.gpu_actions.triage import builders as make
from tests.gpu_actions.triage.cases_engine import BROKEN, BUSY, LOADS
from tests.gpu_actions.triage.cases_fleet import replicated
from tests.gpu_actions.triage.cases_gpus import shared
from tests.gpu_actions.triage.cases_serving import HUNG, golden


def asked(*outcomes: CompletionReading, first: CompletionReading | None = None) -> CompletionReading:
    """Return the completion of a tier, and one of each of its replicas, by address."""
    rows = tuple(
        one.model_copy(update={"url": f"http://127.0.0.1:{9000 + number}"})
        for number, one in enumerate(outcomes)
    )
    return (first or make.completion()).model_copy(update={"replicas": rows})


def parallel(*states: str, hung: tuple[int, ...], stacks: bool = False, **changes: Any) -> Snapshot:
    """Return a host of data-parallel replicas with two ranks each, of which some hang; a state for each rank."""
    rows = [make.process(100, None, root=True)]
    rows += [
        make.process(200 + number, number, state, coordinates={"DP": number // 2, "TP": number % 2})
        for number, state in enumerate(states)
    ]
    moved = [0.0 if number in hung else 90.0 for number in range(len(states) // 2)]
    inside = tuple(
        StackReading(pid=200 + number, rank=number, collective="all_reduce") for number in range(len(states))
    )
    return make.healthy(
        engine=replicated(*moved),
        ranks=RanksReading(roots=(100,), processes=tuple(rows)),
        ras=None,
        stacks=StacksReading(stacks=inside) if stacks else None,
        expected={"ranks": len(states)},
        **changes,
    )


WRONG, WELL, OTHER = golden("differs", "logprobs"), golden("matches"), golden("differs", "tokens")
UNKNOWN = golden("unknown")


def answers(first: GoldenCheckReading, *others: GoldenCheckReading) -> GoldenCheckReading:
    """Return how replicas answer their golden prompts, of which the first is the worst."""
    each = {f"127.0.0.1:{9000 + number}": one.judgement for number, one in enumerate((first, *others))}
    return first.model_copy(update={"replicas": each, "idle": True})


CASES: dict[str, tuple[Any, ...]] = {
    "a replica that stands still beside one that got only the tokens of our completion": (
        lambda: make.healthy(engine=replicated(0, 2)), "watch", "engine_stalled",
    ),
    "replicas of which one leaves a completion unanswered and one is down": (
        lambda: make.healthy(
            engine=replicated(90, 80, 0, r2="refused"),
            completion=asked(make.completion(), HUNG, make.completion("refused")),
        ), "watch", "engine_down",
    ),
    "a replica whose GPU is fully used at half its power, by the usual limit": (
        lambda: parallel("S", "S", "S", "S", hung=(1,), nvml=shared(own_sm=99, watts=350)), "healthy", "none",
    ),
    "a replica whose GPU is fully used at half its power, by a higher limit": (
        lambda: parallel("S", "S", "S", "S", hung=(1,), nvml=shared(own_sm=99, watts=350)), "watch", "engine_stalled",
        {"thresholds": TriageThresholds(working_power_ratio=0.8)},
    ),
    "a front that is silent before replicas that answer": (
        lambda: make.healthy(
            engine=replicated(90, 80), completion=asked(make.completion(), make.completion(), first=HUNG)
        ), "unknown", "engine_stalled",
    ),
    "a front that is silent before replicas of which one answers": (
        lambda: make.healthy(engine=replicated(90, 80), completion=asked(make.completion(), HUNG, first=HUNG)),
        "watch", "serving_regression",
    ),
    "replicas of which one fails, one sheds load, one loads, and others are well": (
        lambda: make.healthy(
            engine=replicated(90, 80, 0, 70, 60, running=0),
            completion=asked(BROKEN, BUSY, LOADS, make.completion(), make.completion("rejected", detail="no such model")),
        ), "watch", "engine_down",
    ),
    "one of two replicas refuses, one answers nothing, beside a front that fails": (
        lambda: make.healthy(
            engine=replicated(90, 80), completion=asked(BROKEN, make.completion(), first=BROKEN)
        ), "watch", "engine_errors",
    ),
    "a replica that says that it loads, with no completion of its own": (
        lambda: make.healthy(
            engine=replicated(90, 0, running=0, r1="not_metrics"), completion=asked(make.completion(), make.completion())
        ), "watch", "unknown",
    ),
    "one of eight replicas hangs, a rank of it is stopped": (
        lambda: parallel(*("S" if number != 7 else "T" for number in range(16)), hung=(3,)), "watch", "nccl_hang",
    ),
    "three of eight replicas hang, four of their ranks are stopped": (
        lambda: parallel(*("T" if number in (2, 3, 8, 9, 14) else "S" for number in range(16)), hung=(1, 4, 7)),
        "watch", "nccl_hang",
    ),
    "one of two replicas hangs inside a collective": (
        lambda: parallel("S", "S", "S", "S", hung=(1,), stacks=True), "watch", "engine_stalled",
    ),
    "two of four replicas are down": (
        lambda: make.healthy(engine=replicated(70, 0, 80, 0, r1="refused", r3="refused")), "watch", "engine_down",
    ),
    "one of three replicas answers wrongly": (
        lambda: make.healthy(golden=answers(WRONG, WELL, WELL)), "watch", "wrong_output",
    ),
    "two of three replicas answer wrongly": (
        lambda: make.healthy(golden=answers(WRONG, WELL, WRONG)), "watch", "wrong_output",
    ),
    "one of two replicas answers wrongly, the other could not be compared": (
        lambda: make.healthy(golden=answers(WRONG, UNKNOWN)), "fall_back", "wrong_output",
    ),
    "one of two replicas generates other tokens within the spread": (
        lambda: make.healthy(golden=answers(OTHER, WELL)), "watch", "wrong_output",
    ),
    "all replicas answer wrongly": (lambda: make.healthy(golden=answers(WRONG, WRONG)), "fall_back", "wrong_output"),
}  # fmt: skip
