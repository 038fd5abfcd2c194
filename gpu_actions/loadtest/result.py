"""The result of a load test as data: versioned, with everything a reader needs to judge its worth.

Latencies are milliseconds from the DUE time unless the name says `from_send`. A figure that does not exist is null, never 0.
"""

import json
from enum import StrEnum
from pathlib import Path

from pydantic import Field

from gpu_actions.models import Frozen

SCHEMA_VERSION = 1


class RunVerdict(StrEnum):
    """passed: within the limits; failed: not; void: the figures say nothing about the service."""

    PASSED = "passed"
    FAILED = "failed"
    VOID = "void"


EXIT_CODES: dict[RunVerdict, int] = {RunVerdict.PASSED: 0, RunVerdict.FAILED: 1, RunVerdict.VOID: 3}


class Workload(Frozen):
    """The offered load. `fingerprint` covers every other field; runs are compared only when all fields agree."""

    model: str
    api: str
    arrival: str
    target_qps: float
    max_new_tokens: int
    min_new_tokens: int | None = Field(default=None, description="null: every answer has max_new_tokens")
    prompt_len_min: int
    prompt_len_max: int
    prompt_lengths: tuple[int, ...] = Field(default=(), description="drawn equally often; empty: the range")
    answer_lengths: tuple[int, ...] = Field(default=(), description="drawn equally often; empty: the range")
    prompt_unit: str = Field(description="bytes: exact for byte tokenizers; words: about one token each")
    ignore_eos: bool
    burst_size: int | None = None
    ramp_from_qps: float | None = None
    trace_sha256: str | None = None
    gpus: int | None = None
    tensor_parallel: int | None = None
    dtype: str | None = None
    fingerprint: str = ""


class Limits(Frozen):
    """The limits of the verdict."""

    slo_ttft_ms: float
    slo_e2e_ms: float
    slo_itl_ms: float | None = None
    slo_e2e_per_token_ms: float | None = Field(
        default=None, description="where set, slo_e2e_ms is not judged"
    )
    max_error_percent: float
    timeout_s: float
    stall_s: float
    max_lateness_p99_ms: float


class GpuFacts(Frozen):
    """One GPU of the host that ran the generator."""

    uuid: str
    name: str
    memory_mib: int


class HostFacts(Frozen):
    """The machine that ran the generator. It is the serving host if `serves_the_target`."""

    hostname: str
    kernel: str
    cpus: int
    gpus: tuple[GpuFacts, ...] = ()
    gpu_driver: str | None = None
    serves_the_target: bool


class EngineFacts(Frozen):
    """What the service reports about itself."""

    url: str
    server_header: str | None = None
    kind: str | None = Field(default=None, description="the engine that exports these metric names")
    version: str | None = None
    models: tuple[str, ...] = ()
    max_model_len: int | None = None


class Times(Frozen):
    """When the test ran (ISO 8601, UTC) and for how long, in seconds."""

    started_at: str
    ended_at: str
    planned_s: float
    measured_s: float
    warmup_s: float
    drain_s: float


class Requests(Frozen):
    """Requests of the measured part. failed includes unfinished; unsent ones were due after the run had been ended."""

    scheduled: int
    sent: int
    ok: int
    good: int = Field(description="ok and within both SLOs")
    failed: int
    unfinished: int
    unsent: int
    retried_on_stale_connection: int


class Rates(Frozen):
    """Requests and tokens a second over the measured part. achieved: requests answered in full inside it."""

    target_qps: float
    offered_qps: float
    achieved_qps: float
    goodput_qps: float
    goodput_percent: float | None
    output_tokens_per_s: float
    total_tokens_per_s: float
    output_tokens: int
    prompt_tokens: int
    mean_prompt_tokens: float | None = None


class Percentile(Frozen):
    """A percentile with its uncertainty from the sample size.

    low_ms..high_ms is the exact 95 % interval from order statistics (null where the sample is too small for that end).
    confidence_percent is the chance that the sample reaches the true percentile at all: 1 - p^n (99 %: 299 samples for 95).
    at_least: the request at this rank had not ended; the value is a lower bound.
    """

    value_ms: float | None
    low_ms: float | None = None
    high_ms: float | None = None
    confidence_percent: float | None = None
    at_least: bool = False


class Distribution(Frozen):
    """A latency of `count` requests (or gaps). `censored` of them had not ended and count as longer than all others."""

    count: int
    censored: int = 0
    mean_ms: float | None = None
    p50: Percentile
    p90: Percentile
    p95: Percentile
    p99: Percentile
    max_ms: float | None = None


class Latency(Frozen):
    """ttft, e2e: from the due time. itl: gaps between chunks with text. tpot: (last - first token) / (tokens - 1).
    e2e_per_token: e2e / tokens; null in results of older versions."""

    ttft: Distribution
    e2e: Distribution
    itl: Distribution
    tpot: Distribution
    e2e_per_token: Distribution | None = None
    ttft_from_send: Distribution
    e2e_from_send: Distribution


class Lateness(Frozen):
    """How late the client itself was, in milliseconds after the due time. Above the limit the run is void."""

    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    limit_ms: float
    over: bool


class ErrorClass(Frozen):
    """One class of failure in the measured part, with its first example."""

    name: str
    meaning: str
    count: int
    percent: float
    first_at_s: float | None = None
    example: str = ""


class SeriesPoint(Frozen):
    """One step of time. Rates are per second; latencies belong to the requests DUE in the step."""

    at_s: float
    offered_qps: float
    done_qps: float
    error_qps: float
    in_flight: int
    tokens_per_s: float
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    e2e_p50_ms: float | None = None
    e2e_p99_ms: float | None = None
    power_watts: float | None = None


class Saturation(Frozen):
    """Whether more was offered than the service can take: its queue grew, or it turned requests away."""

    over_saturated: bool
    backlog_growth_qps: float | None = Field(
        description="rise of requests in flight a second, by least squares"
    )
    sustained_qps: float | None = Field(description="the rate it completes when over-saturated")
    shed_percent: float
    summary: str


class Energy(Frozen):
    """Energy of the GPUs over the measured part. `missing` is the reason for null figures."""

    joules: float | None = None
    mean_watts: float | None = None
    max_watts: float | None = None
    gpus: int = 0
    method: str | None = Field(default=None, description="energy counter, or integrated power samples")
    joules_per_output_token: float | None = None
    tokens_per_joule: float | None = None
    usd_per_million_output_tokens: float | None = Field(
        default=None, description="electricity of the GPUs only"
    )
    price_usd_per_kwh: float = 0.16
    missing: str | None = None


class CrossCheck(Frozen):
    """The client's counts (warm-up and probe included) beside the rise of the engine's own counters."""

    agrees: bool | None = Field(description="null when the engine's counters could not be read")
    client_requests_ok: int
    client_output_tokens: int
    engine_requests: float | None = None
    engine_output_tokens: float | None = None
    summary: str


class Warmup(Frozen):
    """The part before the measured one."""

    requests: int
    ok: int
    ttft_p50_ms: float | None = None
    ttft_max_ms: float | None = None


class ClientFacts(Frozen):
    """Resources that the generator itself used."""

    tool: str = "gpu-oncall loadtest"
    version: str
    processes: int
    event_loop: str
    connections: int
    cpu_s: float
    cpu_us_per_request: float | None
    max_rss_mib: float
    seed: int
    nonce: int | None = Field(
        default=None,
        description="with the seed, it determines the prompts of this run; null in results of older versions",
    )


class Samples(Frozen):
    """Sorted latencies of the ok requests: all of them up to 2,000, else 2,000 evenly spaced order statistics."""

    ttft_ms: tuple[float, ...] = ()
    e2e_ms: tuple[float, ...] = ()
    tpot_ms: tuple[float, ...] = ()


class LoadTestResult(Frozen):
    """A finished, stopped or failed load test. `partial`: it did not send its whole schedule."""

    schema_version: int = SCHEMA_VERSION
    name: str
    verdict: RunVerdict
    reasons: tuple[str, ...] = Field(description="why it failed or is void; empty when passed")
    warnings: tuple[str, ...] = ()
    partial: bool = False
    partial_reason: str | None = None
    workload: Workload
    limits: Limits
    host: HostFacts
    engine: EngineFacts
    times: Times
    requests: Requests
    rates: Rates
    latency: Latency
    lateness: Lateness
    errors: tuple[ErrorClass, ...] = ()
    saturation: Saturation
    energy: Energy
    cross_check: CrossCheck
    warmup: Warmup
    client: ClientFacts
    series: tuple[SeriesPoint, ...] = ()
    samples: Samples = Samples()

    @property
    def error_percent(self) -> float:
        """Failed requests in percent of those sent; 100 when nothing could be sent."""
        return 100.0 * self.requests.failed / self.requests.sent if self.requests.sent else 100.0

    @property
    def exit_code(self) -> int:
        """The shell's exit code."""
        return EXIT_CODES[self.verdict]


class LoadProgress(Frozen):
    """Progress of a run, about once a second. elapsed_s counts from the start of the measured part (negative: warm-up)."""

    elapsed_s: float
    duration_s: float
    sent: int
    done: int
    errors: int
    in_flight: int
    achieved_qps: float
    ttft_p50_ms: float | None = None
    ttft_p99_ms: float | None = None
    late: int = Field(default=0, description="served requests of the measured part over the TTFT limit")

    @property
    def fraction(self) -> float:
        """How much of the measured part is over, 0..1."""
        return min(1.0, max(0.0, self.elapsed_s / self.duration_s))

    @property
    def text(self) -> str:
        """The progress in one line."""
        phase = f"{min(self.elapsed_s, self.duration_s):.0f} of {self.duration_s:g} s"
        p99 = "" if self.ttft_p99_ms is None else f", TTFT p99 {self.ttft_p99_ms:.0f} ms"
        return (
            f"{'warming up' if self.elapsed_s < 0 else phase}: sent {self.sent}, ok {self.done}, "
            f"errors {self.errors}, in flight {self.in_flight}{p99}"
        )


def read_result(path: Path) -> LoadTestResult:
    """Read a load_test.json. Raises ValueError naming the file when it is not one of this version."""
    try:
        return LoadTestResult.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is not a load test result of this version: {error}") from error


def schema_text() -> str:
    """Return the published JSON schema of load_test.json (JSON Schema 2020-12, keys in the model's order)."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": f"schema_version {SCHEMA_VERSION}; generated from gpu_actions/loadtest/result.py",
        **LoadTestResult.model_json_schema(mode="serialization"),
    }
    return json.dumps(schema, indent=1) + "\n"
