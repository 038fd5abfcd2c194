"""Is the synthetic completion answered, and is the tier as fast as it should be?"""

from collections.abc import Iterator
from typing import Any

from gpu_actions.models import Finding, VerdictKind
from gpu_actions.serving.condition import Condition, Probe
from gpu_actions.snapshot.collectors.completion import CompletionReading
from gpu_actions.snapshot.collectors.engine import name_of
from gpu_actions.snapshot.progress import READS, TierProgress, probe_of
from gpu_actions.triage.check import Check, CheckContext
from gpu_actions.triage.rule import CRITICAL, UNKNOWN, WATCH, Rules, rule

COMPLETION = "synthetic completion"
TWICE = "/metrics twice"

RULES = Rules(
    rule(
        "serving.completion_error", CRITICAL,
        "the completion ended with an error, an empty answer or a broken stream",
        "Read the engine's log and run triage again. If it lasts, restart the tier or fall back.", source=COMPLETION,
        cause="engine_errors", verdict=VerdictKind.UNKNOWN,
    ),
    rule(
        "serving.completion_error_some", WATCH, "one completion failed while other requests get tokens",
        "Read the engine's log.", source=COMPLETION, cause="engine_errors",
    ),
    rule(
        "serving.overload", WATCH, "the engine generates and has more requests than it can take: they are refused or queue",
        "Lower the rate, or wait until its queue is shorter.", source=COMPLETION, cause="serving_regression",
    ),
    rule(
        "serving.completion_rejected", UNKNOWN,
        "the engine rejects the synthetic completion (4xx), so service is not proved",
        "Check the model name and the API key in the settings.", source=COMPLETION,
    ),
    rule(
        "serving.completion_late", WATCH, "the completion missed its deadline while other requests get tokens",
        "Check the engine's queue and batch size.", source=COMPLETION, cause="serving_regression",
        threshold="completion_deadline_s",
    ),
    rule(
        "serving.completion_slow", WATCH, "the completion was much slower than it should be",
        "Compare with the hardware findings, and check the load.", source=f"{COMPLETION}, baseline",
        cause="serving_regression", threshold="completion_slow_factor",
    ),
    rule(
        "serving.ttft", WATCH, "the mean time to first token is far above its baseline",
        "Compare with the hardware findings, and check the load.", source=f"{TWICE}, baseline",
        cause="serving_regression", threshold="ttft_slow_factor",
    ),
    rule(
        "serving.throughput", WATCH, "requests are queued, and tokens per second are far below the baseline",
        "Compare with the hardware findings: a link, PCIe or thermal finding is the likely cause.",
        source=f"{TWICE}, baseline", cause="serving_regression", threshold="throughput_drop_percent",
    ),
)  # fmt: skip

OVERLOAD = (429, 503)


def check_completion(context: CheckContext) -> Iterator[Finding]:
    """Judge the completion and the speed of a tier that should serve and is up."""
    progress = context.progress
    if progress.state in ("not_expected", "not_asked", "down"):
        return
    if progress.state == "starting":
        yield from _still_loading(context)
        return
    yield from _completion(context, progress)
    yield from _speed(context, progress)


def _still_loading(context: CheckContext) -> Iterator[Finding]:
    """Judge an engine that says that it loads. One that has said so for too long does not get ready."""
    age_s, completion = age_of(context), context.snapshot.completion
    if age_s is not None and age_s >= context.thresholds.starting_s:
        said = completion.detail if completion is not None else "503"
        yield RULES.finding(
            "serving.completion_error",
            f"it runs for {age_s:.0f} s and still says that it loads: {said}",
            **summary_of(completion),
        )


def front_is_silent(completion: CompletionReading | None) -> bool:
    """Return True if all replicas answered at their own addresses, but the tier's address did not."""
    if completion is None or completion.outcome != "timeout" or not completion.replicas:
        return False
    return all(one.outcome == "ok" for one in completion.replicas)


def age_of(context: CheckContext) -> float | None:
    """Return the age of the tier's oldest main process in seconds, or None if it is not known."""
    ranks = context.snapshot.ranks
    ages = [row.age_s for row in (ranks.processes if ranks else ()) if row.root and row.age_s is not None]
    return max(ages, default=None)


def _completion(context: CheckContext, progress: TierProgress) -> Iterator[Finding]:
    snapshot = context.snapshot
    completion = snapshot.completion
    if completion is None:
        if snapshot.failed("completion"):
            yield RULES.finding("serving.completion_rejected", snapshot.why_not("completion"))
        return
    evidence = summary_of(completion)
    flowing = progress.state == "flowing"
    for one in completion.replicas if completion.outcome == "ok" else ():
        if one.outcome not in ("ok", "timeout", "refused") and probe_of(one) is not Probe.STARTING:
            rule_id = "serving.overload" if one.status in OVERLOAD else "serving.completion_error_some"
            name = name_of(one.url)
            yield RULES.finding(
                rule_id, f"replica {name}: {one.detail}", subject=f"replica {name}", **summary_of(one)
            )
    if completion.outcome == "ok":
        yield from _slow(context, completion)
    elif completion.outcome == "timeout":
        late = f"no completion within {completion.deadline_s:g} s"
        if progress.condition is Condition.SATURATED:
            yield RULES.finding("serving.overload", f"{late}: {progress.why}", **evidence)
        elif flowing and not front_is_silent(completion):
            yield RULES.finding("serving.completion_late", late, **evidence)
    elif completion.outcome == "rejected":
        yield RULES.finding("serving.completion_rejected", completion.detail, **evidence)
    elif progress.condition is Condition.SATURATED:
        yield RULES.finding("serving.overload", completion.detail, **evidence)
    elif not (progress.stuck and completion.status in OVERLOAD) and progress.state != "silent":
        yield RULES.finding(
            "serving.completion_error_some" if flowing else "serving.completion_error",
            f"{completion.outcome.replace('_', ' ')}: {completion.detail}",
            **evidence,
        )


def _slow(context: CheckContext, completion: CompletionReading) -> Iterator[Finding]:
    known, limits = context.baseline.completion_ms, context.thresholds
    limit_ms = limits.completion_slow_ms if known is None else known * limits.completion_slow_factor
    if completion.e2e_ms is not None and completion.e2e_ms > limit_ms:
        yield RULES.finding(
            "serving.completion_slow",
            f"a completion took {completion.e2e_ms:.0f} ms, the limit is {limit_ms:.0f} ms",
            **summary_of(completion),
            baseline_ms=known,
            limit_ms=limit_ms,
        )


def _speed(context: CheckContext, progress: TierProgress) -> Iterator[Finding]:
    """Judge TTFT and throughput of the window, if there is a baseline and enough requests."""
    engine, limits = context.snapshot.engine, context.thresholds
    if engine is None or len(engine.samples) < 2:
        return
    known_ms, known_rate = context.baseline.ttft_mean_ms, context.baseline.tokens_per_s
    mean_ms, requests = engine.ttft_mean()
    enough = known_ms is not None and requests >= limits.ttft_min_samples
    if enough and mean_ms is not None and mean_ms > (known_ms or 0) * limits.ttft_slow_factor:
        yield RULES.finding(
            "serving.ttft",
            f"mean TTFT {mean_ms:.0f} ms over {requests:.0f} requests, baseline {known_ms:.0f} ms",
            ttft_mean_ms=mean_ms,
            requests=requests,
            baseline_ms=known_ms,
        )
    rate = engine.tokens_per_s_under_queue()
    if known_rate is not None and rate is not None and rate >= 0 and progress.state == "flowing":
        drop = 100 * (1 - rate / known_rate)
        if drop > limits.throughput_drop_percent:
            yield RULES.finding(
                "serving.throughput",
                f"{rate:.0f} tokens/s while requests are queued, {drop:.0f} % below the baseline of {known_rate:.0f}",
                tokens_per_s=rate,
                baseline_tokens_per_s=known_rate,
                drop_percent=drop,
            )


def summary_of(completion: CompletionReading | None) -> dict[str, Any]:
    """Return the part of a completion that belongs in evidence."""
    if completion is None:
        return {"outcome": "not asked"}
    return completion.model_dump(include={"outcome", "status", "tokens", "ttft_ms", "e2e_ms", "detail"})


COMPLETIONS = Check(title="Completion and speed", rules=RULES, reads=READS, judge=check_completion)
