"""What a monitor concludes from a series of verdicts: confirm, keep, stay quiet, make one incident of a burst. Pure.

A monitor passes each verdict (or None if its check failed) to `MonitorState.observe` and acts on the signals that come back.
Time is a number of seconds from the caller; nothing here reads a clock.
"""

from collections.abc import Mapping
from functools import cache
from typing import Literal

from pydantic import AliasChoices, Field

from gpu_actions.models import Frozen, Verdict, VerdictKind
from gpu_actions.triage.registry import RULES
from gpu_actions.triage.rule import CAUSES, rank_of_verdict

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "links": ("nvlink_loss", "nvlink_partial", "nvlink_errors", "fabric_manager_down", "pcie_only"),
    "gpu": (
        "gpu_lost",
        "gpu_reset_required",
        "ecc_uncorrected",
        "row_remap_failed",
        "row_remap_pending",
        "driver_hang",
    ),
    "serving": (
        "engine_paused",
        "nccl_hang",
        "crash_loop",
        "engine_crashed",
        "engine_down",
        "engine_stalled",
        "engine_errors",
        "gpu_hogged",
        "serving_regression",
        "router_down",
    ),
    "heat": ("thermal", "throttling"),
}
"""Causes that one fault produces together; any other cause is a family of its own."""

HANG_RULE = "collective.hang"
PREFILL_RULE = "serving.prefill"
STALL_RULES = frozenset(
    {
        "serving.stalled",
        "serving.stalled_long",
        "serving.wedged",
        "serving.flat",
        "collective.unread",
        HANG_RULE,
    }
)


class MonitorPolicy(Frozen):
    """How certain a monitor must be. By default 2 of 3 verdicts alert, and 3 healthy ones in a row clear."""

    needed: int = Field(default=2, ge=1, le=100, description="verdicts that must agree (N of M)")
    of: int = Field(default=3, ge=1, le=100, description="last verdicts that count (M)")
    clear_after: int = Field(
        default=3, ge=1, le=100, description="verdicts in a row without a cause that clear it"
    )
    prefill_s: float = Field(
        default=180, gt=0, description="a prefill that lasts this long counts as a stall from then on"
    )
    stalled_s: float = Field(default=30, gt=0, description="a stall that lasts this long means fall_back")
    hold_s: float = Field(
        default=60, gt=0, description="how long the last state counts while no check succeeds"
    )
    burst_s: float = Field(default=300, ge=0, description="a new cause within this time joins the open alert")
    quiet_s: float = Field(default=3600, ge=0, description="how long an acknowledged cause stays quiet")


class Signal(Frozen):
    """What the monitor must do: open an incident, add to it, say that a part of it is over, clear it, or report that its checks
    fail (or succeed again)."""

    kind: Literal["open", "join", "ease", "clear", "blind", "sighted"]
    key: str
    cause: str = "none"
    verdict: VerdictKind = VerdictKind.UNKNOWN
    reason: str = ""


class PastVerdict(Frozen):
    """The part of a verdict that a monitor keeps."""

    at_s: float
    verdict: VerdictKind
    cause: str
    stalled: bool = False
    prefilling: bool = False
    causes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    hang_sources: int | None = Field(
        default=None, description="number of sources of a hang; None = no such finding"
    )


class MonitorState(Frozen):
    """Everything a monitor remembers between its checks; `observe` returns the next state and the signals."""

    host: str
    verdicts: tuple[PastVerdict, ...] = Field(default=(), validation_alias=AliasChoices("verdicts", "looks"))
    confirmed: dict[str, VerdictKind] = Field(default_factory=dict, description="the confirmed causes")
    burst_key: str | None = None
    burst_at_s: float = 0
    good_in_a_row: int = 0
    absent: dict[str, int] = Field(
        default_factory=dict, description="verdicts in a row without a confirmed cause, by cause"
    )
    stalled_since_s: float | None = None
    prefill_since_s: float | None = None
    last_seen_s: float | None = None
    unseen_since_s: float | None = Field(
        default=None, description="the first of the checks in a row that failed"
    )
    blind: bool = False
    quiet_until_s: dict[str, float] = Field(default_factory=dict, description="acknowledged causes")

    @property
    def verdict(self) -> VerdictKind:
        """The confirmed state: the worst confirmed cause, unknown while blind, else healthy."""
        if self.confirmed:
            return max(self.confirmed.values(), key=rank_of_verdict)
        return VerdictKind.UNKNOWN if self.blind else VerdictKind.HEALTHY

    @property
    def cause(self) -> str:
        """The root cause among the confirmed ones."""
        worst = [cause for cause, kind in self.confirmed.items() if kind is self.verdict]
        return next((cause for cause in CAUSES if cause in worst), "none")

    def is_quiet(self, cause: str, now_s: float) -> bool:
        """Return True if this cause is acknowledged at the moment."""
        return now_s < self.quiet_until_s.get(cause, float("-inf"))

    def acknowledge(self, cause: str, *, now_s: float, policy: MonitorPolicy) -> "MonitorState":
        """Keep quiet about a cause until it is over, or until `quiet_s` have passed."""
        return self.model_copy(
            update={"quiet_until_s": {**self.quiet_until_s, cause: now_s + policy.quiet_s}}
        )

    def observe(
        self, verdict: Verdict | None, *, now_s: float, policy: MonitorPolicy
    ) -> tuple["MonitorState", tuple[Signal, ...]]:
        """Take one verdict, or None for a check that failed. Return the next state and the signals."""
        if verdict is None:
            return self._without_sight(now_s, policy)
        latest = past_verdict(verdict, now_s=now_s)
        prefill_since_s = None
        if latest.prefilling:
            prefill_since_s = now_s if self.prefill_since_s is None else self.prefill_since_s
            if now_s - prefill_since_s >= policy.prefill_s:
                latest = latest.model_copy(
                    update={"stalled": True, "verdict": VerdictKind.WATCH, "cause": "engine_stalled"}
                )
        stalled_since_s = None
        if latest.stalled:
            stalled_since_s = now_s if self.stalled_since_s is None else self.stalled_since_s
            if now_s - stalled_since_s >= policy.stalled_s and latest.verdict is not VerdictKind.FALL_BACK:
                latest = latest.model_copy(
                    update={"verdict": VerdictKind.FALL_BACK, "cause": "engine_stalled"}
                )
        if latest.cause not in ("none", *latest.causes):
            latest = latest.model_copy(update={"causes": (*latest.causes, latest.cause)})
        state = self.model_copy(
            update={
                "verdicts": (*self.verdicts, latest)[-policy.of :],
                "stalled_since_s": stalled_since_s,
                "prefill_since_s": prefill_since_s,
                "absent": {
                    cause: self.absent.get(cause, 0) + 1 if is_over(cause, latest) else 0
                    for cause in self.confirmed
                },
                "last_seen_s": now_s,
                "unseen_since_s": None,
                "blind": False,
                "good_in_a_row": self.good_in_a_row + 1 if latest.verdict is VerdictKind.HEALTHY else 0,
            }
        )
        signals = [self._sight_signal("sighted", now_s)] if self.blind else []
        state, more = state._confirm(latest, now_s, policy)
        signals += more
        state, more = state._clear(now_s, policy)
        return state, (*signals, *more)

    def _without_sight(
        self, now_s: float, policy: MonitorPolicy
    ) -> tuple["MonitorState", tuple[Signal, ...]]:
        """Keep the last state; after `hold_s` of failed checks report once that the monitor is blind.

        The time counts from the first check that failed: time without any check (a run in progress, a bot that was down) is
        not a failure.
        """
        since_s = now_s if self.unseen_since_s is None else self.unseen_since_s
        state = self.model_copy(update={"unseen_since_s": since_s})
        if self.blind or now_s - since_s < policy.hold_s:
            return state, ()
        reason = f"no check succeeded for {now_s - since_s:.0f} s; the last known state is kept"
        return state.model_copy(update={"blind": True}), (state._sight_signal("blind", now_s, reason=reason),)

    def _confirm(
        self, latest: PastVerdict, now_s: float, policy: MonitorPolicy
    ) -> tuple["MonitorState", list[Signal]]:
        if latest.verdict is VerdictKind.HEALTHY:
            return self, []
        agreeing = [past for past in self.verdicts if past.cause == latest.cause]
        if len(agreeing) < policy.needed or not _sources_suffice(agreeing):
            return self, []
        known = self.confirmed.get(latest.cause)
        if known is not None and rank_of_verdict(latest.verdict) <= rank_of_verdict(known):
            return self, []
        key = self.burst_key
        joins = key is not None and (bool(self.confirmed) or now_s - self.burst_at_s <= policy.burst_s)
        if key is None or not joins:
            key = f"{self.host}:{family_of(latest.cause)}:{now_s:.0f}"
        confirmed = {**self.confirmed, latest.cause: latest.verdict}
        state = self.model_copy(update={"confirmed": confirmed, "burst_key": key, "burst_at_s": now_s})
        if self.is_quiet(latest.cause, now_s):
            return state, []
        signal = Signal(
            kind="join" if joins else "open",
            key=key,
            cause=latest.cause,
            verdict=latest.verdict,
            reason=f"{len(agreeing)} of the last {len(self.verdicts)} checks",
        )
        return state, [signal]

    def _clear(self, now_s: float, policy: MonitorPolicy) -> tuple["MonitorState", list[Signal]]:
        """Clear the causes that are over. Others that remain, however harmless, do not keep them."""
        healthy = self.good_in_a_row >= policy.clear_after
        over = [
            cause for cause in self.confirmed if healthy or self.absent.get(cause, 0) >= policy.clear_after
        ]
        left = {cause: kind for cause, kind in self.confirmed.items() if cause not in over}
        quiet = (
            {}
            if healthy
            else {cause: at_s for cause, at_s in self.quiet_until_s.items() if cause not in over}
        )
        state = self.model_copy(update={"confirmed": left, "quiet_until_s": quiet})
        if not over:
            return state, []
        all_quiet = all(self.is_quiet(cause, now_s) for cause in over)
        checks = max(self.good_in_a_row, *(self.absent.get(cause, 0) for cause in over))
        what = "healthy checks in a row" if healthy else f"checks in a row without {', '.join(over)}"
        remaining = f"; {', '.join(left)} remains" if left else ""
        signal = Signal(
            kind="ease" if left else "clear",
            key=self.burst_key or self.host,
            cause=next((cause for cause in CAUSES if cause in over), over[0]),
            verdict=state.verdict,
            reason=f"{checks} {what}{remaining}" + (" (acknowledged)" if all_quiet else ""),
        )
        return state, [signal]

    def _sight_signal(self, kind: Literal["blind", "sighted"], now_s: float, *, reason: str = "") -> Signal:
        key = f"{self.host}:monitor:{now_s:.0f}"  # not the burst's: each blind period is reported
        return Signal(kind=kind, key=key, cause=self.cause, verdict=self.verdict, reason=reason)


def is_over(cause: str, latest: PastVerdict) -> bool:
    """Return True if a verdict shows that a cause is gone: it is healthy, or at watch for other reasons while everything
    that could show this one was read. A worse fault may hide others (a lost GPU its links), so under it nothing is over."""
    if latest.verdict is not VerdictKind.WATCH:
        return latest.verdict is VerdictKind.HEALTHY
    return cause not in latest.causes and not components_of(cause).intersection(latest.unread)


@cache
def components_of(cause: str) -> frozenset[str]:
    """Return the components whose rules report a cause."""
    return frozenset(rule.component for rule in RULES.values() if rule.cause == cause)


def past_verdict(verdict: Verdict, *, now_s: float) -> PastVerdict:
    """Return the part of a verdict that a monitor keeps."""
    hang = next((finding for finding in verdict.findings if finding.id == HANG_RULE), None)
    return PastVerdict(
        at_s=now_s,
        verdict=verdict.verdict,
        cause=verdict.cause,
        stalled=any(finding.id in STALL_RULES for finding in verdict.findings),
        prefilling=any(finding.id == PREFILL_RULE for finding in verdict.findings),
        causes=verdict.causes,
        unread=verdict.unread,
        hang_sources=None if hang is None else len(hang.evidence.get("sources", ())),
    )


def _sources_suffice(agreeing: list[PastVerdict]) -> bool:
    """A hang needs two sources in one of the agreeing verdicts; other causes need none."""
    counts = [past.hang_sources for past in agreeing if past.hang_sources is not None]
    return agreeing[-1].cause != "nccl_hang" or not counts or max(counts) >= 2


def family_of(cause: str) -> str:
    """Return the family of a cause: causes that one fault produces together."""
    return next((family for family, causes in FAMILIES.items() if cause in causes), cause)
