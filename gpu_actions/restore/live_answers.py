"""Read what clients get from both tiers during a stage: the router's record of answers, and the control's histogram.

The record is read every few seconds, and only what is new in it.
"""

import time

from gpu_actions.action import StepContext
from gpu_actions.host import Host
from gpu_actions.restore.compared import (
    Compared,
    Thresholds,
    compare,
    thresholds_before,
    thresholds_now,
)
from gpu_actions.serving.engines.metrics import histogram_delta
from gpu_actions.serving.interfaces import (
    EngineError,
    Histogram,
    RequestsUnknown,
    RouterError,
    ServedAnswer,
)
from gpu_actions.tier import run_notes

BEFORE_SPAN_S = 6 * 3600.0
CONTROL_SPAN_S = 600.0
"""How far before the run tp's answers are searched for, and how far before a stage the fallback's."""

BEFORE_NOTE = "tp_before"
ANSWERS_KEPT = 5_000
COMPARE_EVERY_S = 2.0
LINE_DELAY_S = 0.3
"""A line of the record is written within 0.1 s after the end of its request."""


class LiveAnswers:
    """The clients' answers from tp (canary) and from the fallback (control) during one stage."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.canary: list[ServedAnswer] = []
        self.control: list[ServedAnswer] = []
        self.until_s: float | None = None
        self.compared: tuple[Compared, ...] = ()
        self.faulty = self.control_faulty = self.judged = self.unjudged = 0
        self.is_unknown = False

    @property
    def is_blind(self) -> bool:
        """Return True if the router does not look into tp's answers: then only the bot's own probes do."""
        return self.is_unknown or (self.unjudged > 0 and self.judged == 0)

    async def thresholds(self, context: StepContext, control_itl: Histogram | None) -> Thresholds:
        """Fix a stage's thresholds: from the fallback's latest answers, and from tp's last ones before this run.

        The latter are read once in a run. Without a record nothing is compared.
        """
        began_s = run_notes.began_at_s(context.workdir)
        note = run_notes.recall(context.workdir, BEFORE_NOTE)
        now_s = time.time()
        try:
            if note is None:
                before, _ = await self._answers(began_s - BEFORE_SPAN_S, began_s)
                whole = [one for one in before if not one.fault]
                note = thresholds_before(whole[-ANSWERS_KEPT:]).model_dump()
                run_notes.keep(context.workdir, BEFORE_NOTE, note)
            _, control = await self._answers(now_s - CONTROL_SPAN_S, now_s)
        except RouterError:
            return Thresholds()
        return thresholds_now(control[-ANSWERS_KEPT:], control_itl, Thresholds.model_validate(note))

    async def read(
        self,
        thresholds: Thresholds,
        *,
        since_s: float,
        canary_itl: Histogram | None,
        control_itl_before: Histogram | None,
    ) -> tuple[Compared, ...]:
        """Return the comparisons of the stage that began at `since_s` (Unix seconds)."""
        begin_s, now_s = self.until_s or since_s, time.time()
        if now_s - begin_s < COMPARE_EVERY_S:
            return self.compared
        try:
            canary, control = await self._answers(begin_s, now_s - LINE_DELAY_S)
        except RequestsUnknown:
            self.is_unknown = True
        else:
            self.is_unknown = False
            self.until_s = now_s - LINE_DELAY_S
            self.faulty += sum(bool(one.fault) for one in canary)
            self.control_faulty += sum(bool(one.fault) for one in control)
            self.judged += sum(one.judged for one in canary)
            self.unjudged += sum(not one.judged for one in canary)
            self.canary += (one for one in canary if not one.fault)
            self.control += (one for one in control if not one.fault)
        control_itl = None
        if thresholds.control_itl_s is not None:
            control_itl = histogram_between(control_itl_before, await self.control_itl())
        self.compared = compare(
            thresholds, self.canary, self.control, canary_itl=canary_itl, control_itl=control_itl
        )
        return self.compared

    async def control_itl(self) -> Histogram | None:
        """Return the fallback's histogram of the time between tokens, or None if it has none or does not answer."""
        try:
            return (await self.host.fallback.engine.metrics(timeout_s=2.0)).itl
        except EngineError:
            return None

    async def _answers(self, since_s: float, until_s: float) -> tuple[list[ServedAnswer], list[ServedAnswer]]:
        """Return the answers of tp and of the fallback."""
        answers = await self.host.router.answers(since_s, until_s)
        tp, fallback = self.host.tp.config.server, self.host.fallback.config.server
        return [one for one in answers if one.server == tp], [
            one for one in answers if one.server == fallback
        ]


def histogram_between(before: Histogram | None, after: Histogram | None) -> Histogram | None:
    """Return the observations between two moments, or None if there is no such histogram."""
    if before is None or after is None:
        return None
    try:
        return histogram_delta(before, after)
    except ValueError:
        return None  # other buckets: another engine answers
