"""Does the tier serve, and as fast as it should? The engine's counters, the synthetic completion and the router."""

from collections.abc import Iterator

from gpu_actions.models import Finding
from gpu_actions.snapshot.collectors.completion import CompletionReading
from gpu_actions.snapshot.collectors.engine import EngineSample
from gpu_actions.snapshot.progress import Progress
from gpu_actions.triage.checks.collective import suspicions_of
from gpu_actions.triage.checks.context import CheckContext, make_finding

OVERLOAD = (429, 503)


def check_serving(context: CheckContext, progress: Progress) -> Iterator[Finding]:
    """Findings on the engine."""
    # Of looks that read a part of the host, only those at processes tell it.
    if context.snapshot.expected.unwanted and "ranks" in context.snapshot.collectors:
        yield make_finding("serving.frozen_runs", ", ".join(context.snapshot.expected.unwanted))
    if progress.state == "not_expected":
        yield make_finding("serving.stopped", "the tier is not meant to run now")
        return
    if progress.state == "not_asked":
        return
    if progress.state == "down":
        yield _down(context)
        return
    yield from _stall(context, progress)
    yield from _counters(context, progress)
    yield from _completion(context, progress)
    yield from _speed(context, progress)
    if progress.state in ("flowing", "idle"):
        done = context.snapshot.completion
        proof = (
            f"a completion took {done.e2e_ms:.0f} ms" if done and done.outcome == "ok" and done.e2e_ms else ""
        )
        yield make_finding(
            "serving.ok", proof or f"the engine is {progress.state}", evidence=progress.evidence()
        )


def _down(context: CheckContext) -> Finding:
    ranks, engine = context.snapshot.ranks, context.snapshot.engine
    roots = [process for process in (ranks.processes if ranks else ()) if process.root]
    alive = [process for process in roots if process.state_last not in ("Z", "X", "gone", None)]
    detail = engine.samples[-1].detail if engine is not None and engine.samples else ""
    evidence = {
        "url": engine.url if engine is not None else None,
        "detail": detail,
        "missing_processes": list(ranks.missing_roots) if ranks else [],
        "unit_active": ranks.unit_active if ranks else None,
        "main_processes": [{"pid": row.pid, "state": row.state_last, "age_s": row.age_s} for row in roots],
    }
    young = [row for row in alive if row.age_s is not None and row.age_s < context.thresholds.starting_s]
    if young and len(young) == len(alive):
        age_s = max(row.age_s or 0 for row in young)
        return make_finding(
            "serving.starting",
            f"started {age_s:.0f} s ago and does not listen yet",
            evidence={**evidence, "age_s": age_s},
        )
    what = (
        "its main process is gone"
        if ranks is not None and not alive and roots + list(ranks.missing_roots)
        else ""
    )
    return make_finding(
        "serving.down",
        f"the engine is down: {what or (f'nothing listens at {engine.url}' if engine else 'connection refused')}",
        evidence=evidence,
    )


def _stall(context: CheckContext, progress: Progress) -> Iterator[Finding]:
    if not progress.stuck or any(True for _ in suspicions_of(context, progress)):
        return  # a hang is the collective's finding
    completion = context.snapshot.completion
    unanswered = progress.state == "silent" or (completion is not None and completion.outcome == "timeout")
    evidence = {"progress": progress.evidence(), "completion": _summary(completion)}
    if unanswered and progress.flat_s >= context.thresholds.stalled_fall_back_s:
        yield make_finding(
            "serving.stalled_long", f"no token and no answer for {progress.flat_s:.0f} s", evidence=evidence
        )
    elif unanswered:
        what = "answers nothing" if progress.state == "silent" else f"no token for {progress.flat_s:.1f} s"
        yield make_finding("serving.stalled", f"{what}, and a completion got none either", evidence=evidence)
    else:
        yield make_finding(
            "serving.flat",
            f"{progress.running or 0:g} running, no token for {progress.flat_s:.1f} s",
            evidence=evidence,
        )


def _counters(context: CheckContext, progress: Progress) -> Iterator[Finding]:
    snapshot = context.snapshot
    engine = snapshot.engine
    proved = snapshot.completion is not None and snapshot.completion.outcome == "ok"
    samples: tuple[EngineSample, ...] = engine.samples if engine is not None else ()
    problem = ""
    if engine is None and not snapshot.skipped("engine"):
        problem = snapshot.why_not("engine")
    elif bad := [sample for sample in samples if sample.outcome not in ("ok", "timeout")]:
        problem = bad[-1].detail or bad[-1].outcome
    elif samples and (lost := {"running", "generation_tokens"} & set(samples[-1].missing)):
        problem = f"the metrics page has no {' and no '.join(sorted(lost))}"
    elif any(sample.outcome == "timeout" for sample in samples) and progress.state != "silent":
        problem = "a scrape timed out"
    if problem:
        yield make_finding("serving.metrics_unread" if proved else "serving.unread", problem)
        return
    before, after = progress.tokens_first, progress.tokens_last
    if before is None or after is None:
        return
    if after < before:
        yield make_finding(
            "serving.restarted",
            f"the token counter fell from {before:g} to {after:g}",
            evidence=progress.evidence(),
        )
    elif proved and after == before and (progress.running or 0) > 0:
        yield make_finding(
            "serving.flat",
            f"{progress.running:g} running and the counter is flat, though our completion got its tokens",
            evidence=progress.evidence(),
        )


def _completion(context: CheckContext, progress: Progress) -> Iterator[Finding]:
    snapshot = context.snapshot
    completion = snapshot.completion
    if completion is None:
        if snapshot.collectors.get("completion") is not None and not snapshot.skipped("completion"):
            yield make_finding("serving.completion_rejected", snapshot.why_not("completion"))
        return
    evidence = _summary(completion)
    flowing = progress.state == "flowing"
    if completion.outcome == "ok":
        yield from _slow(context, completion)
    elif completion.outcome == "timeout":
        if not progress.stuck:
            rule = "serving.completion_late" if flowing else "serving.stalled"
            yield make_finding(
                rule, f"no finished completion within {completion.deadline_s:g} s", evidence=evidence
            )
    elif completion.outcome == "rejected":
        yield make_finding("serving.completion_rejected", completion.detail, evidence=evidence)
    elif completion.status in OVERLOAD:
        yield make_finding("serving.overload", completion.detail, evidence=evidence)
    elif progress.state != "silent":
        rule = "serving.completion_error_some" if flowing else "serving.completion_error"
        yield make_finding(rule, f"{completion.outcome}: {completion.detail}", evidence=evidence)


def _slow(context: CheckContext, completion: CompletionReading) -> Iterator[Finding]:
    known = context.baseline.completion_ms
    limit_ms = (
        context.thresholds.completion_slow_ms
        if known is None
        else known * context.thresholds.completion_slow_factor
    )
    if completion.e2e_ms is not None and completion.e2e_ms > limit_ms:
        yield make_finding(
            "serving.completion_slow",
            f"a completion took {completion.e2e_ms:.0f} ms, over {limit_ms:.0f} ms",
            evidence={**_summary(completion), "baseline_ms": known, "limit_ms": limit_ms},
        )


def _speed(context: CheckContext, progress: Progress) -> Iterator[Finding]:
    """TTFT and throughput of the window against the baseline; silent where there is none or too few requests."""
    engine = context.snapshot.engine
    if engine is None or len(engine.samples) < 2:
        return
    first, last = engine.samples[0], engine.samples[-1]
    seconds = last.at_s - first.at_s
    known_ttft, known_rate = context.baseline.ttft_mean_ms, context.baseline.tokens_per_s
    counts = (first.ttft_count, last.ttft_count, first.ttft_sum_s, last.ttft_sum_s)
    if known_ttft is not None and None not in counts:
        requests = (last.ttft_count or 0) - (first.ttft_count or 0)
        if requests >= context.thresholds.ttft_min_samples:
            mean_ms = 1000 * ((last.ttft_sum_s or 0) - (first.ttft_sum_s or 0)) / requests
            if mean_ms > known_ttft * context.thresholds.ttft_slow_factor:
                yield make_finding(
                    "serving.ttft",
                    f"mean TTFT {mean_ms:.0f} ms over {requests:.0f} requests, baseline {known_ttft:.0f} ms",
                    evidence={"ttft_mean_ms": mean_ms, "requests": requests, "baseline_ms": known_ttft},
                )
    before, after = progress.tokens_first, progress.tokens_last
    queued = (first.waiting or 0) > 0 and (last.waiting or 0) > 0
    if known_rate is not None and queued and before is not None and after is not None and seconds > 0:
        rate = (after - before) / seconds
        drop = 100 * (1 - rate / known_rate)
        if rate >= 0 and drop > context.thresholds.throughput_drop_percent and progress.state == "flowing":
            yield make_finding(
                "serving.throughput",
                f"{rate:.0f} tokens/s under a queue, {drop:.0f} % below the baseline of {known_rate:.0f}",
                evidence={"tokens_per_s": rate, "baseline_tokens_per_s": known_rate, "drop_percent": drop},
            )


def _summary(completion: CompletionReading | None) -> dict[str, object]:
    if completion is None:
        return {"outcome": "not asked"}
    return {
        "outcome": completion.outcome,
        "status": completion.status,
        "tokens": completion.tokens,
        "ttft_ms": completion.ttft_ms,
        "e2e_ms": completion.e2e_ms,
        "detail": completion.detail,
    }
