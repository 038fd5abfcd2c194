"""Engines that load, refuse, answer late or hide their counters, and the verdict that must follow."""

from collections.abc import Callable
from typing import Any

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collectors.completion import CompletionReading
from gpu_actions.snapshot.collectors.engine import EngineReading
from gpu_actions.snapshot.collectors.ranks import RanksReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.target import UnitFacts
from gpu_actions.triage.baselines import TriageBaseline
from tests.gpu_actions.triage import builders as make
from tests.gpu_actions.triage.cases_serving import (
    FLAT,
    HUNG,
    IDLE,
    REFUSED,
    SILENT,
    paused,
    root,
    router,
)

LOADS = make.completion("http_error", status=503, detail="Model is loading", tokens=0, e2e_ms=None)
BUSY = make.completion("http_error", status=503, detail="too many requests", tokens=0, e2e_ms=None)
BROKEN = make.completion("http_error", status=500, detail="CUDA error", tokens=0, e2e_ms=None)
LIMITS = TriageThresholds()


def loading(age_s: float | None, completion: CompletionReading | None = LOADS, **changes: Any) -> Snapshot:
    """Return a host whose main process and its helper have this age; the engine says that it loads."""
    rows = (
        make.process(100, None, root=True, age_s=age_s),
        make.process(101, None, root=True, age_s=None if age_s is None else age_s / 2),
        make.process(102, 0, age_s=90_000),
        make.process(103, None, root=True, age_s=None),
    )
    return make.healthy(
        engine=IDLE,
        completion=completion,
        ranks=RanksReading(roots=(100,), processes=rows),
        ras=None,
        expected={"ranks": None},
        **changes,
    )


def pages(*outcomes: str, **changes: Any) -> EngineReading:
    """Return the two scrapes of a page, each with its outcome."""
    base = make.engine()
    rows = tuple(
        one.model_copy(update={"outcome": outcome, "detail": f"scrape {number}", **changes})
        for number, (one, outcome) in enumerate(zip(base.samples, outcomes, strict=True))
    )
    return base.model_copy(update={"samples": rows})


def lacking(*figures: str) -> EngineReading:
    return make.engine(missing=figures, **dict.fromkeys(set(figures) & {"running", "generation_tokens"}))


def both(reading: EngineReading, **changes: Any) -> EngineReading:
    """Return a reading with the same change of both scrapes."""
    rows = tuple(one.model_copy(update=changes) for one in reading.samples)
    return reading.model_copy(update={"samples": rows})


def speed(*, tokens: float, mean_ms: float, requests: float) -> EngineReading:
    """Return counters of a window of 3 s under a queue: tokens per second, mean TTFT and requests."""
    base = make.engine(tokens=(1000, 1000 + 3 * tokens))
    first, last = base.samples
    first = first.model_copy(update={"waiting": 5, "ttft_count": 7, "ttft_sum_s": 2})
    last = last.model_copy(
        update={"waiting": 5, "ttft_count": 7 + requests, "ttft_sum_s": 2 + requests * mean_ms / 1000}
    )
    return base.model_copy(update={"samples": (first, last)})


def slow(e2e_ms: float, known_ms: float | None = None) -> tuple[Any, ...]:
    """Return a case of a completion that took so long, with the baseline it is judged by."""
    limit_ms = LIMITS.completion_slow_ms if known_ms is None else known_ms * LIMITS.completion_slow_factor
    verdict = ("watch", "serving_regression") if e2e_ms > limit_ms else ("healthy", "none")
    return (
        lambda: make.healthy(completion=make.completion(e2e_ms=e2e_ms)),
        *verdict,
        {"baseline": TriageBaseline(completion_ms=known_ms)},
    )


def wedged(deadline_s: float = 4, **changes: Any) -> Snapshot:
    """Return an engine that reports no request, while the router holds three open on it."""
    reading = router(sessions=3)
    return make.healthy(
        engine=changes.pop("engine", IDLE),
        completion=make.completion("timeout", tokens=0, deadline_s=deadline_s),
        router=reading.model_copy(update={"before": reading.servers}),
        **changes,
    )


def died(*lines: str) -> Snapshot:
    """Return a host whose tier is down, and the last errors of its log."""
    return make.healthy(
        engine=REFUSED, completion=None, ranks=None, expected={"unit": UnitFacts(log_errors=lines)}
    )


Make = Callable[[], Snapshot]
STALL = LIMITS.stalled_fall_back_s
CASES: dict[str, tuple[Any, ...]] = {
    # starting
    "an engine that says that it loads, a minute old": (lambda: loading(60), "watch", "engine_down"),
    "an engine that says that it loads, of unknown age": (lambda: loading(None), "watch", "engine_down"),
    "an engine that says that it loads, whose processes are not read": (
        lambda: make.healthy(engine=IDLE, completion=LOADS, ranks=None), "watch", "engine_down",
    ),
    "an engine that has loaded for just as long as it may": (
        lambda: loading(LIMITS.starting_s), "unknown", "engine_errors",
    ),
    "an engine that says that it loads, for hours": (lambda: loading(9000), "unknown", "engine_errors"),
    "nothing listens, for just as long as it may": (
        lambda: make.healthy(engine=REFUSED, completion=None, ranks=root("S", LIMITS.starting_s)),
        "fall_back", "engine_down",
    ),
    "nothing listens where a completion was refused and no counters are read": (
        lambda: make.skipping(make.healthy(completion=make.completion("refused"), ranks=None), "engine"),
        "fall_back", "engine_down",
    ),
    "a page that answered once and is refused": (
        lambda: make.healthy(
            engine=pages("ok", "refused"), completion=None,
            ranks=RanksReading(roots=(100,), unit_active=False, processes=root("S").processes),
        ), "fall_back", "engine_down",
    ),
    # the completion
    "no engine is configured": (
        lambda: make.skipping(make.healthy(), "engine", "completion"), "healthy", "none",
    ),
    "a paused container of a tier whose engine is not configured": (
        lambda: make.skipping(make.healthy(ranks=paused(*range(8)), ras=None), "engine", "completion"),
        "watch", "engine_paused",
    ),
    "two frozen tiers that run": (
        lambda: make.healthy(expected={"unwanted": ("tp (process 5)", "rung 1 (process 6)")}),
        "watch", "frozen_tier_runs",
    ),
    "no engine is configured, whose completion failed": (
        lambda: make.without(make.skipping(make.healthy(), "engine"), "completion"), "healthy", "none",
    ),
    "an engine whose completion could not be sent": (
        lambda: make.without(make.healthy(), "completion"), "unknown", "unknown",
    ),
    "a completion that waits in the engine's queue": (
        lambda: make.healthy(engine=make.engine(waiting=7), completion=HUNG), "watch", "serving_regression",
    ),
    "an idle engine that refuses a completion for load": (
        lambda: make.healthy(engine=IDLE, completion=BUSY), "unknown", "engine_errors",
    ),
    "an engine that refuses a completion and generates nothing": (
        lambda: make.healthy(engine=FLAT, completion=BUSY), "unknown", "engine_stalled",
    ),
    "an engine that fails a completion and generates nothing": (
        lambda: make.healthy(engine=FLAT, completion=BROKEN), "unknown", "engine_errors",
    ),
    "an engine without counters that refuses a completion for load": (
        lambda: make.healthy(engine=pages("http_error", "http_error"), completion=BUSY),
        "unknown", "unknown",
    ),
    "a page that answers nothing beside a completion that fails": (
        lambda: make.healthy(engine=SILENT, completion=BROKEN), "unknown", "engine_stalled",
    ),
    "a completion that took just as long as it may": slow(LIMITS.completion_slow_ms),
    "a completion that took three times as long as usual": slow(300, 100),
    "a completion that took a little longer than three times as usual": slow(301, 100),
    "a completion of unknown duration": (
        lambda: make.healthy(completion=make.completion(e2e_ms=None)), "healthy", "none",
    ),
    "an engine at twice its usual time to first token and at just the rate that it may fall to": (
        lambda: make.healthy(engine=speed(tokens=75, mean_ms=500, requests=3)), "healthy", "none",
        {"baseline": TriageBaseline(ttft_mean_ms=250, tokens_per_s=100),
         "thresholds": TriageThresholds(throughput_drop_percent=25)},
    ),
    "an engine above twice its usual time to first token": (
        lambda: make.healthy(engine=speed(tokens=100, mean_ms=510, requests=3)), "watch", "serving_regression",
        {"baseline": TriageBaseline(ttft_mean_ms=250, tokens_per_s=100)},
    ),
    "an engine below 70 % of its usual rate": (
        lambda: make.healthy(engine=speed(tokens=69, mean_ms=100, requests=3)), "watch", "serving_regression",
        {"baseline": TriageBaseline(ttft_mean_ms=250, tokens_per_s=100)},
    ),
    "an engine below its usual rate, without a baseline of it": (
        lambda: make.healthy(engine=speed(tokens=9, mean_ms=900, requests=3)), "healthy", "none",
    ),
    "an engine that stands still under a queue although a completion is answered": (
        lambda: make.healthy(engine=both(speed(tokens=0, mean_ms=100, requests=3), running=0)),
        "watch", "serving_regression", {"baseline": TriageBaseline(tokens_per_s=100)},
    ),
    "a page whose figures are from one scrape": (
        lambda: make.healthy(engine=EngineReading(url="u", samples=make.engine().samples[:1])), "healthy", "none",
        {"baseline": TriageBaseline(ttft_mean_ms=250, tokens_per_s=100)},
    ),
    # stalls
    "an idle engine that leaves a completion unanswered": (
        lambda: make.healthy(engine=IDLE, completion=HUNG), "unknown", "engine_stalled",
    ),
    "an engine without counters that leaves a completion unanswered": (
        lambda: make.healthy(engine=lacking("running", "generation_tokens"), completion=HUNG),
        "unknown", "engine_stalled",
    ),
    "an engine that answers nothing": (
        lambda: make.healthy(engine=SILENT, completion=None), "unknown", "engine_stalled",
    ),
    "an engine that reports no request, three are open at the router": (wedged, "fall_back", "engine_stalled"),
    "an engine whose requests stand still, three are open at the router": (
        lambda: wedged(engine=FLAT, deadline_s=2.5), "unknown", "engine_stalled",
    ),
    "an engine whose requests wait and do not run, three are open at the router": (
        lambda: wedged(engine=both(make.engine(running=0, tokens=(5, 5)), waiting=2)), "unknown", "engine_stalled",
    ),
    "an engine that answers nothing, three are open at the router": (
        lambda: wedged(engine=SILENT), "unknown", "engine_stalled",
    ),
    "a stall of just as long as it may last": (
        lambda: make.healthy(engine=make.engine(tokens=(5, 5), at_s=STALL), completion=HUNG),
        "fall_back", "engine_stalled",
    ),
    "requests that wait and do not run, no completion sent": (
        lambda: make.skipping(
            make.healthy(engine=both(make.engine(running=0, tokens=(5, 5)), waiting=2)), "completion"
        ), "watch", "engine_stalled",
    ),
    # the counters
    "a page that fails twice": (
        lambda: make.healthy(engine=pages("http_error", "not_metrics")), "watch", "unknown",
    ),
    "a page that fails and says nothing": (
        lambda: make.healthy(engine=both(pages("http_error", "not_metrics"), detail="")), "watch", "unknown",
    ),
    "a page that timed out once": (lambda: make.healthy(engine=pages("timeout", "ok")), "watch", "unknown"),
    "a page without the number of requests": (lambda: make.healthy(engine=lacking("running")), "watch", "unknown"),
    "a page without tokens": (lambda: make.healthy(engine=lacking("generation_tokens")), "watch", "unknown"),
    "a page without both": (
        lambda: make.healthy(engine=lacking("running", "generation_tokens")), "watch", "unknown",
    ),
    "a page without a figure that nothing is judged by": (
        lambda: make.healthy(engine=lacking("prompt_tokens")), "healthy", "none",
    ),
    "a page that had no tokens at first": (
        lambda: make.healthy(engine=make.engine(tokens=(None, 5))), "healthy", "none",
    ),
    "requests that came while a completion was answered": (
        lambda: make.healthy(engine=EngineReading(url="u", samples=(
            IDLE.samples[0], make.engine(tokens=(0, 1002)).samples[1]
        ))), "healthy", "none",
    ),
    "no counters are asked, a completion is answered": (
        lambda: make.skipping(make.healthy(), "engine"), "healthy", "none",
    ),
    "a page that fails at the end": (lambda: make.healthy(engine=pages("ok", "http_error")), "watch", "unknown"),
    "a page that fails at the end and says nothing": (
        lambda: make.healthy(engine=both(pages("ok", "http_error"), detail="")), "watch", "unknown",
    ),
    # what ended it
    "a tier that is down after a rank died": (
        lambda: died("ERROR rank 5 (pid 205) died: exit code -9 :", "Engine core exited"), "fall_back", "engine_down",
    ),
    "a tier that is down after a worker of vLLM died": (
        lambda: died("Worker proc VllmWorker-3 died unexpectedly, shutting down executor.", "rank 1 (pid 7) died"),
        "fall_back", "engine_down",
    ),
    "a tier that is down after a rank died without memory": (
        lambda: died("rank 2 (pid 202) died", "torch.OutOfMemoryError: CUDA out of memory"), "fall_back", "engine_down",
    ),
    # the router and the golden prompts
    "golden prompts that could not be asked": (lambda: make.healthy(golden=None), "watch", "unknown"),
    "a router without the backend, although a server takes requests": (
        lambda: make.healthy(router=router().model_copy(update={"outcome": "no_backend"})),
        "watch", "router_down",
    ),
    "just as many requests wait at the router as may": (
        lambda: make.healthy(router=router(queued=LIMITS.router_queue // 2)), "watch", "serving_regression",
    ),
    "a server with weight 1 takes requests": (
        lambda: make.healthy(router=router(weight=1, operational="UP")), "healthy", "none",
    ),
    "servers that the router found down": (
        lambda: make.healthy(router=router(operational="DOWN")), "watch", "router_down",
    ),
}  # fmt: skip
