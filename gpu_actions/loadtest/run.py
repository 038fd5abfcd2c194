"""A whole load test in this process: preflight, load, drain, result, files.

For a process that does nothing else. The bot uses `gpu_actions.loadtest.child.run_in_child`.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from gpu_actions.loadtest.assemble import Checked, Early, assemble, now_iso
from gpu_actions.loadtest.cross_check import read_counters
from gpu_actions.loadtest.energy import EnergyMeter
from gpu_actions.loadtest.generator import Counters
from gpu_actions.loadtest.preflight import preflight
from gpu_actions.loadtest.report import write_reports
from gpu_actions.loadtest.result import LoadProgress, LoadTestResult
from gpu_actions.loadtest.schedule import Schedule, make_schedule
from gpu_actions.loadtest.session import Session, make_session, start_time
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import ServiceDown, resolve_target
from gpu_actions.system.redact import redacted_head

DEAD_AFTER_S = 5.0
DEAD_FAILURES = 5
"""The engine is dead when for 5 s nothing was answered and at least 5 requests could not even connect."""
SATURATED_BACKLOG_S = 10.0
PROGRESS_EVERY_S = 1.0
JUDGE_EVERY_S = 0.25
DROP_AFTER_S = 0.2
"""After the judge's verdict: time for the generator to end its sending before what is in flight is dropped."""


async def run_load_test(
    spec: LoadSpec,
    *,
    out_dir: Path,
    progress: Callable[[LoadProgress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> LoadTestResult:
    """Run a load test and write load_test.json, report.html, report.png and summary.txt into `out_dir` (created).

    Setting `stop` ends the sending and drains; what was measured is kept and marked partial. Raises LoadTestRefused when the
    request is wrong (model, TLS, key), BadTrace for a trace file. A service that is down is a failed result, not an error.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    result = await measure(spec, progress=progress, stop=stop)
    await write_reports(result, out_dir)
    return result


async def measure(
    spec: LoadSpec,
    *,
    progress: Callable[[LoadProgress], None] | None = None,
    stop: asyncio.Event | None = None,
    judge: Callable[[LoadProgress], str | None] | None = None,
) -> LoadTestResult:
    """Run a load test like `run_load_test`, without writing files.

    `judge` sees the progress some times a second. What it returns ends the run early: it is the reason why the service fails,
    and what is in flight is then dropped.
    """
    stop = stop or asyncio.Event()
    spec = spec.with_nonce()
    schedule = make_schedule(spec)
    target = await resolve_target(spec)
    meter = EnergyMeter(spec.gpu_uuids)
    if not spec.measure_energy:
        meter.missing = "not asked for"
    elif not target.is_local:
        meter.missing = f"the target {target.host} is not this host"
    else:
        meter.start()
    started_at = now_iso()
    start, checked = monotonic(), None
    try:
        before = await read_counters(target, spec.metrics_url)
        try:
            found = await preflight(spec, target)
        except ServiceDown as problem:
            session = make_session(spec, schedule, target, "bytes")  # never run: an empty record
            early = Early(f"{problem.what}: {problem}", by_service=True)
        else:
            session = make_session(spec, schedule, target, found.unit)
            try:
                await session.prepare()
                start = start_time(schedule)
                early = await _carry_out(spec, schedule, session, start, progress, stop, judge)
            finally:
                await session.close()
            checked = Checked(found, before, await read_counters(target, spec.metrics_url))
    finally:
        if spec.measure_energy and meter.missing is None:
            meter.stop()
    measured_s = spec.duration_s if early.at_s is None else max(0.001, min(spec.duration_s, early.at_s))
    return assemble(
        spec, schedule, session, meter=meter, started_at=started_at, start=start, measured_s=measured_s, early=early,
        serves=target.is_local, checked=checked,
    )  # fmt: skip


async def _carry_out(
    spec: LoadSpec,
    schedule: Schedule,
    session: Session,
    start: float,
    progress: Callable[[LoadProgress], None] | None,
    stop: asyncio.Event,
    judge: Callable[[LoadProgress], str | None] | None,
) -> Early:
    """Run the session and show progress each second. End it early on a stop, a dead engine or a swamped one."""
    end_now = asyncio.Event()
    run = asyncio.create_task(session.run(start, end_now))
    stopper = asyncio.create_task(stop.wait())
    watch = _Watch(spec, start)
    early = Early()
    try:
        while not run.done():
            waiting = [run] if stopper.done() else [run, stopper]
            every_s = PROGRESS_EVERY_S if judge is None else JUDGE_EVERY_S
            await asyncio.wait(waiting, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
            now = monotonic()
            watch.note_answers(session.counters, now)
            elapsed = now - start
            current = _progress(spec, schedule, session, elapsed)
            if progress is not None:
                progress(current)
            judged = None if judge is None or end_now.is_set() else judge(current)
            if judged is not None:
                if elapsed < spec.duration_s:
                    early = Early(judged, elapsed, by_service=True)
                end_now.set()
                asyncio.get_running_loop().call_later(DROP_AFTER_S, session.drop)
            if end_now.is_set() or elapsed >= spec.duration_s:
                continue  # only draining is left
            reason = watch.problem(session.counters, now)
            if stopper.done():
                early = Early(
                    f"stopped by request after {max(0.0, elapsed):.1f} of {spec.duration_s:g} s", elapsed
                )
                end_now.set()
            elif reason is not None:
                early = Early(reason, elapsed, by_service=True)
                end_now.set()
        await run
    finally:
        stopper.cancel()
        if not run.done():
            run.cancel()
            await asyncio.wait([run])
    return early


class _Watch:
    """Notices an engine that died or is swamped, from the running counters."""

    def __init__(self, spec: LoadSpec, start: float) -> None:
        self.spec, self.start = spec, start
        self.answered, self.answered_at, self.dead_before = 0, monotonic(), 0

    def note_answers(self, counters: Counters, now: float) -> None:
        """Remember when the engine last answered, be it with an error."""
        answered = counters.ok + counters.failed - counters.dead
        if answered > self.answered or not counters.sent:
            self.answered, self.answered_at, self.dead_before = answered, now, counters.dead

    def problem(self, counters: Counters, now: float) -> str | None:
        """Return why the run should end now, or None."""
        elapsed, in_flight = now - self.start, counters.in_flight
        dead = counters.dead - self.dead_before
        if now - self.answered_at >= DEAD_AFTER_S and dead >= DEAD_FAILURES:
            errors = reversed(counters.first_error.items())
            label, (_, text) = next(
                (item for item in errors if item[0].startswith("connect")), ("", (0.0, ""))
            )
            return (
                f"the engine died: no answer since {self.answered_at - self.start:.1f} s, "
                f"{dead} requests in a row got {label} ({redacted_head(text, 200)})"
            )
        if in_flight > self.spec.max_in_flight:
            return f"{in_flight} requests in flight at {elapsed:.1f} s, over the limit of {self.spec.max_in_flight}"
        if self.spec.stop_when_saturated and in_flight > max(
            100.0, self.spec.target_qps * SATURATED_BACKLOG_S
        ):
            return (
                f"over-saturated: {in_flight} requests in flight at {elapsed:.1f} s, more than "
                f"{SATURATED_BACKLOG_S:g} s of load"
            )
        return None


def _progress(spec: LoadSpec, schedule: Schedule, session: Session, elapsed: float) -> LoadProgress:
    counters = session.counters
    total = elapsed + (-schedule.due_s[0] if schedule.warmup else 0.0)
    p50, p99 = (
        None if seconds is None else round(seconds * 1000, 2)
        for seconds in (session.ttft.quantile(0.5), session.ttft.quantile(0.99))
    )
    return LoadProgress(
        elapsed_s=round(elapsed, 2),
        duration_s=spec.duration_s,
        sent=counters.sent,
        done=counters.ok,
        errors=counters.failed,
        in_flight=counters.in_flight,
        achieved_qps=round(counters.ok / total, 2) if total > 0 else 0.0,
        ttft_p50_ms=p50,
        ttft_p99_ms=p99,
        late=session.ttft.count_above(spec.slo_ttft_ms / 1000),
    )
