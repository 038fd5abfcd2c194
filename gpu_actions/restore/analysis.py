"""How one stage of the shift is judged: pure, from what was observed since the stage began.

As in Argo Rollouts and Flagger, a failed stage moves the traffic back and an inconclusive one waits for a person. What could
not be measured is named and never read as good.

Rates are judged by the sequential tests of `sequential`, so reading a stage every half second convicts no healthy tier: over
all stages and tests together the probability of stepping back from a tier within its limits is at most 1 %. `ERROR_ALPHA` and
`LATENCY_ALPHA` are that budget; three quarters of each belong to the first stage, where a fault harms the fewest requests.
docs/restore.md shows the operating characteristic.
"""

from collections.abc import Sequence
from enum import StrEnum

from pydantic import Field

from gpu_actions.config.policies import RestorePolicy
from gpu_actions.models import Frozen
from gpu_actions.restore.compared import Compared
from gpu_actions.restore.sequential import Counts, boundary, exceeds, upper_bound

ERROR_ALPHA = 0.0060
LATENCY_ALPHA = 0.00025
"""Of each of sixteen bounds: two for limits of the settings (time to the first token, end-to-end time), and two for each
comparison, one of them for the reference's own share: failed requests, refused ones (4xx) and five measures of `compared`."""

FIRST_STAGE_SHARE = 0.75
SUSPICION_ALPHA = 0.05
"""A stage with a rate above its limit at this significance level does not pass: it is inconclusive and waits for more."""

SLOW_SHARE = 0.01
"""A limit on the 99th percentile allows this share of requests above it."""

CONTROL_MARGIN = 1.5
"""The returning tier may refuse, or fail, this many times the share that the fallback does: bad requests fail on both."""

LEAST_FAILED_SHARE = 0.001
"""A fallback without a failure is taken for one that fails this share, so a single failure convicts nobody."""


class Window(Frozen):
    """What was observed of the tier since the stage began. None = it could not be measured, and is named in `missing`."""

    percent: int
    seconds: float = Field(ge=0)
    requests: int = Field(ge=0, description="sessions that the router sent to the tier")
    carried: int = Field(
        default=0, ge=0, description="answers of the stages before that were open when this one began"
    )
    errors: int = Field(
        default=0,
        ge=0,
        description="5xx answers, answers that broke off, error events, streams without an end, empty answers, failed probes",
    )
    refused: int = Field(default=0, ge=0, description="4xx answers")
    control: Counts = Field(
        default=Counts(), description="4xx answers among the fallback's requests since the first stage"
    )
    control_failed: Counts = Field(default=Counts(), description="errors among the same requests")
    slow_ttft: Counts | None = Field(default=None, description="first tokens later than the limit")
    slow_e2e: Counts | None = Field(default=None, description="requests longer than the limit")
    compared: tuple[Compared, ...] = Field(
        default=(), description="with the fallback now and with tp before the incident, under live traffic"
    )
    probes: int = Field(default=0, ge=0, description="of the requests, those that the bot sent itself")
    looked_into: int | None = Field(
        default=None,
        description="answers whose content was read, if the router reads none: those of the probes",
    )
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
    """Judge a stage. Faults of the host fail it at once, rates as soon as a sequential test convicts them.

    It passes with enough requests, everything measured, and nothing suspicious. `min_requests` replaces the policy's (0 where
    only faults matter).
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
    rates = _rates(window, policy)
    reasons += [rate.reason for rate in rates if exceeds(rate.counts, rate.limit, rate.alpha)]
    if reasons:
        return Judged(verdict=StageVerdict.FAILED, reasons=tuple(reasons))
    if enough == 0:
        nothing = ("no request came, no fault was seen",) if window.requests == 0 else ()
        return Judged(verdict=StageVerdict.PASSED, reasons=nothing)
    doubts = [rate.reason for rate in rates if _is_suspicious(rate)]
    if window.requests < enough:
        doubts.append(f"{window.requests} requests are too few to judge, {enough} are needed")
    if window.looked_into is not None and window.looked_into < enough:
        doubts.append(
            f"the router looks into no answer, and {window.looked_into} probes are too few to judge"
        )
    if window.missing:
        doubts.append(f"not measured: {', '.join(window.missing)}")
    if doubts:
        return Judged(verdict=StageVerdict.INCONCLUSIVE, reasons=tuple(doubts))
    return Judged(verdict=StageVerdict.PASSED)


class _Rate(Frozen):
    """One tested proportion: counts, allowed share, significance level of this stage's test, and the reason to report."""

    counts: Counts
    limit: float
    alpha: float
    reason: str
    doubt_limit: float | None = None
    """The limit above which a stage does not pass, where it is lower than the one that convicts."""


def _is_suspicious(rate: _Rate) -> bool:
    counts = rate.counts
    limit = rate.limit if rate.doubt_limit is None else rate.doubt_limit
    return counts.total > 0 and counts.bad >= boundary(counts.total, limit, SUSPICION_ALPHA)


def _rates(window: Window, policy: RestorePolicy) -> list[_Rate]:
    share = _stage_share(window.percent, policy)
    # An answer that a stage before began may break off in this one.
    failed = Counts(bad=window.errors, total=window.requests + window.carried)
    refused = Counts(bad=window.refused, total=window.requests)
    allowed = policy.max_error_percent / 100
    usual = CONTROL_MARGIN * upper_bound(window.control, LATENCY_ALPHA * share)
    also_fail = CONTROL_MARGIN * max(
        LEAST_FAILED_SHARE, upper_bound(window.control_failed, LATENCY_ALPHA * share)
    )
    rates = [
        _Rate(
            counts=failed,
            limit=allowed,
            alpha=ERROR_ALPHA * share,
            reason=f"{_of(failed, 'requests failed')}, the limit is {policy.max_error_percent:g} %",
        ),
        _Rate(
            counts=refused,
            limit=min(1.0, max(allowed, usual)),
            alpha=LATENCY_ALPHA * share,
            reason=f"{_of(refused, 'requests got 4xx')}, on the fallback {_of(window.control, 'requests')}",
            doubt_limit=None if window.control.total else allowed,
        ),
        _Rate(
            counts=failed,
            limit=min(1.0, also_fail),
            alpha=LATENCY_ALPHA * share,
            reason=f"{_of(failed, 'requests failed')}, on the fallback {_of(window.control_failed, 'requests')}",
        ),
    ]
    for name, slow, limit_ms, p99_ms in (
        ("TTFT", window.slow_ttft, policy.max_ttft_p99_ms, window.ttft_p99_ms),
        ("E2E", window.slow_e2e, policy.max_e2e_p99_ms, window.e2e_p99_ms),
    ):
        if slow is not None:
            p99 = "" if p99_ms is None else f"{name} p99 is {p99_ms:.0f} ms, "
            reason = f"{p99}{_of(slow, f'requests were over {limit_ms:g} ms')}, the limit is 1 %"
            rates.append(_Rate(counts=slow, limit=SLOW_SHARE, alpha=LATENCY_ALPHA * share, reason=reason))
    alpha = LATENCY_ALPHA * share
    rates += [
        _Rate(counts=one.canary, limit=one.limit(alpha), alpha=alpha, reason=one.reason)
        for one in window.compared
    ]
    return rates


def _stage_share(percent: int, policy: RestorePolicy) -> float:
    """Return this stage's share of each error budget. The period that keeps the fallback warm counts as a stage."""
    if percent == policy.stages_percent[0]:
        return FIRST_STAGE_SHARE
    return (1 - FIRST_STAGE_SHARE) / len(policy.stages_percent)


def _of(counts: Counts, noun: str) -> str:
    percent = f" ({100 * counts.bad / counts.total:.1f} %)" if counts.total else ""
    return f"{counts.bad} of {counts.total} {noun}{percent}"


def describe(window: Window) -> str:
    """Describe the window in one line for people."""
    own = f" ({window.probes} of them probes)" if window.probes else ""
    parts = [f"{window.requests} requests{own}", f"{window.errors} errors"]
    if window.ttft_p99_ms is not None:
        parts.append(f"TTFT p99 {window.ttft_p99_ms:.0f} ms")
    if window.e2e_p99_ms is not None:
        parts.append(f"E2E p99 {window.e2e_p99_ms:.0f} ms")
    parts.append(f"queue at most {window.queue_peak}")
    if against := sorted({one.against for one in window.compared}):
        parts.append(f"compared with {' and '.join(against)}")
    if window.application_xids:
        parts.append(f"application faults in the kernel log: {', '.join(window.application_xids[:3])}")
    if window.missing:
        parts.append(f"not measured: {', '.join(window.missing)}")
    return ", ".join(parts)


def weights_for(
    percent: int, *, tp_weight: int, fallback_weight: int, standby_weight: int = 0
) -> tuple[int, int]:
    """Return the router weights (tp, fallback) for `percent` of the requests on tp.

    At 100 tp has its full weight, and the fallback stands by for what a dying tp drops.
    """
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is not a percentage")
    if percent == 100:
        return tp_weight, standby_weight
    if percent == 0:
        return 0, fallback_weight
    scale = 2 if min(percent, 100 - percent) <= standby_weight else 1
    return scale * percent, scale * (100 - percent)


class Orders(Frozen):
    """What people requested of this run. `holding` is a pause until `next`; `go_on` is a `next` for the current stage."""

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
