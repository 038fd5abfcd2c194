"""From the record of a run to its result: figures, saturation, lateness, and the verdict. Pure but for numpy.

The client is the bottleneck when the p99 of its own lateness is above 5 % of the TTFT limit, and never below 5 ms: less than
that is the scheduling noise of a busy host (measured 0.2-4 ms here), and no decision in the runbook turns on it.
"""

import itertools
from typing import Any

from gpu_actions.loadtest.generator import Counters
from gpu_actions.loadtest.outcomes import CENSORED, MEANINGS, SHED, Outcome
from gpu_actions.loadtest.records import LogHistogram, Records
from gpu_actions.loadtest.result import (
    CrossCheck,
    ErrorClass,
    Latency,
    Lateness,
    Rates,
    Requests,
    RunVerdict,
    Samples,
    Saturation,
    SeriesPoint,
    Warmup,
)
from gpu_actions.loadtest.schedule import Schedule
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.statistics import describe, describe_histogram, thin_out

LATENESS_FLOOR_MS = 5.0
LATENESS_SHARE_OF_SLO = 0.05
MAX_SERIES_POINTS = 600
SATURATION_GROWTH_SHARE = 0.05
"""A backlog that grows by 5 % of the offered rate or faster only ends with the load."""
SHED_PERCENT = 5.0


def lateness_limit_ms(spec: LoadSpec) -> float:
    """The p99 lateness from which a run is void."""
    return max(LATENESS_FLOOR_MS, LATENESS_SHARE_OF_SLO * spec.slo_ttft_ms)


class Columns:
    """The record as numpy arrays, cut to the measured part, with what follows from them. Times in seconds."""

    def __init__(self, spec: LoadSpec, schedule: Schedule, records: Records, measured_s: float) -> None:
        import numpy

        self.np = numpy
        self.spec = spec
        first = schedule.warmup
        self.measured_s = measured_s

        def column(values: Any) -> Any:
            return numpy.frombuffer(values, dtype=values.typecode)

        self.all_due = column(schedule.due_s)
        self.warm_outcome = column(records.outcome)[:first]
        self.warm_ttft_ms = ((column(records.first_s) - self.all_due)[:first] * 1000)[
            self.warm_outcome == Outcome.OK
        ]
        self.due = self.all_due[first:]
        self.outcome = column(records.outcome)[first:]
        self.dispatched = column(records.dispatched_s)[first:]
        self.written = column(records.written_s)[first:]
        self.first = column(records.first_s)[first:]
        self.last_token = column(records.last_token_s)[first:]
        self.ended = column(records.ended_s)[first:]
        self.tokens = column(records.tokens)[first:]
        self.prompt_tokens = column(records.prompt_tokens)[first:]
        self.sent = self.outcome != Outcome.UNSENT
        self.ok = self.outcome == Outcome.OK
        self.censored = numpy.isin(self.outcome, [int(outcome) for outcome in CENSORED])
        self.ttft_ms = (self.first - self.due) * 1000
        self.e2e_ms = (self.ended - self.due) * 1000
        self.good = self.ok & (self.ttft_ms <= spec.slo_ttft_ms) & (self.e2e_ms <= spec.slo_e2e_ms)

    def latency(self, gaps: LogHistogram) -> Latency:
        """Distributions. A request without an end is censored at how long it ran; one whose first token came has a TTFT."""
        np = self.np
        no_first = self.censored & np.isnan(self.first)
        has_first = self.ok | (self.censored & ~np.isnan(self.first))
        ran = (self.ended - self.due) * 1000
        ran_from_send = (self.ended - self.written) * 1000
        sent_times = ~np.isnan(self.written)
        several = self.ok & (self.tokens > 1)
        tpot = (self.last_token - self.first)[several] * 1000 / (self.tokens[several] - 1)
        return Latency(
            ttft=describe(self.ttft_ms[has_first], ran[no_first]),
            e2e=describe(self.e2e_ms[self.ok], ran[self.censored]),
            itl=describe_histogram(gaps),
            tpot=describe(tpot),
            ttft_from_send=describe(
                ((self.first - self.written) * 1000)[has_first], ran_from_send[no_first & sent_times]
            ),
            e2e_from_send=describe(
                ((self.ended - self.written) * 1000)[self.ok], ran_from_send[self.censored & sent_times]
            ),
        )

    def lateness(self) -> Lateness:
        """How late the client turned to its requests."""
        np = self.np
        limit = lateness_limit_ms(self.spec)
        late = np.sort((self.dispatched - self.due)[self.sent] * 1000)
        if not len(late):
            return Lateness(p50_ms=None, p99_ms=None, max_ms=None, limit_ms=limit, over=False)
        p50, p99 = (
            float(late[min(len(late) - 1, int(np.ceil(share * len(late))) - 1)]) for share in (0.5, 0.99)
        )
        return Lateness(p50_ms=p50, p99_ms=p99, max_ms=float(late[-1]), limit_ms=limit, over=p99 > limit)

    def requests(self, counters: Counters) -> Requests:
        """Counts of the measured part."""
        return Requests(
            scheduled=len(self.due),
            sent=int(self.sent.sum()),
            ok=int(self.ok.sum()),
            good=int(self.good.sum()),
            failed=int((self.sent & ~self.ok).sum()),
            unfinished=int((self.outcome == Outcome.UNFINISHED).sum()),
            unsent=int((~self.sent).sum()),
            retried_on_stale_connection=counters.retried,
        )

    def rates(self) -> Rates:
        """Rates over the measured part: only what was answered in full inside it counts as achieved."""
        seconds = self.measured_s
        inside = self.ok & (self.ended <= seconds)
        sent = int(self.sent.sum())
        output, prompt = int(self.tokens[inside].sum()), int(self.prompt_tokens[inside].sum())
        ok = int(self.ok.sum())
        return Rates(
            target_qps=self.spec.target_qps
            if self.spec.arrival != "replay"
            else len(self.due) / self.spec.duration_s,
            offered_qps=sent / seconds,
            achieved_qps=int(inside.sum()) / seconds,
            goodput_qps=int((inside & self.good).sum()) / seconds,
            goodput_percent=100.0 * int(self.good.sum()) / sent if sent else None,
            output_tokens_per_s=output / seconds,
            total_tokens_per_s=(output + prompt) / seconds,
            output_tokens=int(self.tokens[self.ok].sum()),
            prompt_tokens=int(self.prompt_tokens[self.ok].sum()),
            mean_prompt_tokens=float(self.prompt_tokens[self.ok].mean()) if ok else None,
        )

    def errors(self, counters: Counters) -> tuple[ErrorClass, ...]:
        """Each class of failure, the most frequent first."""
        sent = int(self.sent.sum())
        found = []
        for outcome, meaning in MEANINGS.items():
            count = int((self.outcome == outcome).sum())
            if count:
                at = self.ended[self.outcome == outcome]
                _, example = counters.first_error.get(outcome.label, (0.0, ""))
                found.append(
                    ErrorClass(
                        name=outcome.label,
                        meaning=meaning,
                        count=count,
                        percent=100.0 * count / sent,
                        first_at_s=round(float(at.min()), 3),
                        example=example,
                    )
                )
        return tuple(sorted(found, key=lambda entry: -entry.count))

    def in_flight_at(self, times: Any) -> Any:
        """Requests sent and not ended at each time."""
        np = self.np
        begun = np.sort(self.dispatched[self.sent])
        over = np.sort(self.ended[self.sent])
        return np.searchsorted(begun, times, side="right") - np.searchsorted(over, times, side="right")

    def saturation(self) -> Saturation:
        """Whether the backlog grew through the measured part (its first fifth is left out: the service fills up)."""
        np = self.np
        sent = int(self.sent.sum())
        shed = int(np.isin(self.outcome, [int(outcome) for outcome in SHED]).sum())
        shed_percent = 100.0 * shed / sent if sent else 0.0
        times = np.linspace(0.2 * self.measured_s, self.measured_s, 41)
        growth = None
        grew = False
        if sent >= 20 and self.spec.arrival != "ramp":
            backlog = self.in_flight_at(times)
            growth = float(np.polyfit(times, backlog, 1)[0])
            rise = growth * (times[-1] - times[0])
            offered = sent / self.measured_s
            # a stable queue wanders by the root of its length; three of these, and five requests, are not growth yet
            grew = growth > SATURATION_GROWTH_SHARE * offered and rise > 5 + 3 * float(
                np.sqrt(max(1.0, backlog[:8].mean()))
            )
        over = grew or shed_percent > SHED_PERCENT
        sustained = None
        if over:
            late_part = self.ok & (self.ended > 0.2 * self.measured_s) & (self.ended <= self.measured_s)
            sustained = int(late_part.sum()) / (0.8 * self.measured_s)
        summary = "the service keeps up" if sent else "nothing was measured"
        if grew:
            summary = f"over-saturated: the backlog grows by {growth:.1f} requests/s; it completes about {sustained:.1f} QPS"
        elif over:
            summary = f"over-saturated: {shed_percent:.0f} % turned away (429/503); it completes about {sustained:.1f} QPS"
        return Saturation(
            over_saturated=over,
            backlog_growth_qps=growth,
            sustained_qps=sustained,
            shed_percent=shed_percent,
            summary=summary,
        )

    def series(self, power: list[tuple[float, float]]) -> tuple[SeriesPoint, ...]:
        """Steps of a second or more, at most 600; goes on past the schedule's end while requests were still ending."""
        np = self.np
        if not int(self.sent.sum()):
            return ()
        last = max(self.measured_s, float(np.nanmax(self.ended[self.sent])))
        step = max(1.0 if last > 10 else 0.5, last / MAX_SERIES_POINTS)
        edges = np.arange(0, last + step, step)
        points = []
        due_order = np.argsort(self.due, kind="stable")
        due_sorted = self.due[due_order]
        end_order = np.argsort(self.ended)
        ended_sorted = self.ended[end_order]
        backlog = self.in_flight_at(edges[1:])
        for number, (begin, end) in enumerate(itertools.pairwise(edges)):
            due_rows = due_order[np.searchsorted(due_sorted, begin) : np.searchsorted(due_sorted, end)]
            end_rows = end_order[np.searchsorted(ended_sorted, begin) : np.searchsorted(ended_sorted, end)]
            ok_rows = due_rows[self.ok[due_rows]]
            done = end_rows[self.ok[end_rows]]
            watts = [value for at, value in power if begin <= at < end]

            def share(values: Any, quantile: float) -> float | None:
                return (
                    round(float(np.quantile(values, quantile, method="higher")), 3) if len(values) else None
                )

            points.append(
                SeriesPoint(
                    at_s=round(float(end), 3),
                    offered_qps=round(int(self.sent[due_rows].sum()) / step, 3),
                    done_qps=round(len(done) / step, 3),
                    error_qps=round((len(end_rows) - len(done)) / step, 3),
                    in_flight=int(backlog[number]),
                    tokens_per_s=round(float(self.tokens[done].sum()) / step, 3),
                    ttft_p50_ms=share(self.ttft_ms[ok_rows], 0.5),
                    ttft_p99_ms=share(self.ttft_ms[ok_rows], 0.99),
                    e2e_p50_ms=share(self.e2e_ms[ok_rows], 0.5),
                    e2e_p99_ms=share(self.e2e_ms[ok_rows], 0.99),
                    power_watts=round(sum(watts) / len(watts), 1) if watts else None,
                )
            )
        return tuple(points)

    def last_end(self) -> float:
        """When the last request ended, seconds of the measured part; 0 when none was sent."""
        return float(self.np.nanmax(self.ended[self.sent])) if int(self.sent.sum()) else 0.0

    @staticmethod
    def ok_tokens_of_all(records: Records) -> int:
        """Output tokens of all full answers, warm-up included."""
        return sum(
            count
            for count, outcome in zip(records.tokens, records.outcome, strict=True)
            if outcome == Outcome.OK
        )

    @staticmethod
    def longest_answer(schedule: Schedule) -> int:
        """The most tokens that one request asks for."""
        return max(schedule.new_tokens, default=0)

    def warmup(self) -> Warmup:
        """The warm-up's own figures."""
        np = self.np
        times = self.warm_ttft_ms
        return Warmup(
            requests=len(self.warm_outcome),
            ok=len(times),
            ttft_p50_ms=float(np.median(times)) if len(times) else None,
            ttft_max_ms=float(times.max()) if len(times) else None,
        )

    def samples(self) -> Samples:
        """Sorted latencies for comparisons."""
        np = self.np
        several = self.ok & (self.tokens > 1)
        tpot = (self.last_token - self.first)[several] * 1000 / (self.tokens[several] - 1)
        return Samples(
            ttft_ms=thin_out(np.sort(self.ttft_ms[self.ok])),
            e2e_ms=thin_out(np.sort(self.e2e_ms[self.ok])),
            tpot_ms=thin_out(np.sort(tpot)),
        )


def judge(
    *,
    spec: LoadSpec,
    requests: Requests,
    latency: Latency,
    lateness: Lateness,
    saturation: Saturation,
    errors: tuple[ErrorClass, ...],
    cross: CrossCheck,
    partial_reason: str | None,
    ended_by_service: bool,
) -> tuple[RunVerdict, tuple[str, ...], tuple[str, ...]]:
    """Give verdict, reasons and warnings.

    void when the client was the bottleneck or nothing was measured; a run that somebody stopped is failed if it was
    failing, else void. `ended_by_service`: the run ended early because the service died or drowned.
    """
    void: list[str] = []
    failed: list[str] = []
    warnings: list[str] = []
    if lateness.over:
        void.append(
            f"the client was the bottleneck: p99 lateness {lateness.p99_ms:.1f} ms, limit {lateness.limit_ms:.1f} ms; "
            f"use more processes, a lower rate or a quieter machine"
        )
    if resource := next((entry for entry in errors if entry.name == "client_resource"), None):
        void.append(
            f"the client ran out of sockets for {resource.count} requests ({resource.example}); raise ulimit -n"
        )
    error_percent = 100.0 * requests.failed / requests.sent if requests.sent else 0.0
    if ended_by_service and partial_reason:
        failed.append(partial_reason)
    if requests.sent and not requests.ok:
        failed.append(
            f"no request was served: {', '.join(f'{entry.count} {entry.name}' for entry in errors[:3])}"
        )
    elif error_percent > spec.max_error_percent:
        classes = ", ".join(f"{entry.count} {entry.name}" for entry in errors[:3])
        failed.append(
            f"{error_percent:.1f} % of the requests failed, limit {spec.max_error_percent:g} %: {classes}"
        )
    for label, distribution, limit in (
        ("TTFT", latency.ttft, spec.slo_ttft_ms),
        ("E2E", latency.e2e, spec.slo_e2e_ms),
    ):
        p99 = distribution.p99
        if p99.value_ms is not None and (p99.value_ms > limit or p99.at_least):
            sign = "at least " if p99.at_least else ""
            failed.append(f"p99 {label} is {sign}{p99.value_ms:,.0f} ms, limit {limit:,.0f} ms")
    if saturation.over_saturated:
        failed.append(saturation.summary)
    if not requests.sent:
        void.append("nothing was sent in the measured part")
    elif partial_reason and not ended_by_service and not failed:
        void.append(partial_reason)
    p99_confidence = latency.ttft.p99.confidence_percent
    if p99_confidence is not None and p99_confidence < 95:
        warnings.append(
            f"{latency.ttft.count} requests show the true p99 with {p99_confidence:.0f} % confidence; 299 give 95 %"
        )
    if requests.retried_on_stale_connection > max(1, requests.sent // 100):
        warnings.append(
            f"{requests.retried_on_stale_connection} requests were sent again because their idle connection had been closed"
        )
    if cross.agrees is False:
        warnings.append(f"counts disagree: {cross.summary}")
    if void:
        return RunVerdict.VOID, tuple(void + failed), tuple(warnings)
    if failed:
        return RunVerdict.FAILED, tuple(failed), tuple(warnings)
    return RunVerdict.PASSED, (), tuple(warnings)
