"""A whole load test: preflight, load, drain, figures, verdict, files. In this process, or in a child of its own.

`run_load_test` is for a process that does nothing else; the bot uses `gpu_actions.loadtest.child.run_in_child`.
"""

import asyncio
import datetime
import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Literal

from gpu_actions.loadtest.child import run_in_child
from gpu_actions.loadtest.cross_check import EngineCounters, cross_check, read_counters
from gpu_actions.loadtest.energy import EnergyMeter
from gpu_actions.loadtest.judge import Columns, judge, lateness_limit_ms
from gpu_actions.loadtest.preflight import Preflight, preflight
from gpu_actions.loadtest.report import write_reports
from gpu_actions.loadtest.result import (
    ClientFacts,
    CrossCheck,
    EngineFacts,
    HostFacts,
    Limits,
    LoadProgress,
    LoadTestResult,
    RunVerdict,
    Times,
    Workload,
)
from gpu_actions.loadtest.schedule import Schedule, make_schedule
from gpu_actions.loadtest.session import Session, make_session, start_time
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import LoadTestRefused, ServiceDown, resolve_target

__all__ = ["LoadTestRefused", "measure", "run_in_child", "run_load_test"]

VERSION = "0.1.0"
DEAD_AFTER_S = 5.0
DEAD_FAILURES = 5
"""The engine is dead when for 5 s nothing was answered and at least 5 requests could not even connect."""
SATURATED_BACKLOG_S = 10.0
PROGRESS_EVERY_S = 1.0


async def run_load_test(
    spec: LoadSpec,
    *,
    out_dir: Path,
    progress: Callable[[LoadProgress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> LoadTestResult:
    """Run a load test and write load_test.json, report.html, report.png and summary.txt into `out_dir` (created).

    Setting `stop` ends the sending and drains; what was measured is kept and marked partial. Raises LoadTestRefused when the
    request is wrong (model, TLS, key), BadTrace for a trace file. A service that is down gives a failed result, not an error.
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
) -> LoadTestResult:
    """Like `run_load_test`, without files."""
    stop = stop or asyncio.Event()
    schedule = make_schedule(spec)
    target = await resolve_target(spec)
    meter = EnergyMeter(spec.gpu_uuids)
    if not spec.measure_energy:
        meter.missing = "not asked for"
    elif not target.is_local:
        meter.missing = f"the target {target.host} is not this host"
    else:
        meter.start()
    started_at = _now_iso()
    try:
        before = await read_counters(target, spec.metrics_url)
        try:
            checked = await preflight(spec, target)
        except ServiceDown as problem:
            return _result(
                spec, schedule, None, meter=meter, started_at=started_at, start=monotonic(), measured_s=spec.duration_s,
                early=_Early(f"the service is down: {problem}", by_service=True), serves=target.is_local,
            )  # fmt: skip
        session = make_session(spec, schedule, target, checked.unit)
        try:
            await session.prepare()
            start = start_time(schedule)
            early = await _carry_out(spec, schedule, session, start, progress, stop)
        finally:
            await session.close()
        after = await read_counters(target, spec.metrics_url)
    finally:
        if spec.measure_energy and meter.missing is None:
            meter.stop()
    measured_s = spec.duration_s if early.at_s is None else max(0.001, min(spec.duration_s, early.at_s))
    return _result(
        spec, schedule, session, checked=checked, before=before, after=after, meter=meter, started_at=started_at,
        start=start, measured_s=measured_s, early=early, serves=target.is_local,
    )  # fmt: skip


class _Early:
    """Why and when (seconds of the measured part) the sending ended before the schedule did."""

    def __init__(
        self, reason: str | None = None, *, at_s: float | None = None, by_service: bool = False
    ) -> None:
        self.reason, self.at_s, self.by_service = reason, at_s, by_service


async def _carry_out(
    spec: LoadSpec,
    schedule: Schedule,
    session: Session,
    start: float,
    progress: Callable[[LoadProgress], None] | None,
    stop: asyncio.Event,
) -> _Early:
    """Run the session; show progress each second; end it early on a stop, a dead engine or a drowned one."""
    end_now = asyncio.Event()
    run = asyncio.create_task(session.run(start, end_now))
    stopper = asyncio.create_task(stop.wait())
    early = _Early()
    answered, answered_at, dead_before = 0, monotonic(), 0
    try:
        while not run.done():
            waiting = [run] if stopper.done() else [run, stopper]
            await asyncio.wait(waiting, timeout=PROGRESS_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            now = monotonic()
            counters = session.counters
            elapsed = now - start
            if counters.ok + (counters.failed - counters.dead) > answered or not counters.sent:
                answered, answered_at = counters.ok + (counters.failed - counters.dead), now
                dead_before = counters.dead
            if progress is not None:
                progress(_progress(spec, schedule, session, elapsed))
            if end_now.is_set() or elapsed >= spec.duration_s:
                continue  # only draining is left
            if stopper.done():
                early = _Early(
                    f"stopped by request after {max(0.0, elapsed):.1f} of {spec.duration_s:g} s", at_s=elapsed
                )
            elif now - answered_at >= DEAD_AFTER_S and counters.dead - dead_before >= DEAD_FAILURES:
                label, (_, text) = next(
                    (
                        item
                        for item in reversed(counters.first_error.items())
                        if item[0].startswith("connect")
                    ),
                    ("", (0, "")),
                )
                early = _Early(
                    f"the engine died: no answer since {answered_at - start:.1f} s, "
                    f"{counters.dead - dead_before} requests in a row got {label} ({text})",
                    at_s=elapsed, by_service=True,
                )  # fmt: skip
            elif counters.in_flight > spec.max_in_flight:
                early = _Early(
                    f"{counters.in_flight} requests in flight at {elapsed:.1f} s, over the limit of {spec.max_in_flight}",
                    at_s=elapsed, by_service=True,
                )  # fmt: skip
            elif spec.stop_when_saturated and counters.in_flight > max(
                100.0, spec.target_qps * SATURATED_BACKLOG_S
            ):
                early = _Early(
                    f"over-saturated: {counters.in_flight} requests in flight at {elapsed:.1f} s, more than "
                    f"{SATURATED_BACKLOG_S:g} s of load", at_s=elapsed, by_service=True,
                )  # fmt: skip
            if early.reason is not None:
                end_now.set()
        await run
    finally:
        stopper.cancel()
        if not run.done():
            run.cancel()
            await asyncio.wait([run])
    return early


def _progress(spec: LoadSpec, schedule: Schedule, session: Session, elapsed: float) -> LoadProgress:
    counters = session.counters
    total = elapsed + (-schedule.due_s[0] if schedule.warmup else 0.0)
    p50, p99 = session.ttft.quantile(0.5), session.ttft.quantile(0.99)
    return LoadProgress(
        elapsed_s=round(elapsed, 2),
        duration_s=spec.duration_s,
        sent=counters.sent,
        done=counters.ok,
        errors=counters.failed,
        in_flight=counters.in_flight,
        achieved_qps=round(counters.ok / total, 2) if total > 0 else 0.0,
        ttft_p50_ms=None if p50 is None else round(p50 * 1000, 2),
        ttft_p99_ms=None if p99 is None else round(p99 * 1000, 2),
    )


def workload_of(spec: LoadSpec, schedule: Schedule, unit: Literal["bytes", "words", "auto"]) -> Workload:
    """The workload of a spec, fingerprint included."""
    workload = Workload(
        model=spec.model,
        api=spec.api,
        arrival=spec.arrival,
        target_qps=spec.target_qps,
        max_new_tokens=spec.max_new_tokens,
        prompt_len_min=spec.prompt_len_min,
        prompt_len_max=spec.prompt_len_max,
        prompt_unit=unit,
        ignore_eos=spec.ignore_eos,
        burst_size=spec.burst_size if spec.arrival == "burst" else None,
        ramp_from_qps=spec.ramp_from_qps if spec.arrival == "ramp" else None,
        trace_sha256=schedule.trace_sha256,
        gpus=spec.gpus,
        tensor_parallel=spec.tensor_parallel,
        dtype=spec.dtype,
    )
    digest = hashlib.sha256(workload.model_dump_json(exclude={"fingerprint"}).encode()).hexdigest()[:12]
    return workload.model_copy(update={"fingerprint": digest})


def _result(
    spec: LoadSpec,
    schedule: Schedule,
    session: Session | None,
    *,
    meter: EnergyMeter,
    started_at: str,
    start: float,
    measured_s: float,
    early: _Early,
    serves: bool,
    checked: Preflight | None = None,
    before: EngineCounters | None = None,
    after: EngineCounters | None = None,
) -> LoadTestResult:
    if session is None:  # the service was down before the start: an empty record, nothing sent
        from gpu_actions.loadtest.generator import Counters
        from gpu_actions.loadtest.records import LogHistogram, Records

        records, counters, gaps = Records(len(schedule)), Counters(), LogHistogram()
        cpu_s, rss, processes = 0.0, 0.0, 0
    else:
        records, counters, gaps = session.records, session.counters, session.gaps
        cpu_s, rss = session.cpu_s, session.max_rss_mib
        processes = min(spec.process_count, max(1, len(schedule)))
    columns = Columns(spec, schedule, records, measured_s)
    requests = columns.requests(counters)
    rates = columns.rates()
    latency = columns.latency(gaps)
    lateness = columns.lateness()
    saturation = columns.saturation()
    errors = columns.errors(counters)
    if checked is not None and before is not None and after is not None:
        failed = counters.sent - counters.ok
        ok_tokens = columns.ok_tokens_of_all(records) + checked.probe_tokens
        cross = cross_check(
            before,
            after,
            ok=counters.ok + 1,
            tokens=ok_tokens,
            unaccounted_tokens=failed * columns.longest_answer(schedule),
        )
        engine = checked.engine.model_copy(update={"kind": after.kind})
    else:
        cross = CrossCheck(
            agrees=None, client_requests_ok=0, client_output_tokens=0, summary="not checked: nothing was sent"
        )
        engine = EngineFacts(url=spec.url)
    verdict, reasons, warnings = judge(
        spec=spec, requests=requests, latency=latency, lateness=lateness, saturation=saturation, errors=errors, cross=cross,
        partial_reason=early.reason, ended_by_service=early.by_service,
    )  # fmt: skip
    if session is None:
        verdict, reasons, warnings = RunVerdict.FAILED, (early.reason or "",), ()
    made = round(rates.output_tokens_per_s * measured_s)
    energy = meter.over(
        start, start + measured_s, output_tokens=made, price_usd_per_kwh=spec.price_usd_per_kwh
    )
    return LoadTestResult(
        name=spec.name,
        verdict=verdict,
        reasons=reasons,
        warnings=(*(checked.warnings if checked else ()), *warnings),
        partial=early.reason is not None,
        partial_reason=early.reason,
        workload=workload_of(spec, schedule, checked.unit if checked else spec.prompt_unit),
        limits=Limits(
            slo_ttft_ms=spec.slo_ttft_ms,
            slo_e2e_ms=spec.slo_e2e_ms,
            max_error_percent=spec.max_error_percent,
            timeout_s=spec.timeout_s,
            stall_s=spec.stall_s,
            max_lateness_p99_ms=lateness_limit_ms(spec),
        ),
        host=_host(meter, serves),
        engine=engine,
        times=Times(
            started_at=started_at,
            ended_at=_now_iso(),
            planned_s=spec.duration_s,
            measured_s=round(measured_s, 3) if session is not None else 0.0,
            warmup_s=spec.warmup_s,
            drain_s=round(max(0.0, columns.last_end() - measured_s), 3),
        ),
        requests=requests,
        rates=rates,
        latency=latency,
        lateness=lateness,
        errors=errors,
        saturation=saturation,
        energy=energy,
        cross_check=cross,
        warmup=columns.warmup(),
        client=ClientFacts(
            version=VERSION,
            processes=processes,
            event_loop=type(asyncio.get_running_loop()).__module__,
            connections=counters.connections,
            cpu_s=round(cpu_s, 3),
            cpu_us_per_request=round(cpu_s / counters.sent * 1e6, 1) if counters.sent else None,
            max_rss_mib=round(rss, 1),
            seed=spec.seed,
        ),
        series=columns.series([(at - start, watts) for at, watts in meter.samples]),
        samples=columns.samples(),
    )


def _host(meter: EnergyMeter, serves: bool) -> HostFacts:
    return HostFacts(
        hostname=platform.node(),
        kernel=platform.release(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1),
        gpus=meter.gpus,
        gpu_driver=meter.driver,
        serves_the_target=serves,
    )


def _now_iso() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def read_result(path: Path) -> LoadTestResult:
    """Read a load_test.json. Raises ValueError naming the file when it is not one of this version."""
    try:
        return LoadTestResult.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is not a load test result of this version: {error}") from error
