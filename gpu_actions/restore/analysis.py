"""How one stage of the shift is judged: pure, from what was observed since the stage began.

As in Argo Rollouts and Flagger, a failed stage moves the traffic back and an inconclusive one waits for a person. What could
not be measured is named and never read as good.
"""

from collections.abc import Sequence
from enum import StrEnum

from pydantic import Field

from gpu_actions.config.policies import RestorePolicy
from gpu_actions.models import Frozen


class Window(Frozen):
    """What was observed of the tier since the stage began. None = it could not be measured, and is named in `missing`."""

    percent: int
    seconds: float = Field(ge=0)
    requests: int = Field(ge=0, description="sessions that the router sent to the tier")
    errors: int = Field(default=0, ge=0, description="5xx answers that the router saw from it")
    ttft_p99_ms: float | None = None
    ttft_samples: int = 0
    e2e_p99_ms: float | None = None
    queue_peak: int = 0
    hung: bool = False
    died: str = Field(default="", description="how its process ended or was started again")
    xids: tuple[str, ...] = Field(default=(), description="new ones that concern the host")
    application_xids: tuple[str, ...] = Field(
        default=(), description="caused by a program; no reason to step back"
    )
    missing: tuple[str, ...] = ()

    @property
    def error_percent(self) -> float:
        return 100 * self.errors / self.requests if self.requests else 0.0


class StageVerdict(StrEnum):
    """The verdict on a stage."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


class Judged(Frozen):
    """A verdict with its reasons."""

    verdict: StageVerdict
    reasons: tuple[str, ...] = ()


def judge_stage(window: Window, policy: RestorePolicy, *, min_requests: int | None = None) -> Judged:
    """Judge a stage. Faults of the host fail it at once; error rates and percentiles count once there are enough requests.

    `min_requests` replaces the policy's (0 where only faults matter).
    """
    enough = policy.min_requests_per_stage if min_requests is None else min_requests
    reasons = []
    if window.died:
        reasons.append(f"its process {window.died}")
    if window.hung:
        reasons.append("it holds requests and its token counter does not move")
    if window.xids:
        reasons.append(f"new in the kernel log: {', '.join(window.xids[:3])}")
    if window.queue_peak > policy.max_queue:
        reasons.append(f"its queue reached {window.queue_peak}, the limit is {policy.max_queue}")
    few = window.requests < enough
    # So many errors that even a small stage cannot reach a passing rate any more.
    hopeless = window.errors > max(2.0, enough * policy.max_error_percent / 100)
    if window.error_percent > policy.max_error_percent and (not few or hopeless):
        reasons.append(
            f"{window.errors} of {window.requests} requests failed ({window.error_percent:.1f} %), "
            f"the limit is {policy.max_error_percent:g} %"
        )
    if not few:
        for name, value, limit in (
            ("TTFT p99", window.ttft_p99_ms, policy.max_ttft_p99_ms),
            ("E2E p99", window.e2e_p99_ms, policy.max_e2e_p99_ms),
        ):
            if value is not None and value > limit:
                reasons.append(f"{name} is {value:.0f} ms, the limit is {limit:g} ms")
    if reasons:
        return Judged(verdict=StageVerdict.FAILED, reasons=tuple(reasons))
    if few:
        reason = f"{window.requests} requests are too few to judge, {enough} are needed"
        return Judged(verdict=StageVerdict.INCONCLUSIVE, reasons=(reason,))
    if window.requests == 0 and enough == 0:
        return Judged(verdict=StageVerdict.PASSED, reasons=("no request came, no fault was seen",))
    return Judged(verdict=StageVerdict.PASSED)


def describe(window: Window) -> str:
    """Describe the window in one line for people."""
    parts = [f"{window.requests} requests", f"{window.errors} errors"]
    if window.ttft_p99_ms is not None:
        parts.append(f"TTFT p99 {window.ttft_p99_ms:.0f} ms")
    if window.e2e_p99_ms is not None:
        parts.append(f"E2E p99 {window.e2e_p99_ms:.0f} ms")
    parts.append(f"queue at most {window.queue_peak}")
    if window.application_xids:
        parts.append(f"application faults in the kernel log: {', '.join(window.application_xids[:3])}")
    if window.missing:
        parts.append(f"not measured: {', '.join(window.missing)}")
    return ", ".join(parts)


def weights_for(percent: int, *, tp_weight: int, fallback_weight: int) -> tuple[int, int]:
    """Return the router weights (tp, fallback) for `percent` of the requests on tp. At 100 tp has its full weight."""
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is not a percentage")
    if percent == 100:
        return tp_weight, 0
    if percent == 0:
        return 0, fallback_weight
    return percent, 100 - percent


class Orders(Frozen):
    """What people asked of this run. `holding` is a pause until `next`; `go_on` is a `next` for the current stage."""

    seen: int = 0
    holding: bool = False
    go_on: bool = False
    abort: bool = False


def take_orders(orders: Orders, signals: Sequence[str]) -> Orders:
    """Take the signals beyond those seen. `signals` are all of the run, oldest first."""
    new = orders.model_dump()
    for signal in signals[orders.seen :]:
        if signal == "hold":
            new |= {"holding": True, "go_on": False}
        elif signal == "next":
            new |= {"holding": False, "go_on": True}
        elif signal in ("abort", "stop"):
            new["abort"] = True
    new["seen"] = max(orders.seen, len(signals))
    return Orders.model_validate(new)


class Then(StrEnum):
    """What a stage does next."""

    WAIT = "wait"
    PASS = "pass"  # noqa: S105
    STEP_BACK = "step_back"


PRESS = "press next to continue, abort to move the traffic back"


def decide_stage(
    judged: Judged, orders: Orders, *, elapsed_s: float, hold_s: float, inconclusive_wait_s: float
) -> tuple[Then, str]:
    """Return what to do next and why, from the analysis, the people and the clock.

    A fault or an abort steps back at once. `next` ends the observation period early and decides an inconclusive stage.
    """
    why = "; ".join(judged.reasons)
    if judged.verdict is StageVerdict.FAILED:
        return Then.STEP_BACK, why
    if orders.abort:
        return Then.STEP_BACK, "a person pressed abort"
    if orders.go_on:
        return Then.PASS, "a person pressed next"
    if elapsed_s < hold_s:
        return Then.WAIT, f"observing, {elapsed_s:.0f} of {hold_s:g} s"
    if orders.holding:
        return Then.WAIT, f"paused by a person: {PRESS}"
    if judged.verdict is StageVerdict.PASSED:
        return Then.PASS, ""
    if elapsed_s >= hold_s + inconclusive_wait_s:
        return Then.STEP_BACK, f"{why}, and nobody decided within {inconclusive_wait_s:g} s"
    return Then.WAIT, f"{why}: {PRESS}"
