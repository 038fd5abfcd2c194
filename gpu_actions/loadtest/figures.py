"""Figures of a run, computed from its record with numpy: counts, rates, latencies, lateness, saturation and the series."""

import itertools
from typing import Any

from gpu_actions.loadtest.generator import Counters
from gpu_actions.loadtest.outcomes import CENSORED, MEANINGS, SHED, Outcome
from gpu_actions.loadtest.records import LogHistogram, Records
from gpu_actions.loadtest.result import (
    ErrorClass,
    Latency,
    Lateness,
    Rates,
    Requests,
    Samples,
    Saturation,
    SeriesPoint,
    Warmup,
)
from gpu_actions.loadtest.schedule import Schedule
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.statistics import describe, describe_histogram, percentile_rank, thin_out
from gpu_actions.system.redact import redacted_head

LATENESS_FLOOR_MS = 5.0
"""Less lateness than this is the scheduling noise of a busy host (0.2-4 ms measured), and no decision depends on it."""
LATENESS_SHARE_OF_SLO = 0.05
MAX_SERIES_POINTS = 600
SATURATION_GROWTH_SHARE = 0.05
"""A backlog that grows by 5 % of the offered rate or faster only ends with the load."""
SHED_PERCENT = 5.0


def lateness_limit_ms(spec: LoadSpec) -> float:
    """Return the p99 lateness above which the client counts as the bottleneck."""
    return max(LATENESS_FLOOR_MS, LATENESS_SHARE_OF_SLO * spec.slo_ttft_ms)


class Figures:
    """Columns of the measured part as numpy arrays, and one method for each group of figures. Times are in seconds."""

    def __init__(self, spec: LoadSpec, schedule: Schedule, records: Records, measured_s: float) -> None:
        import numpy

        self.np = numpy
        self.spec = spec
        self.measured_s = measured_s
        first = schedule.warmup

        def column(values: Any) -> Any:
            return numpy.frombuffer(values, dtype=values.typecode)

        due, outcome, tokens = column(schedule.due_s), column(records.outcome), column(records.tokens)
        self.ok_tokens_with_warmup = int(tokens[outcome == Outcome.OK].sum())
        self.warm_outcome = outcome[:first]
        self.warm_ttft_ms = ((column(records.first_s) - due) * 1000)[:first][self.warm_outcome == Outcome.OK]
        self.due = due[first:]
        self.outcome = outcome[first:]
        self.tokens = tokens[first:]
        self.prompt_tokens = column(records.prompt_tokens)[first:]
        self.dispatched = column(records.dispatched_s)[first:]
        self.written = column(records.written_s)[first:]
        self.first = column(records.first_s)[first:]
        self.last_token = column(records.last_token_s)[first:]
        self.ended = column(records.ended_s)[first:]
        self.sent = self.outcome != Outcome.UNSENT
        self.sent_count = int(self.sent.sum())
        self.ok = self.outcome == Outcome.OK
        self.censored = numpy.isin(self.outcome, [int(outcome) for outcome in CENSORED])
        self.ttft_ms = (self.first - self.due) * 1000
        self.e2e_ms = (self.ended - self.due) * 1000
        several = self.ok & (self.tokens > 1)
        self.tpot_ms = (self.last_token - self.first)[several] * 1000 / (self.tokens[several] - 1)
        # A censored request has no usage: what it was asked for bounds its time per token from below.
        asked = numpy.maximum(self.tokens, column(schedule.new_tokens)[first:])
        self.e2e_per_token_ms = self.e2e_ms / numpy.where(self.ok, numpy.maximum(self.tokens, 1), asked)
        self.good = self.ok & (self.ttft_ms <= spec.slo_ttft_ms)
        if spec.slo_e2e_per_token_ms is None:
            self.good &= self.e2e_ms <= spec.slo_e2e_ms
        else:
            self.good &= self.e2e_per_token_ms <= spec.slo_e2e_per_token_ms

    def latency(self, gaps: LogHistogram) -> Latency:
        """Return the latency distributions.

        A request that never ended is censored at the time it had been running. One whose first token came has a TTFT.
        """
        missing_first = self.np.isnan(self.first)
        no_first = self.censored & missing_first
        has_first = self.ok | (self.censored & ~missing_first)
        was_written = ~self.np.isnan(self.written)
        ran_from_send_ms = (self.ended - self.written) * 1000
        return Latency(
            ttft=describe(self.ttft_ms[has_first], self.e2e_ms[no_first]),
            e2e=describe(self.e2e_ms[self.ok], self.e2e_ms[self.censored]),
            itl=describe_histogram(gaps),
            tpot=describe(self.tpot_ms),
            e2e_per_token=describe(self.e2e_per_token_ms[self.ok], self.e2e_per_token_ms[self.censored]),
            ttft_from_send=describe(
                ((self.first - self.written) * 1000)[has_first], ran_from_send_ms[no_first & was_written]
            ),
            e2e_from_send=describe(ran_from_send_ms[self.ok], ran_from_send_ms[self.censored & was_written]),
        )

    def lateness(self) -> Lateness:
        """Return how late the client dispatched its requests."""
        limit = lateness_limit_ms(self.spec)
        late = self.np.sort((self.dispatched - self.due)[self.sent] * 1000)
        n = len(late)
        if n == 0:
            return Lateness(p50_ms=None, p99_ms=None, max_ms=None, limit_ms=limit, over=False)
        p50, p99 = (float(late[percentile_rank(n, share) - 1]) for share in (0.5, 0.99))
        return Lateness(p50_ms=p50, p99_ms=p99, max_ms=float(late[-1]), limit_ms=limit, over=p99 > limit)

    def requests(self, counters: Counters) -> Requests:
        """Return the counts of the measured part."""
        return Requests(
            scheduled=len(self.due),
            sent=self.sent_count,
            ok=int(self.ok.sum()),
            good=int(self.good.sum()),
            failed=int((self.sent & ~self.ok).sum()),
            unfinished=int((self.outcome == Outcome.UNFINISHED).sum()),
            unsent=int((~self.sent).sum()),
            retried_on_stale_connection=counters.retried,
        )

    def rates(self) -> Rates:
        """Return the rates of the measured part. Only a full answer inside it counts as achieved."""
        seconds, sent = self.measured_s, self.sent_count
        inside = self.ok & (self.ended <= seconds)
        output, prompt = int(self.tokens[inside].sum()), int(self.prompt_tokens[inside].sum())
        is_replay = self.spec.arrival == "replay"
        return Rates(
            target_qps=len(self.due) / self.spec.duration_s if is_replay else self.spec.target_qps,
            offered_qps=sent / seconds,
            achieved_qps=int(inside.sum()) / seconds,
            goodput_qps=int((inside & self.good).sum()) / seconds,
            goodput_percent=100.0 * int(self.good.sum()) / sent if sent else None,
            output_tokens_per_s=output / seconds,
            total_tokens_per_s=(output + prompt) / seconds,
            output_tokens=int(self.tokens[self.ok].sum()),
            prompt_tokens=int(self.prompt_tokens[self.ok].sum()),
            mean_prompt_tokens=float(self.prompt_tokens[self.ok].mean()) if self.ok.any() else None,
        )

    def errors(self, counters: Counters) -> tuple[ErrorClass, ...]:
        """Return each class of failure, the most frequent first."""
        found = []
        for outcome, meaning in MEANINGS.items():
            ended = self.ended[self.outcome == outcome]
            if len(ended):
                _, example = counters.first_error.get(outcome.label, (0.0, ""))
                found.append(
                    ErrorClass(
                        name=outcome.label, meaning=meaning, count=len(ended), percent=100.0 * len(ended) / self.sent_count,
                        first_at_s=round(float(ended.min()), 3), example=redacted_head(example, 200),
                    )
                )  # fmt: skip
        return tuple(sorted(found, key=lambda entry: -entry.count))

    def in_flight_at(self, times: Any) -> Any:
        """Return the number of requests that were sent and not yet ended at each time."""
        begun, over = self.np.sort(self.dispatched[self.sent]), self.np.sort(self.ended[self.sent])
        return self.np.searchsorted(begun, times, side="right") - self.np.searchsorted(
            over, times, side="right"
        )

    def saturation(self) -> Saturation:
        """Decide whether the backlog grew during the measured part, without its first fifth: the service fills up then."""
        np, sent = self.np, self.sent_count
        shed = int(np.isin(self.outcome, [int(outcome) for outcome in SHED]).sum())
        shed_percent = 100.0 * shed / sent if sent else 0.0
        begin = 0.2 * self.measured_s
        growth, grew = None, False
        if sent >= 20 and self.spec.arrival != "ramp":
            times = np.linspace(begin, self.measured_s, 41)
            backlog = self.in_flight_at(times)
            growth = float(np.polyfit(times, backlog, 1)[0])
            # A stable queue varies by the root of its length. Three of these and five requests are not growth yet.
            noise = 5 + 3 * float(np.sqrt(max(1.0, backlog[:8].mean())))
            grew = (
                growth > SATURATION_GROWTH_SHARE * sent / self.measured_s
                and growth * (times[-1] - times[0]) > noise
            )
        over = grew or shed_percent > SHED_PERCENT
        sustained = None
        summary = "the service keeps up" if sent else "nothing was measured"
        if over:
            late_part = self.ok & (self.ended > begin) & (self.ended <= self.measured_s)
            sustained = int(late_part.sum()) / (0.8 * self.measured_s)
            cause = (
                f"the backlog grows by {growth:.1f} requests/s"
                if grew
                else f"{shed_percent:.0f} % turned away (429/503)"
            )
            summary = f"over-saturated: {cause}; it completes about {sustained:.1f} QPS"
        return Saturation(
            over_saturated=over, backlog_growth_qps=growth, sustained_qps=sustained, shed_percent=shed_percent,
            summary=summary,
        )  # fmt: skip

    def series(self, power: list[tuple[float, float]]) -> tuple[SeriesPoint, ...]:
        """Return at most 600 steps of a second or more, up to the end of the last request. `power`: (seconds, watts)."""
        np = self.np
        if not self.sent_count:
            return ()
        last = max(self.measured_s, self.last_end())
        step = max(1.0 if last > 10 else 0.5, last / MAX_SERIES_POINTS)
        edges = np.arange(0, last + step, step)
        due_order, end_order = np.argsort(self.due, kind="stable"), np.argsort(self.ended)
        due_at = np.searchsorted(self.due[due_order], edges)
        end_at = np.searchsorted(self.ended[end_order], edges)
        backlog = self.in_flight_at(edges[1:])

        def quantile(values: Any, share: float) -> float | None:
            return round(float(np.quantile(values, share, method="higher")), 3) if len(values) else None

        points = []
        for number, (begin, end) in enumerate(itertools.pairwise(edges)):
            due_rows = due_order[due_at[number] : due_at[number + 1]]
            end_rows = end_order[end_at[number] : end_at[number + 1]]
            ok_rows, done = due_rows[self.ok[due_rows]], end_rows[self.ok[end_rows]]
            watts = [value for at, value in power if begin <= at < end]
            points.append(
                SeriesPoint(
                    at_s=round(float(end), 3),
                    offered_qps=round(int(self.sent[due_rows].sum()) / step, 3),
                    done_qps=round(len(done) / step, 3),
                    error_qps=round((len(end_rows) - len(done)) / step, 3),
                    in_flight=int(backlog[number]),
                    tokens_per_s=round(float(self.tokens[done].sum()) / step, 3),
                    ttft_p50_ms=quantile(self.ttft_ms[ok_rows], 0.5),
                    ttft_p99_ms=quantile(self.ttft_ms[ok_rows], 0.99),
                    e2e_p50_ms=quantile(self.e2e_ms[ok_rows], 0.5),
                    e2e_p99_ms=quantile(self.e2e_ms[ok_rows], 0.99),
                    power_watts=round(sum(watts) / len(watts), 1) if watts else None,
                )
            )
        return tuple(points)

    def last_end(self) -> float:
        """Return when the last request ended, or 0 when none was sent."""
        return float(self.np.nanmax(self.ended[self.sent])) if self.sent_count else 0.0

    def warmup(self) -> Warmup:
        """Return the figures of the warm-up."""
        times = self.warm_ttft_ms
        return Warmup(
            requests=len(self.warm_outcome),
            ok=len(times),
            ttft_p50_ms=float(self.np.median(times)) if len(times) else None,
            ttft_max_ms=float(times.max()) if len(times) else None,
        )

    def samples(self) -> Samples:
        """Return sorted latencies for comparisons."""
        sort = self.np.sort
        return Samples(
            ttft_ms=thin_out(sort(self.ttft_ms[self.ok])),
            e2e_ms=thin_out(sort(self.e2e_ms[self.ok])),
            tpot_ms=thin_out(sort(self.tpot_ms)),
        )
