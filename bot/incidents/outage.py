"""An outage as the clients saw it: how long no token came, from the router's record, and what that time was spent on. Pure."""

from collections.abc import Iterator, Mapping

from bot.store.records import RunRecord
from gpu_actions.models import Frozen
from gpu_actions.serving.request_account import Gap, RequestAccount

LEAST_S = 1.0
SHOWN_PERCENT = 10
"""A card names the phases with at least this share; the report names all."""
PHASES = ("detection", "decision", "evidence", "drain", "start", "first token", "between steps")
PHASE_OF_STEP = {
    "capture": "evidence",
    "hold": "drain",
    "drain": "drain",
    "stop": "drain",
    "scope": "start",
    "launch": "start",
    "warm": "start",
    "route": "first token",
    "backpressure": "first token",
}


class Outage(Frozen):
    """The longest time without an answer of a fallback's run. `seconds` by phase add up to it.

    Detection lasts until somebody, or a monitor, asked for the fallback; decision until its first step: the plan and the
    approvals. The start ends with the warm-up, because traffic moves only after it.
    """

    gap: Gap
    seconds: dict[str, float]

    @property
    def short(self) -> str:
        """Return the outage for a card on a phone: the phases that count, and what the others took together."""
        total_s = self.gap.seconds
        large = {name: s for name, s in self.seconds.items() if round(100 * s / total_s) >= SHOWN_PERCENT}
        rest_s = total_s - sum(large.values())
        return self._of_which(large, f"the rest {rest_s:.1f} s" if rest_s >= 0.05 else "")

    @property
    def text(self) -> str:
        return self._of_which(self.seconds)

    def _of_which(self, phases: Mapping[str, float], rest: str = "") -> str:
        total_s = self.gap.seconds
        parts = [f"{name} {s:.1f} s ({100 * s / total_s:.0f} %)" for name, s in phases.items()]
        parts += [rest] if rest else []
        return f"{total_s:.1f} s without a token, of which {', '.join(parts)}"


def outage_of(run: RunRecord) -> Outage | None:
    """Return what the latest account of a fallback says of its outage, or None if there was none that is known."""
    accounts = [step.data["clients"] for step in run.steps if isinstance(step.data.get("clients"), dict)]
    found = next((one["account"] for one in reversed(accounts) if one.get("account")), None)
    if run.action != "fallback" or found is None:
        return None
    gap = RequestAccount.model_validate(found, extra="ignore").without_answer
    if gap is None or gap.seconds < LEAST_S:
        return None
    seconds = dict.fromkeys(PHASES, 0.0)
    at_s = gap.from_s
    for name, until_s in _boundaries(run):
        if until_s > at_s:
            seconds[name] += min(until_s, gap.to_s) - at_s
            at_s = min(until_s, gap.to_s)
    seconds["between steps"] += gap.to_s - at_s
    return Outage(gap=gap, seconds={name: round(s, 2) for name, s in seconds.items() if s >= 0.05})


def card_lines(run: RunRecord) -> dict[str, str]:
    """Return the figures that a run's steps have for its card, by label, the latest of each, and the outage."""
    lines = {
        str(label): str(text)
        for step in run.steps
        if isinstance(step.data.get("card"), dict)
        for label, text in step.data["card"].items()
    }
    outage = outage_of(run)
    return lines if outage is None else {**lines, "Outage": outage.short}


def _boundaries(run: RunRecord) -> Iterator[tuple[str, float]]:
    """Yield the phases of a run in order, each with its end."""
    yield "detection", run.created_at
    steps = sorted(
        (step for step in run.steps if step.started_at is not None), key=lambda step: step.started_at or 0
    )
    for number, step in enumerate(steps):
        assert step.started_at is not None  # noqa: S101  (filtered above)
        yield "between steps" if number else "decision", step.started_at
        if step.ended_at is not None:
            yield PHASE_OF_STEP.get(step.step_id, "between steps"), step.ended_at
