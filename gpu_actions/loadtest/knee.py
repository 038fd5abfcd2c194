"""Find the knee: the highest rate that holds the limits, from trials of some seconds each.

A trial ends as soon as it can no longer hold, and what it has in flight is dropped soon after, so that the service is
overloaded for seconds only.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from gpu_actions.loadtest.assemble import now_iso
from gpu_actions.loadtest.knee_result import (
    BUDGET_S,
    KNEE_JSON,
    KNEE_PNG,
    KneeProgress,
    KneeResult,
    KneeTrial,
    knee_text,
)
from gpu_actions.loadtest.knee_search import KneeSearch, Try
from gpu_actions.loadtest.report import TEXT_NAME, draw_in_child
from gpu_actions.loadtest.result import LoadProgress, LoadTestResult, RunVerdict
from gpu_actions.loadtest.run import measure
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.verdict import judged_latencies
from gpu_actions.system.files import write_atomically
from gpu_actions.system.redact import redacted_json

SHORT_S = 3.0
FULL_S = (8.0, 15.0)
WARMUP_S = (1.0, 25.0)
"""Shortest and longest, for a service whose answers take a moment and one whose answers take seconds."""
LEAST_FULL_S = 5.0
FULL_REQUESTS = 60
"""A full trial at a low rate is as long as this many requests need, within the limits of its length."""
NEAR = 1.25
SETTLE_S = 0.5
"""After a trial that failed: time for the engine to drop the requests whose connections were closed."""
OVERHEAD_S = 1.0
SHOW_EVERY_S = 1.0
LEAST_REQUESTS = 3
JUDGE_FROM_S = (1.5, 5.0)
"""A trial is not ended earlier, so that the rate which the service completes can be read from it."""


class _Trial:
    """One trial: its spec, the early stop, and what the service completes."""

    def __init__(self, spec: LoadSpec, e2e_s: float) -> None:
        self.spec = spec
        self._scheduled = spec.target_qps * spec.duration_s
        # Completions come in waves of one answer's time when all places fill up at once: see at least a whole wave.
        self._judge_from_s = min(spec.duration_s, _between(e2e_s, JUDGE_FROM_S))
        self._most_in_flight = 10 + 1.5 * spec.target_qps * (
            spec.slo_ttft_ms / 1000 + (e2e_s or spec.slo_e2e_ms / 1000)
        )
        self._completed: list[tuple[float, int]] = []

    def judge(self, progress: LoadProgress) -> str | None:
        """Return why the trial can no longer hold, or None."""
        if progress.elapsed_s <= self.spec.duration_s:
            self._completed.append((progress.elapsed_s, progress.done))
        if progress.elapsed_s < self._judge_from_s:
            return None
        allowed = 0.01 * self._scheduled
        if progress.late > allowed:
            return f"{progress.late} requests over the TTFT limit, at most {allowed:.0f} of {self._scheduled:.0f} may be"
        allowed = self.spec.max_error_percent / 100 * self._scheduled
        if progress.errors > allowed:
            return (
                f"{progress.errors} requests failed, at most {allowed:.0f} of {self._scheduled:.0f} may fail"
            )
        if progress.in_flight > self._most_in_flight:
            return f"{progress.in_flight} requests in flight: a new one waits longer than the TTFT limit"
        return None

    @property
    def completed_qps(self) -> float | None:
        """Requests a second that were completed in the measured part, those of the warm-up included."""
        points = [point for point in self._completed if point[0] >= 0]
        if len(points) < 2 or points[-1][0] - points[0][0] < 0.5:
            return None
        return (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])


def _between(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])


def _trial_spec(spec: LoadSpec, tried: Try, number: int, e2e_s: float, left_s: float) -> LoadSpec | None:
    """Return the spec of a trial, or None if the time that is left is too short for one."""
    # After the time of one answer, as many streams are running as the rate needs.
    warmup_s = _between(1.1 * e2e_s, WARMUP_S)
    wanted_s = _between(max(2 * e2e_s, FULL_REQUESTS / tried.rate), FULL_S) if tried.is_full else SHORT_S
    window_s = max(wanted_s, LEAST_REQUESTS / tried.rate)
    fits_s = left_s - warmup_s - (e2e_s + 0.5) - OVERHEAD_S
    if fits_s < window_s:
        if fits_s < max(LEAST_FULL_S if tried.is_full else SHORT_S, LEAST_REQUESTS / tried.rate):
            return None
        window_s = fits_s
    fields = {
        "target_qps": tried.rate,
        "duration_s": window_s,
        "warmup_s": warmup_s,
        "drain_s": spec.slo_e2e_ms / 1000 + 1,
        "seed": spec.seed + number,
        "measure_energy": False,
        "name": f"{spec.name}, {tried.rate:.3g} requests/s",
    }
    return spec.model_copy(update=fields)


def _holds(result: LoadTestResult) -> bool:
    """Return True if a trial met its limits, even with a late client.

    Latencies count from the due time, so a late client makes them longer: limits that hold in spite of it do hold.
    """
    p99s = judged_latencies(result.latency, result.limits)
    one_token = result.workload.max_new_tokens == 1  # it has no time between tokens
    return (
        not result.partial
        and result.requests.ok > 0
        and result.error_percent <= result.limits.max_error_percent
        and not result.saturation.over_saturated
        and all(
            (one_token if p99.value_ms is None else not p99.at_least and p99.value_ms <= limit)
            for _, p99, limit in p99s
        )
    )


def _trial_of(result: LoadTestResult, trial: _Trial, *, is_full: bool, started_s: float) -> KneeTrial:
    latency, held = result.latency, _holds(result)
    return KneeTrial(
        rate_qps=trial.spec.target_qps,
        is_full=is_full,
        started_s=round(started_s, 1),
        window_s=round(result.times.measured_s, 2),
        ended_early=result.partial,
        held=held,
        reason="" if held else "; ".join(result.reasons[:2]),
        is_void=not held and result.verdict is RunVerdict.VOID,
        sent=result.requests.sent,
        ok=result.requests.ok,
        ttft_p50_ms=latency.ttft.p50.value_ms,
        ttft_p99_ms=latency.ttft.p99.value_ms,
        e2e_p50_ms=latency.e2e.p50.value_ms,
        e2e_p99_ms=latency.e2e.p99.value_ms,
        completed_qps=trial.completed_qps,
        output_tokens_per_s=result.rates.output_tokens_per_s,
    )


async def find_knee(
    spec: LoadSpec,
    *,
    max_qps: float,
    budget_s: float = BUDGET_S,
    progress: Callable[[KneeProgress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> KneeResult:
    """Search for the knee, beginning at the spec's rate. No trial is above `max_qps` or begins when `budget_s` is over.

    Setting `stop` ends the search with what is known. Raises LoadTestRefused when the request is wrong (model, TLS, key).
    """
    stop = stop or asyncio.Event()
    began, started_at, e2e_s = monotonic(), now_iso(), 0.0
    search = KneeSearch(spec.target_qps, lowest=min(LEAST_REQUESTS / FULL_S[0], max_qps), highest=max_qps)
    trials: list[KneeTrial] = []
    shown_at = 0.0
    result: LoadTestResult | None = None
    while not stop.is_set() and (tried := search.next() or search.repeat()) is not None:
        started_s = monotonic() - began
        trial_spec = _trial_spec(spec, tried, len(trials), e2e_s, budget_s - started_s)
        if trial_spec is None:
            break
        trial = _Trial(trial_spec, e2e_s)

        def show(now: LoadProgress, number: int = len(trials) + 1, rate: float = tried.rate) -> None:
            nonlocal shown_at
            if progress is not None and monotonic() - shown_at >= SHOW_EVERY_S:
                shown_at = monotonic()
                progress(_progress(now, number, rate, search, (shown_at - began) / budget_s))

        result = await measure(trial_spec, progress=show, stop=stop, judge=trial.judge)
        ended = _trial_of(result, trial, is_full=tried.is_full, started_s=started_s)
        if stop.is_set() and ended.is_void:
            break  # stopped in the middle: it says nothing
        trials.append(ended)
        if ended.is_void and not (len(trials) > 1 and trials[-2].is_void):
            continue  # this machine was busy for a moment: try the rate once more
        search.note(tried, held=ended.held, completed=ended.completed_qps)
        e2e_s = e2e_s or (ended.e2e_p50_ms or 0) / 1000
        if not ended.ok and not ended.sent:
            break  # the service is down
        if not ended.held:
            await asyncio.sleep(SETTLE_S)
    if result is None:
        result = await measure(spec.model_copy(update={"measure_energy": False}), stop=stop)
    sustained = sustained_rate(trials, search.held)
    verdict, reasons = _verdict(search, trials, max_qps=max_qps, was_stopped=stop.is_set())
    return KneeResult(
        name=spec.name,
        verdict=verdict,
        reasons=reasons,
        knee_qps=search.held if search.held is None else min(search.held, sustained or search.held),
        held_qps=search.held,
        broke_at_qps=search.failed,
        capacity_qps=sustained or search.capacity,
        reached_cap=search.held == max_qps,
        slo_ttft_ms=spec.slo_ttft_ms,
        slo_e2e_ms=spec.slo_e2e_ms,
        slo_itl_ms=spec.slo_itl_ms,
        slo_e2e_per_token_ms=spec.slo_e2e_per_token_ms,
        max_error_percent=spec.max_error_percent,
        started_at=started_at,
        seconds=round(monotonic() - began, 1),
        budget_s=budget_s,
        max_qps=max_qps,
        workload=result.workload,
        host=result.host,
        engine=result.engine,
        trials=tuple(trials),
    )


def sustained_rate(trials: list[KneeTrial], held: float | None) -> float | None:
    """Return the rate that the service completes when a little too much is offered, or None if that was not seen.

    A trial of seconds can hold a rate that fills the queue too slowly to be seen. What is completed beside a full queue does
    not depend on the length of the trial, so no knee is above it. A service that collapses far above its knee does not count.
    """
    if held is None:
        return None
    near = [
        one.completed_qps
        for one in trials
        if one.is_full
        and one.window_s >= LEAST_FULL_S
        and one.completed_qps is not None
        and (one.rate_qps == held or (not one.held and one.rate_qps <= NEAR * held))
    ]
    overloaded = any(not one.held and one.completed_qps in near for one in trials)
    return max(near) if overloaded else None


def _verdict(
    search: KneeSearch, trials: list[KneeTrial], *, max_qps: float, was_stopped: bool
) -> tuple[RunVerdict, tuple[str, ...]]:
    """Return the verdict of a search and its reasons."""
    broke = next((one for one in reversed(trials) if one.rate_qps == search.failed), None)
    reasons = []
    if was_stopped:
        reasons.append("stopped by request: the knee may be higher than what was tried")
    if broke is not None:
        reasons.append(f"at {broke.rate_qps:.3g} requests/s: {broke.reason}")
    if broke is not None and broke.is_void:
        return RunVerdict.VOID, tuple(reasons)  # the client's own limit, not the service's
    if search.held is not None:
        if broke is not None and broke.rate_qps / search.held > 1.1:
            reasons.append(
                f"the time was over before the knee was known better than {search.held:.3g}-{broke.rate_qps:.3g} requests/s"
            )
        return (RunVerdict.VOID if was_stopped else RunVerdict.PASSED), tuple(reasons)
    is_known = broke is not None and not was_stopped and all(not one.held for one in trials)
    if not is_known:
        reasons.append(f"no full trial up to {max_qps:g} requests/s fitted into the time")
    return (RunVerdict.FAILED if is_known else RunVerdict.VOID), tuple(reasons)


def _progress(
    now: LoadProgress, number: int, rate: float, search: KneeSearch, fraction: float
) -> KneeProgress:
    known = []
    if search.held is not None:
        known.append(f"{search.held:.3g} holds")
    if search.failed is not None:
        known.append(f"{search.failed:.3g} does not")
    p99 = "" if now.ttft_p99_ms is None else f", TTFT p99 {now.ttft_p99_ms:.0f} ms"
    text = f"trial {number}: {rate:.3g} requests/s, in flight {now.in_flight}{p99}" + (
        f" ({', '.join(known)})" if known else ""
    )
    return KneeProgress(fraction=round(min(1.0, fraction), 3), text=text)


async def write_knee_files(result: KneeResult, out_dir: Path) -> None:
    """Write knee.json, summary.txt and knee.png."""
    out_dir.mkdir(parents=True, exist_ok=True)
    json_path = write_atomically(out_dir / KNEE_JSON, redacted_json(result.model_dump_json()))
    write_atomically(out_dir / TEXT_NAME, knee_text(result))
    await draw_in_child("knee_picture", json_path, out_dir / KNEE_PNG)
