"""The result of a knee search as data: the highest rate that holds the limits, and every trial behind it."""

from pathlib import Path

from pydantic import Field

from gpu_actions.config.policies import limits_text
from gpu_actions.loadtest.result import EXIT_CODES, EngineFacts, HostFacts, RunVerdict, Workload
from gpu_actions.models import Frozen
from gpu_actions.system.redact import redact

KNEE_JSON, KNEE_PNG = "knee.json", "knee.png"
BUDGET_RANGE_S = (20.0, 600.0)
BUDGET_S = 75.0
"""Default duration of a search, in seconds."""


class KneeTrial(Frozen):
    """One rate that was tried. `held` is True if it met every limit."""

    rate_qps: float
    is_full: bool = Field(description="False: a short trial of the first phase, which only brackets the knee")
    started_s: float = Field(description="seconds after the start of the search")
    window_s: float = Field(description="measured part; shorter than planned if the trial was ended early")
    ended_early: bool
    held: bool
    reason: str = Field(default="", description="why it did not hold")
    is_void: bool = Field(default=False, description="the client was the bottleneck")
    sent: int
    ok: int
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    e2e_p50_ms: float | None
    e2e_p99_ms: float | None
    completed_qps: float | None = Field(description="requests that the service completed a second")
    output_tokens_per_s: float


class KneeResult(Frozen):
    """A finished knee search. The knee is between `knee_qps` (held) and `broke_at_qps` (did not hold)."""

    knee_version: int = 1
    name: str
    verdict: RunVerdict = Field(
        description="passed: a knee was found; failed: no rate holds; void: inconclusive"
    )
    reasons: tuple[str, ...] = ()
    knee_qps: float | None = Field(
        description="highest rate that holds the limits; never above what the overloaded service completes"
    )
    held_qps: float | None = Field(
        default=None, description="highest rate that held them in a full trial of some seconds"
    )
    broke_at_qps: float | None = Field(description="lowest rate that did not hold; null: none up to the cap")
    capacity_qps: float | None = Field(description="requests a second completed when too many were offered")
    reached_cap: bool = Field(
        default=False, description="the highest rate allowed held: the knee is above it"
    )
    slo_ttft_ms: float
    slo_e2e_ms: float
    slo_itl_ms: float | None = None
    slo_e2e_per_token_ms: float | None = None
    max_error_percent: float
    started_at: str
    seconds: float
    budget_s: float
    max_qps: float
    workload: Workload = Field(description="of the last trial; its rate differs from trial to trial")
    host: HostFacts
    engine: EngineFacts
    trials: tuple[KneeTrial, ...]

    @property
    def exit_code(self) -> int:
        """The shell's exit code."""
        return EXIT_CODES[self.verdict]

    @property
    def knee_trial(self) -> KneeTrial | None:
        """The full trial that held at the highest rate."""
        held = [one for one in self.trials if one.held and one.is_full and one.rate_qps == self.held_qps]
        return held[-1] if held else None


class KneeProgress(Frozen):
    """Progress of a search: how much of its time is used (0..1), and one line."""

    fraction: float
    text: str


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:,.0f} ms"


def knee_lines(result: KneeResult) -> tuple[str, ...]:
    """Return the result in four lines: the knee, the load at it, the way there, and the reasons."""
    limits = limits_text(result)
    if result.knee_qps is None:
        first = f"{result.verdict.value.upper()}: {result.name}, no rate is known to hold {limits}"
    else:
        sign = "at least " if result.reached_cap else ""
        first = f"{result.verdict.value.upper()}: {result.name}, knee at {sign}{result.knee_qps:.3g} requests/s ({limits})"
    lines = [first]
    if at := result.knee_trial:
        lines.append(
            f"at {at.rate_qps:.3g} requests/s: TTFT p50 {_ms(at.ttft_p50_ms)}, p99 {_ms(at.ttft_p99_ms)}; "
            f"E2E p99 {_ms(at.e2e_p99_ms)}; {at.output_tokens_per_s:,.0f} output tokens/s; {at.ok} of {at.sent} requests served"
        )
    broke = (
        f"{result.max_qps:g} requests/s was the highest rate allowed"
        if result.broke_at_qps is None
        else f"{result.broke_at_qps:.3g} requests/s did not hold"
    )
    capacity = (
        ""
        if result.capacity_qps is None
        else f"; overloaded it completes {result.capacity_qps:.3g} requests/s"
    )
    lines.append(f"{broke}{capacity}; {len(result.trials)} trials in {result.seconds:.0f} s")
    lines.extend(result.reasons)
    return tuple(lines)


def knee_chart(result: KneeResult) -> dict[str, object] | None:
    """Return the tail latency by offered rate as data for a chart; None with fewer than two rates."""
    known = {f"{t.rate_qps:.3g}": t.ttft_p99_ms for t in sorted(result.trials, key=lambda t: t.rate_qps)}
    points = [(rate, round(ms)) for rate, ms in known.items() if ms is not None][-20:]
    if len(points) < 2:
        return None
    return {
        "kind": "line",
        "title": "TTFT p99 by offered load",
        "x_label": "requests/s",
        "y_label": "ms",
        "categories": [rate for rate, _ in points],
        "series": {"TTFT p99": [ms for _, ms in points]},
    }


def knee_text(result: KneeResult) -> str:
    """Return the lines as text, without secrets: texts of engines end in it."""
    return redact("\n".join(line.replace("\n", " ") for line in knee_lines(result)) + "\n").text


def read_knee(path: Path) -> KneeResult:
    """Read a knee.json. Raises ValueError naming the file."""
    try:
        return KneeResult.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is not the result of a knee search: {error}") from error
