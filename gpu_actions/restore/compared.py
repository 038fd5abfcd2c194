"""The returning tier (canary) against the fallback (its control, now) and against its own answers before the incident.

All of it is measured under live traffic: the router's record has the time to the first byte and the duration and size of each
answer, the engines' histograms have the time between tokens. Pure.

A measure's threshold is fixed before the stage begins, near the 95th percentile of the reference. Then only counts matter: how
many answers of each are above it. So no assumption about distributions is needed, and the same sequential test as for errors
decides.
"""

from collections.abc import Iterable, Sequence

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.restore.sequential import Counts, upper_bound
from gpu_actions.serving.engines.metrics import histogram_above, histogram_count
from gpu_actions.serving.interfaces import Histogram, ServedAnswer

REFERENCE_SHARE = 0.05
"""A threshold is the reference's 95th percentile: this share of its answers is above it."""

MIN_REFERENCE = 50
"""With fewer answers a reference has no 95th percentile worth comparing with."""

MARGIN = 1.25
"""The canary may be above the threshold this many times as often as the reference may be, by its own upper bound."""

BEFORE_TOLERANCE = 1.2
"""A tier that returns has cold caches and other requests: the threshold is this many times its earlier 95th percentile."""

TTFT, ITL, PACE = "TTFT", "time between tokens", "time per KiB of answer"
"""The measures. PACE is the end-to-end time by size: the router counts bytes, and both tiers write a token alike."""

FALLBACK, BEFORE = "the fallback", "tp before the incident"


class Compared(Frozen):
    """One measure of the canary against one reference. The reference's share is estimated from `reference`."""

    measure: str
    against: str
    threshold_s: float
    canary: Counts = Counts()
    reference: Counts = Counts()

    def limit(self, alpha: float) -> float:
        """Return the share above the threshold that the canary may have, at error `alpha` of the reference's own share."""
        return min(1.0, MARGIN * max(REFERENCE_SHARE, upper_bound(self.reference, alpha)))

    @property
    def reason(self) -> str:
        """Return the comparison in words."""
        return (
            f"{self.measure} over {self.threshold_s:.3g} s in {self.canary.bad} of {self.canary.total} answers, "
            f"in {self.reference.bad} of {self.reference.total} of {self.against}"
        )


class Thresholds(Frozen):
    """The thresholds of a stage in seconds, fixed when it begins. None: too few answers to compare with."""

    control_ttft_s: float | None = None
    control_pace_s: float | None = None
    control_itl_s: float | None = None
    before_ttft_s: float | None = None
    before_pace_s: float | None = None
    before_answers: int = Field(default=0, description="answers of tp before the incident")


def percentile_95(values: Iterable[float]) -> float | None:
    """Return the 95th percentile, or None of too few values."""
    found = sorted(values)
    if len(found) < MIN_REFERENCE:
        return None
    return found[min(len(found) - 1, round((1 - REFERENCE_SHARE) * len(found)))]


def bound_95(histogram: Histogram | None) -> float | None:
    """Return the lowest finite bucket bound that at most 5 % of a histogram are above, or None."""
    if histogram is None or histogram_count(histogram) < MIN_REFERENCE:
        return None
    for bound in histogram.bounds_s[:-1]:
        above = histogram_above(histogram, bound)
        if above is not None and above <= REFERENCE_SHARE * histogram_count(histogram):
            return bound
    return None


def thresholds_before(before: Sequence[ServedAnswer]) -> Thresholds:
    """Return the thresholds from tp's answers before the incident."""
    ttft_s = percentile_95(answer.first_byte_s for answer in before)
    pace_s = percentile_95(answer.pace_s for answer in before)
    return Thresholds(
        before_ttft_s=None if ttft_s is None else BEFORE_TOLERANCE * ttft_s,
        before_pace_s=None if pace_s is None else BEFORE_TOLERANCE * pace_s,
        before_answers=len(before),
    )


def thresholds_now(
    control: Sequence[ServedAnswer], control_itl: Histogram | None, before: Thresholds
) -> Thresholds:
    """Return a stage's thresholds: those from before the incident, and those from the fallback's answers until now."""
    return before.model_copy(
        update={
            "control_ttft_s": percentile_95(answer.first_byte_s for answer in control),
            "control_pace_s": percentile_95(answer.pace_s for answer in control),
            "control_itl_s": bound_95(control_itl),
        }
    )


def compare(
    thresholds: Thresholds,
    canary: Sequence[ServedAnswer],
    control: Sequence[ServedAnswer],
    *,
    canary_itl: Histogram | None = None,
    control_itl: Histogram | None = None,
) -> tuple[Compared, ...]:
    """Compare the answers of a stage so far."""
    made = []
    before = Counts(bad=round(REFERENCE_SHARE * thresholds.before_answers), total=thresholds.before_answers)
    for measure, against, threshold_s in (
        (TTFT, FALLBACK, thresholds.control_ttft_s),
        (PACE, FALLBACK, thresholds.control_pace_s),
        (TTFT, BEFORE, thresholds.before_ttft_s),
        (PACE, BEFORE, thresholds.before_pace_s),
    ):
        if threshold_s is None:
            continue
        made.append(
            Compared(
                measure=measure,
                against=against,
                threshold_s=threshold_s,
                canary=_above(measure, threshold_s, canary),
                reference=before if against == BEFORE else _above(measure, threshold_s, control),
            )
        )
    itl_s = thresholds.control_itl_s
    if itl_s is not None:
        counted = [_above_in(canary_itl, itl_s, len(canary)), _above_in(control_itl, itl_s, len(control))]
        if counted[0] is not None and counted[1] is not None:
            made.append(
                Compared(
                    measure=ITL, against=FALLBACK, threshold_s=itl_s, canary=counted[0], reference=counted[1]
                )
            )
    return tuple(made)


def _above(measure: str, threshold_s: float, answers: Sequence[ServedAnswer]) -> Counts:
    values = [answer.first_byte_s if measure == TTFT else answer.pace_s for answer in answers]
    return Counts(bad=sum(value > threshold_s for value in values), total=len(values))


def _above_in(histogram: Histogram | None, threshold_s: float, answers: int) -> Counts | None:
    """Return a histogram's share above a threshold as a count of so many answers.

    The gaps within an answer are not independent: one stall of the engine is a gap in every running answer, and a slow answer
    has many. So an answer counts once, by its average share, however many tokens it has.
    """
    above = None if histogram is None else histogram_above(histogram, threshold_s)
    if histogram is None or above is None:
        return None
    gaps = int(histogram_count(histogram))
    total = min(gaps, answers)
    return Counts(bad=round(above * total / gaps) if gaps else 0, total=total)
