"""The specification of a load test, validated before anything starts.

The defaults are the runbook's validation of the fallback (20 s at 3 QPS, 4 new tokens, prompts of 32-64 tokens). The
upper limits are those of one host with two dozen generator processes; an order of magnitude more is a typing error.
"""

import math
import secrets
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from gpu_actions.config.policies import LoadPolicy, token_range

Arrival = Literal["poisson", "constant", "burst", "ramp", "replay"]
PromptUnit = Literal["auto", "bytes", "words"]
Api = Literal["completions", "chat"]

MAX_REQUESTS = 5_000_000
"""Requests of one run. A row of the record takes 61 bytes, so this is 305 MB. Longer tests are split into runs."""
MAX_TOKENS_A_SECOND_PER_PROCESS = 16_000
MAX_REQUESTS_A_SECOND_PER_PROCESS = 800
"""The load of one generator process, with a margin below what `benchmarks/loadtest_clients.py` measured
(about 1,100 requests/s of 16 chunks on one core at p99 lateness under 5 ms, on a shared machine)."""
MAX_NONCE = 2**48 - 1
SWEEP_MARGIN_S = 1.0
"""Deadlines are checked every 0.1-0.5 s. A drain waits a little longer, so that a timeout is classed as one."""


class LoadSpec(LoadPolicy):
    """One load test. Times in seconds, prompt lengths in tokens (see `prompt_unit`), rates in requests a second."""

    model_config = ConfigDict(allow_inf_nan=False)

    url: str = Field(description="base URL of the service, without /v1")
    model: str = Field(min_length=1, description="model name to ask for")
    name: str = Field(
        default="load test", min_length=1, max_length=80, description="what people call this run"
    )
    api: Api = Field(default="completions", description="completions or chat")
    api_key: SecretStr | None = Field(default=None, description="sent as a bearer token; never stored")

    arrival: Arrival = Field(default="poisson", description="how due times are spread")
    burst_size: int = Field(
        default=10, ge=1, le=100_000, description="requests that are due together (burst)"
    )
    ramp_from_qps: float = Field(default=0, ge=0, le=100_000, description="rate at the start (ramp)")
    trace_file: Path | None = Field(
        default=None, description="recorded arrivals to replay: JSON lines or CSV (replay)"
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2**63 - 1,
        description="same seed, same schedule; a seed that is named sets nonce 0",
    )
    nonce: int | None = Field(
        default=None,
        ge=0,
        le=MAX_NONCE,
        description="same seed and nonce, same prompts; default: new in each run, so that no prefix cache helps",
    )
    warmup_s: float = Field(
        default=2, ge=0, le=3600, description="same load before the measured part, reported separately"
    )

    prompt_unit: PromptUnit = Field(
        default="auto",
        description="bytes: 1 ASCII byte a token; words: about 1 word a token; auto: detected by a probe",
    )
    ignore_eos: bool = Field(default=True, description="ask the engine to go on to max_new_tokens")
    require_usage: bool = Field(default=True, description="an answer without usage is an error")

    stall_s: float = Field(
        default=10, gt=0, le=3600, description="silence inside a stream that counts as a stall"
    )
    drain_s: float | None = Field(
        default=None, ge=0, description="wait for what is in flight at the end; default: timeout_s"
    )
    stop_when_saturated: bool = Field(default=False, description="end early once the queue only grows")
    max_in_flight: int = Field(
        default=20_000, ge=1, le=60_000, description="more than this ends the run: the service is swamped"
    )

    processes: int | None = Field(
        default=None, ge=1, le=24, description="generator processes; default: by the rate"
    )
    metrics_url: str | None = Field(
        default=None, description="the engine's Prometheus page; default: URL/metrics"
    )
    tls_ca: Path | None = Field(default=None, description="certificate authority file for https")
    tls_insecure: bool = Field(default=False, description="do not verify the certificate")
    gpu_uuids: tuple[str, ...] = Field(
        default=(), description="GPUs whose energy counts; default: all of this host"
    )
    measure_energy: bool = Field(default=True, description="measure the energy of this host's GPUs")
    price_usd_per_kwh: float = Field(default=0.16, ge=0)

    gpus: int | None = Field(default=None, ge=0, description="GPUs that serve, for the fingerprint")
    tensor_parallel: int | None = Field(
        default=None, ge=1, description="tensor-parallel size, for the fingerprint"
    )
    dtype: str | None = Field(default=None, description="data type of the weights, for the fingerprint")

    @field_validator("url", "metrics_url")
    @classmethod
    def _url_is_whole(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            port_is_fine = parts.port is None or parts.port > 0
        except ValueError as error:
            raise ValueError(f"is not a URL ({error}); write for example http://127.0.0.1:8000") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_fine:
            raise ValueError("must be http:// or https:// with a host, for example http://127.0.0.1:8000")
        if parts.username or parts.password:
            raise ValueError("must not contain a user or password; use the API key instead")
        trimmed = value.rstrip("/")
        return trimmed.removesuffix("/v1")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.arrival == "replay") != (self.trace_file is not None):
            raise ValueError(
                f"arrival = {self.arrival}, trace_file = {self.trace_file}: a replay needs a trace_file, "
                f"and nothing else takes one; set both or neither"
            )
        expected = self.target_qps * (self.duration_s + self.warmup_s)
        if self.arrival != "replay" and expected > MAX_REQUESTS:
            raise ValueError(
                f"target_qps = {self.target_qps:g}: makes {expected:,.0f} requests in {self.duration_s + self.warmup_s:g} s, "
                f"over the {MAX_REQUESTS:,} of one run; lower target_qps or duration_s"
            )
        if self.arrival != "replay" and self.target_qps * self.duration_s < 1:
            raise ValueError(
                f"target_qps = {self.target_qps:g}: makes no request in {self.duration_s:g} s; "
                f"raise target_qps or duration_s so that their product is at least 1"
            )
        return self

    @property
    def process_count(self) -> int:
        """Generator processes: as requested, else by requests and tokens a second (see the constants above)."""
        if self.processes is not None:
            return self.processes
        by_requests = self.target_qps / MAX_REQUESTS_A_SECOND_PER_PROCESS
        by_tokens = self.target_qps * self.max_new_tokens / MAX_TOKENS_A_SECOND_PER_PROCESS
        return min(24, max(1, math.ceil(max(by_requests, by_tokens))))

    @property
    def new_tokens_text(self) -> str:
        """The number of new tokens, or its range."""
        return token_range(self.min_new_tokens, self.max_new_tokens)

    @property
    def drain_limit_s(self) -> float:
        """Seconds to wait at the end for what is in flight."""
        return self.timeout_s + SWEEP_MARGIN_S if self.drain_s is None else self.drain_s

    def with_nonce(self) -> "LoadSpec":
        """Return the spec with a nonce: its own, or a new one. Raw prompts of two runs then have nothing in common."""
        return (
            self
            if self.nonce is not None
            else self.model_copy(update={"nonce": secrets.randbelow(MAX_NONCE) + 1})
        )

    def dump_with_key(self) -> dict[str, Any]:
        """Return the spec as JSON data with its API key in clear text, for the standard input of a child."""
        key = self.api_key.get_secret_value() if self.api_key else None
        return {**self.model_dump(mode="json", exclude={"api_key"}), "api_key": key}


_FIXES = {
    "target_qps": "use a rate above 0 and up to 100,000, for example --target-qps 3",
    "duration_s": "use seconds above 0 and up to 86,400, for example --duration 20",
    "max_new_tokens": "use 1 or more, or a range, for example --max-new-tokens 4 or 16-64",
    "prompt_len_min": "use 1 or more, for example --prompt-len-min 32",
    "prompt_len_max": "use 1 or more, for example --prompt-len-max 64",
    "url": "use the service's base URL, for example --url http://127.0.0.1:8000",
    "model": "use the model's name as the engine lists it at /v1/models",
    "timeout_s": "use seconds above 0 and up to 3,600, for example --timeout-s 60",
}


def explain_invalid(error: ValidationError) -> list[str]:
    """Turn a validation error into lines that name the field, its value and the fix."""
    lines = []
    for problem in error.errors():
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            lines.append(message)  # a check of several fields names them itself
            continue
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            lines.append(f"{field} is missing; {_FIXES.get(field, 'set it')}")
            continue
        fix = _FIXES.get(field)
        lines.append(
            f"{field} = {problem['input']!r}: {message[:1].lower()}{message[1:]}"
            + (f"; {fix}" if fix else "")
        )
    return lines
