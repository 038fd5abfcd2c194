"""Whether the tier moves: the one question that the serving, collective and hardware checks all ask.

The token counter decides, not the health endpoint, which stays 200 through a hung collective (300-600 s on real engines).
"""

from typing import Literal, NamedTuple

from gpu_actions.snapshot.host_model import EngineSample
from gpu_actions.triage.checks.context import CheckContext

State = Literal["not_expected", "not_asked", "flowing", "idle", "flat", "silent", "down", "unread"]


class Progress(NamedTuple):
    """How the tier moves.

    flowing: tokens were generated. idle: nothing to do. flat: requests run (or our own completion did) and not a token
    came. silent: it accepts connections but answers nothing. down: nothing listens. unread: the counters say nothing.
    """

    state: State
    flat_s: float = 0.0
    running: float | None = None
    waiting: float | None = None
    tokens_first: float | None = None
    tokens_last: float | None = None

    @property
    def stuck(self) -> bool:
        """Requests get nothing, though something listens."""
        return self.state in ("flat", "silent")

    @property
    def broken(self) -> bool:
        """The tier does not serve, for whatever reason."""
        return self.state in ("flat", "silent", "down")

    def evidence(self) -> dict[str, float | str | None]:
        """The figures behind it."""
        return {
            "state": self.state,
            "flat_s": round(self.flat_s, 2),
            "running": self.running,
            "waiting": self.waiting,
            "generation_tokens_first": self.tokens_first,
            "generation_tokens_last": self.tokens_last,
        }


def progress_of(context: CheckContext) -> Progress:
    """Read the tier's progress off the engine's two samples, the completion and the process tree."""
    snapshot = context.snapshot
    if not snapshot.expected.tier_expected:
        return Progress("not_expected")
    if _main_process_is_gone(context):
        return Progress("down")
    completion = snapshot.completion
    proved = completion is not None and completion.outcome == "ok"
    if snapshot.engine is None or not snapshot.engine.samples:
        if completion is None:
            return Progress("not_asked" if snapshot.skipped("engine") else "unread")
        return Progress("flowing" if proved else "down" if completion.outcome == "refused" else "unread")
    first, last = snapshot.engine.samples[0], snapshot.engine.samples[-1]
    if last.outcome == "refused" and not proved:
        return Progress("down")
    if proved:
        return _moving(first, last, proved=True)
    if last.outcome == "timeout":
        return Progress("silent", flat_s=max(0.0, last.at_s - first.at_s), running=first.running)
    if first.outcome != "ok" or last.outcome != "ok":
        return Progress("unread")
    return _moving(
        first, last, proved=False, probe_hung=completion is not None and completion.outcome == "timeout"
    )


def _moving(first: EngineSample, last: EngineSample, *, proved: bool, probe_hung: bool = False) -> Progress:
    before, after = first.tokens, last.tokens
    flat_s = max(0.0, last.at_s - first.at_s)
    moving = Progress("flowing", 0.0, last.running, last.waiting, before, after)
    if before is None or after is None:
        return moving if proved else moving._replace(state="unread")
    if after != before or proved:
        return moving
    if (last.running or 0) > 0 or probe_hung:
        return moving._replace(state="flat", flat_s=flat_s)
    return moving._replace(state="unread" if last.running is None else "idle")


def _main_process_is_gone(context: CheckContext) -> bool:
    """All main processes of the unit are gone (or zombies), and no engine answers in their place."""
    ranks = context.snapshot.ranks
    if ranks is None:
        return False
    engine = context.snapshot.engine
    answers = engine is not None and bool(engine.samples) and engine.samples[-1].outcome == "ok"
    dead = {process.pid for process in ranks.processes if process.state_last in ("Z", "X", "gone")}
    gone = bool(ranks.roots) and all(pid in ranks.missing_roots or pid in dead for pid in ranks.roots)
    return (gone or ranks.unit_active is False) and not answers
