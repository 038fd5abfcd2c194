"""What monitors do with one verdict after another: confirm, hold, stay quiet, and make one incident of a burst. Pure.

A monitor gives each verdict (or None, when its probe failed) to `MonitorState.observe` and acts on the signals that come
back. Time is a number of seconds that the caller gives; nothing here reads a clock.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from gpu_actions.models import Finding, Frozen, Verdict, VerdictKind
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
        "nccl_hang",
        "engine_down",
        "engine_stalled",
        "engine_errors",
        "serving_regression",
        "router_down",
    ),
    "heat": ("thermal", "throttling"),
}
"""Causes that one fault makes together; what is in no family is a family of its own."""

STALL_RULES = frozenset({"serving.stalled", "serving.stalled_long", "serving.flat", "collective.unread"})


class MonitorPolicy(Frozen):
    """How sure a monitor must be. Defaults: 2 of 3 looks to alert, 3 good looks in a row to clear."""

    needed: int = Field(default=2, ge=1, le=100, description="looks that must agree (N of M)")
    of: int = Field(default=3, ge=1, le=100, description="last looks that count (M)")
    clear_after: int = Field(default=3, ge=1, le=100, description="good looks in a row that end an alert")
    stalled_s: float = Field(default=30, gt=0, description="a stall that lasts this long counts as fall_back")
    hold_s: float = Field(default=60, gt=0, description="the last state is held this long without a look")
    burst_s: float = Field(default=300, ge=0, description="what comes within this of an open alert joins it")
    quiet_s: float = Field(default=3600, ge=0, description="how long an acknowledged cause stays quiet")


class Signal(Frozen):
    """What the monitor should do: open an incident, add to it, say that it is over, or say that it sees nothing."""

    kind: Literal["open", "join", "clear", "blind", "sighted"]
    key: str
    cause: str = "none"
    verdict: VerdictKind = VerdictKind.UNKNOWN
    reason: str = ""


class Look(Frozen):
    """What is kept of one verdict."""

    at_s: float
    verdict: VerdictKind
    cause: str
    stalled: bool = False
    hang_sources: int | None = Field(
        default=None, description="sources of a live hang; None = no such finding"
    )


class MonitorState(Frozen):
    """Everything a monitor remembers between looks; `observe` gives the next state and the signals."""

    host: str
    looks: tuple[Look, ...] = ()
    confirmed: dict[str, VerdictKind] = Field(
        default_factory=dict, description="causes that are confirmed now"
    )
    burst_key: str | None = None
    burst_at_s: float = 0
    good_in_a_row: int = 0
    stalled_since_s: float | None = None
    last_seen_s: float | None = None
    unseen_since_s: float | None = Field(
        default=None, description="the first of the looks in a row that failed"
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

    def acknowledge(self, cause: str, *, now_s: float, policy: MonitorPolicy) -> "MonitorState":
        """A person has seen this cause: no signal of it until it is over, or `quiet_s` have passed."""
        return self.model_copy(
            update={"quiet_until_s": {**self.quiet_until_s, cause: now_s + policy.quiet_s}}
        )

    def observe(
        self, verdict: Verdict | None, *, now_s: float, policy: MonitorPolicy
    ) -> tuple["MonitorState", tuple[Signal, ...]]:
        """Take one verdict, or None for a probe that failed. Gives the next state and what to do."""
        if verdict is None:
            return self._without_sight(now_s, policy)
        look = look_of(verdict, now_s=now_s)
        stalled_since = (
            (self.stalled_since_s if self.stalled_since_s is not None else now_s) if look.stalled else None
        )
        lasting = stalled_since is not None and now_s - stalled_since >= policy.stalled_s
        if lasting and look.verdict is not VerdictKind.FALL_BACK:
            look = look.model_copy(update={"verdict": VerdictKind.FALL_BACK, "cause": "engine_stalled"})
        state = self.model_copy(
            update={
                "looks": (*self.looks, look)[-policy.of :],
                "stalled_since_s": stalled_since,
                "last_seen_s": now_s,
                "unseen_since_s": None,
                "blind": False,
                "good_in_a_row": self.good_in_a_row + 1 if look.verdict is VerdictKind.HEALTHY else 0,
            }
        )
        signals = [self._signal("sighted", now_s)] if self.blind else []
        state, more = state._confirm(look, now_s, policy)
        signals += more
        state, more = state._clear(now_s, policy)
        return state, (*signals, *more)

    def _without_sight(
        self, now_s: float, policy: MonitorPolicy
    ) -> tuple["MonitorState", tuple[Signal, ...]]:
        """Hold the last state; after `hold_s` of failed looks say once that nothing is seen.

        Counted from the first look that failed: time in which nobody looked (a run at work, a bot that was down) is no failure.
        """
        since_s = now_s if self.unseen_since_s is None else self.unseen_since_s
        state = self.model_copy(update={"unseen_since_s": since_s})
        if self.blind or now_s - since_s < policy.hold_s:
            return state, ()
        reason = f"no look succeeded for {now_s - since_s:.0f} s; the last state is held"
        return state.model_copy(update={"blind": True}), (state._signal("blind", now_s, reason=reason),)

    def _confirm(
        self, look: Look, now_s: float, policy: MonitorPolicy
    ) -> tuple["MonitorState", list[Signal]]:
        if look.verdict is VerdictKind.HEALTHY:
            return self, []
        agreeing = [old for old in self.looks if old.cause == look.cause]
        if len(agreeing) < policy.needed or not _sources_suffice(agreeing):
            return self, []
        known = self.confirmed.get(look.cause)
        if known is not None and rank_of_verdict(look.verdict) <= rank_of_verdict(known):
            return self, []
        confirmed = {**self.confirmed, look.cause: look.verdict}
        running = self.burst_key is not None and (
            bool(self.confirmed) or now_s - self.burst_at_s <= policy.burst_s
        )
        key = (
            self.burst_key
            if running and self.burst_key is not None
            else f"{self.host}:{family_of(look.cause)}:{now_s:.0f}"
        )
        state = self.model_copy(update={"confirmed": confirmed, "burst_key": key, "burst_at_s": now_s})
        if now_s < self.quiet_until_s.get(look.cause, float("-inf")):
            return state, []
        kind: Literal["open", "join"] = "join" if running else "open"
        return state, [
            Signal(
                kind=kind,
                key=key,
                cause=look.cause,
                verdict=look.verdict,
                reason=f"{len(agreeing)} of the last {len(self.looks)} looks",
            )
        ]

    def _clear(self, now_s: float, policy: MonitorPolicy) -> tuple["MonitorState", list[Signal]]:
        if self.good_in_a_row < policy.clear_after:
            return self, []
        state = self.model_copy(update={"confirmed": {}, "quiet_until_s": {}})
        if not self.confirmed:
            return state, []
        loud = [cause for cause in self.confirmed if now_s >= self.quiet_until_s.get(cause, float("-inf"))]
        reason = f"{self.good_in_a_row} good looks in a row" + ("" if loud else " (acknowledged)")
        return state, [
            Signal(
                kind="clear",
                key=self.burst_key or self.host,
                cause=self.cause,
                verdict=VerdictKind.HEALTHY,
                reason=reason,
            )
        ]

    def _signal(self, kind: Literal["blind", "sighted"], now_s: float, *, reason: str = "") -> Signal:
        key = f"{self.host}:monitor:{now_s:.0f}"  # not the burst's: each time without sight is told anew
        return Signal(kind=kind, key=key, cause=self.cause, verdict=self.verdict, reason=reason)


def look_of(verdict: Verdict, *, now_s: float) -> Look:
    """What a monitor keeps of a verdict."""
    return Look(
        at_s=now_s,
        verdict=verdict.verdict,
        cause=verdict.cause,
        stalled=any(
            finding.id in STALL_RULES or finding.id == "collective.hang" for finding in verdict.findings
        ),
        hang_sources=next(
            (len(hang_sources(finding)) for finding in verdict.findings if finding.id == "collective.hang"),
            None,
        ),
    )


def hang_sources(finding: Finding) -> tuple[str, ...]:
    """The sources behind a hang, `("token counter", "process_states")`; empty for other findings."""
    sources = finding.evidence.get("sources", ()) if finding.id == "collective.hang" else ()
    return tuple(str(source) for source in sources)


def _sources_suffice(looks: list[Look]) -> bool:
    """A live hang needs two sources in one of the looks that agree, whoever judged them; other causes need none."""
    counts = [look.hang_sources for look in looks if look.hang_sources is not None]
    return looks[-1].cause != "nccl_hang" or not counts or max(counts) >= 2


def family_of(cause: str) -> str:
    """The family of causes that one fault makes together."""
    return next((family for family, causes in FAMILIES.items() if cause in causes), cause)


def burst_key(host: str, cause: str, *, at_s: float, burst_s: float) -> str:
    """A key under which alerts of one burst meet where no state is kept (webhooks): host, family, time slot."""
    return f"{host}:{family_of(cause)}:{int(at_s // max(burst_s, 1))}"
