"""Turn what a run left behind into its result: workload, figures, verdict and the facts of host, engine and client."""

import asyncio
import datetime
import hashlib
import os
import platform
from dataclasses import dataclass
from typing import Literal

from gpu_actions.loadtest.cross_check import EngineCounters, cross_check
from gpu_actions.loadtest.energy import EnergyMeter
from gpu_actions.loadtest.figures import Figures, lateness_limit_ms
from gpu_actions.loadtest.preflight import Preflight
from gpu_actions.loadtest.result import (
    ClientFacts,
    CrossCheck,
    EngineFacts,
    HostFacts,
    Limits,
    LoadTestResult,
    RunVerdict,
    Times,
    Workload,
)
from gpu_actions.loadtest.schedule import Schedule
from gpu_actions.loadtest.session import Session
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.verdict import judge

VERSION = "0.1.0"


@dataclass(frozen=True, slots=True)
class Early:
    """Why and when (seconds of the measured part) the sending ended before the schedule did. `reason` is None if it did not."""

    reason: str | None = None
    at_s: float | None = None
    by_service: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """What was read of the service: the preflight, and the engine's counters before and after the load."""

    preflight: Preflight
    before: EngineCounters
    after: EngineCounters


def now_iso() -> str:
    """Return the time as ISO 8601 in UTC, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def workload_of(spec: LoadSpec, schedule: Schedule, unit: Literal["bytes", "words", "auto"]) -> Workload:
    """Return the workload of a spec, fingerprint included."""
    shared = spec.model_dump(
        include=set(Workload.model_fields) - {"prompt_unit", "burst_size", "ramp_from_qps"}
    )
    workload = Workload(
        **shared,
        prompt_unit=unit,
        burst_size=spec.burst_size if spec.arrival == "burst" else None,
        ramp_from_qps=spec.ramp_from_qps if spec.arrival == "ramp" else None,
        trace_sha256=schedule.trace_sha256,
    )
    # A field that is newer than the first baselines counts only where it is set: their fingerprints stay valid.
    newer = ("min_new_tokens", "prompt_lengths", "answer_lengths")
    left_out = {"fingerprint"} | {name for name in newer if getattr(workload, name) in (None, ())}
    digest = hashlib.sha256(workload.model_dump_json(exclude=left_out).encode()).hexdigest()[:12]
    return workload.model_copy(update={"fingerprint": digest})


def assemble(
    spec: LoadSpec,
    schedule: Schedule,
    session: Session,
    *,
    meter: EnergyMeter,
    started_at: str,
    start: float,
    measured_s: float,
    early: Early,
    serves: bool,
    checked: Checked | None,
) -> LoadTestResult:
    """Compute the result of a finished session. `checked` is None when the service was down and nothing was sent."""
    counters = session.counters
    figures = Figures(spec, schedule, session.records, measured_s)
    requests, rates, latency = figures.requests(counters), figures.rates(), figures.latency(session.gaps)
    lateness, saturation, errors = figures.lateness(), figures.saturation(), figures.errors(counters)
    if checked is None:
        unit, engine = spec.prompt_unit, EngineFacts(url=spec.url)
        cross = CrossCheck(
            agrees=None, client_requests_ok=0, client_output_tokens=0, summary="not checked: nothing was sent"
        )
    else:
        unit = checked.preflight.unit
        engine = checked.preflight.engine.model_copy(update={"kind": checked.after.kind})
        cross = cross_check(
            checked.before,
            checked.after,
            ok=counters.ok + 1,  # the probe
            tokens=figures.ok_tokens_with_warmup + checked.preflight.probe_tokens,
            unaccounted_tokens=(counters.sent - counters.ok) * max(schedule.new_tokens, default=0),
        )
    verdict, reasons, warnings = judge(
        spec=spec, requests=requests, latency=latency, lateness=lateness, saturation=saturation, errors=errors, cross=cross,
        partial_reason=early.reason, ended_by_service=early.by_service,
    )  # fmt: skip
    if checked is None:
        verdict, reasons, warnings = RunVerdict.FAILED, (early.reason or "",), ()
    return LoadTestResult(
        name=spec.name,
        verdict=verdict,
        reasons=reasons,
        warnings=(*(checked.preflight.warnings if checked else ()), *warnings),
        partial=early.reason is not None,
        partial_reason=early.reason,
        workload=workload_of(spec, schedule, unit),
        limits=Limits(
            slo_ttft_ms=spec.slo_ttft_ms,
            slo_e2e_ms=spec.slo_e2e_ms,
            slo_itl_ms=spec.slo_itl_ms,
            slo_e2e_per_token_ms=spec.slo_e2e_per_token_ms,
            max_error_percent=spec.max_error_percent,
            timeout_s=spec.timeout_s,
            stall_s=spec.stall_s,
            max_lateness_p99_ms=lateness_limit_ms(spec),
        ),
        host=HostFacts(
            hostname=platform.node(),
            kernel=platform.release(),
            cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1),
            gpus=meter.gpus,
            gpu_driver=meter.driver,
            serves_the_target=serves,
        ),
        engine=engine,
        times=Times(
            started_at=started_at,
            ended_at=now_iso(),
            planned_s=spec.duration_s,
            measured_s=0.0 if checked is None else round(measured_s, 3),
            warmup_s=spec.warmup_s,
            drain_s=round(max(0.0, figures.last_end() - measured_s), 3),
        ),
        requests=requests,
        rates=rates,
        latency=latency,
        lateness=lateness,
        errors=errors,
        saturation=saturation,
        energy=meter.over(
            start,
            start + measured_s,
            output_tokens=round(rates.output_tokens_per_s * measured_s),
            price_usd_per_kwh=spec.price_usd_per_kwh,
        ),
        cross_check=cross,
        warmup=figures.warmup(),
        client=ClientFacts(
            version=VERSION,
            processes=0 if checked is None else session.processes,
            event_loop=type(asyncio.get_running_loop()).__module__,
            connections=counters.connections,
            cpu_s=round(session.cpu_s, 3),
            cpu_us_per_request=round(session.cpu_s / counters.sent * 1e6, 1) if counters.sent else None,
            max_rss_mib=round(session.max_rss_mib, 1),
            seed=spec.seed,
            nonce=spec.nonce,
        ),
        series=figures.series([(at - start, watts) for at, watts in meter.samples]),
        samples=figures.samples(),
    )
