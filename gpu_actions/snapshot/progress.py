"""Does the tier generate tokens? The serving, collective and hardware checks all depend on the answer.

The token counter decides, not the health endpoint, which still answers 200 while a collective hangs (for 300-600 s on real
engines).
"""

from typing import Any, Literal, NamedTuple

from gpu_actions.snapshot.model import Snapshot

State = Literal["not_expected", "not_asked", "flowing", "idle", "flat", "silent", "down", "unread"]


class TierProgress(NamedTuple):
    """Progress of the tier within the window.

    flowing: tokens were generated. idle: there is no request. flat: requests run (or the synthetic completion did) and no
    token was generated. silent: it accepts connections but does not answer. down: nothing listens. unread: the counters do
    not show it. not_expected: the tier is stopped on purpose. not_asked: no engine is configured.
    """

    state: State
    flat_s: float = 0.0
    running: float | None = None
    waiting: float | None = None
    tokens_first: float | None = None
    tokens_last: float | None = None

    @property
    def stuck(self) -> bool:
        """True if requests get no tokens although something listens."""
        return self.state in ("flat", "silent")

    @property
    def broken(self) -> bool:
        """True if the tier does not serve, for whatever reason."""
        return self.state in ("flat", "silent", "down")

    def evidence(self) -> dict[str, Any]:
        """Return the figures behind the state."""
        return {
            "state": self.state,
            "flat_s": round(self.flat_s, 2),
            "running": self.running,
            "waiting": self.waiting,
            "generation_tokens_first": self.tokens_first,
            "generation_tokens_last": self.tokens_last,
        }


def progress_of(snapshot: Snapshot) -> TierProgress:
    """Derive the tier's progress from the engine's two samples, the completion and the process tree."""
    if not snapshot.expected.tier_expected:
        return TierProgress("not_expected")
    if _main_process_is_gone(snapshot):
        return TierProgress("down")
    completion = snapshot.completion
    proved = completion is not None and completion.outcome == "ok"
    if snapshot.engine is None or not snapshot.engine.samples:
        if completion is None:
            return TierProgress("not_asked" if snapshot.skipped("engine") else "unread")
        return TierProgress("flowing" if proved else "down" if completion.outcome == "refused" else "unread")
    first, last = snapshot.engine.samples[0], snapshot.engine.samples[-1]
    if last.outcome == "refused" and not proved:
        return TierProgress("down")
    if last.outcome == "timeout" and not proved:
        return TierProgress("silent", flat_s=max(0.0, last.at_s - first.at_s), running=first.running)
    if (first.outcome != "ok" or last.outcome != "ok") and not proved:
        return TierProgress("unread")
    before, after = first.tokens, last.tokens
    flowing = TierProgress("flowing", 0.0, last.running, last.waiting, before, after)
    if proved or (before is not None and after is not None and before != after):
        return flowing
    if before is None or after is None:
        return flowing._replace(state="unread")
    if (last.running or 0) > 0 or (completion is not None and completion.outcome == "timeout"):
        return flowing._replace(state="flat", flat_s=max(0.0, last.at_s - first.at_s))
    return flowing._replace(state="unread" if last.running is None else "idle")


def _main_process_is_gone(snapshot: Snapshot) -> bool:
    """Return True if all main processes of the unit are gone or zombies, and no engine answers in their place."""
    ranks, engine = snapshot.ranks, snapshot.engine
    if ranks is None or (engine is not None and engine.samples and engine.samples[-1].outcome == "ok"):
        return False
    dead = {process.pid for process in ranks.processes if process.state_last in ("Z", "X", "gone")}
    gone = bool(ranks.roots) and dead.union(ranks.missing_roots).issuperset(ranks.roots)
    return gone or ranks.unit_active is False
