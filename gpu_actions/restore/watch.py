"""Read the returning tier during a stage: router counters, engine histograms, its process, the kernel log.

This only reads; `analysis.judge_stage` judges the `Window` that results. What cannot be read is named in the window.
"""

from collections import Counter

from gpu_actions.action import StepContext
from gpu_actions.host import Host
from gpu_actions.models import Frozen
from gpu_actions.restore.analysis import Window
from gpu_actions.serving.engines.metrics import histogram_count, histogram_delta, histogram_percentile
from gpu_actions.serving.interfaces import EngineError, EngineMetrics, Histogram, UnitState
from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.collectors.kernel_log import XidEvent, collect_kernel_log
from gpu_actions.system.clock import Moment
from gpu_actions.tier import run_notes
from gpu_actions.tier.condition import Progress, TokenSample, judge_progress, sample_of

KERNEL_LOG_BYTES = 1024 * 1024
KERNEL_LOG_SPAN_S = 900.0
SAMPLES_KEPT = 400


class Beginning(Frozen):
    """The counters at the start of a stage, which later readings are compared with. Kept in the run's folder."""

    at: Moment
    requests: int
    errors: int
    ttft: Histogram | None = None
    e2e: Histogram | None = None
    main_pid: int | None = None
    restarts: int = 0
    xids: tuple[str, ...] = ()
    xids_unread: str = ""


def name_of(event: XidEvent) -> str:
    """Return an event in a few words; equal lines of the log have equal names."""
    number = f" {event.code}" if event.code is not None else ""
    when = event.at.isoformat(timespec="milliseconds") if event.at else ""
    return " ".join(f"{event.kind}{number} {event.pci} {when} {event.text[:60]}".split())


async def read_xids(host: Host) -> tuple[tuple[XidEvent, ...], str]:
    """Return the kernel log's NVIDIA errors of the last 15 minutes, and why they could not be read (empty if they could)."""
    try:
        reading = await collect_kernel_log(
            host.config.kernel_log,
            since=None,
            since_s=KERNEL_LOG_SPAN_S,
            max_bytes=KERNEL_LOG_BYTES,
            expect_gpus=host.config.gpus,
        )
    except CollectorSkipped:
        return (), ""
    except (CollectorFailed, OSError) as error:
        return (), f"kernel log ({error})"
    return reading.events, ""


XIDS_NOTE = "xids"


async def keep_known_xids(context: StepContext) -> None:
    """Record the kernel log's errors before triage judges them: all that come later are judged by the stages."""
    if run_notes.recall(context.workdir, XIDS_NOTE) is None:
        events, unread = await read_xids(context.host)
        if not unread:
            run_notes.keep(context.workdir, XIDS_NOTE, {"names": [name_of(event) for event in events]})


class Watcher:
    """Collects one stage's window: call `begin` once, then `read` every second or so."""

    def __init__(self, host: Host, percent: int, *, stall_s: float) -> None:
        self.host, self.tier, self.percent, self.stall_s = host, host.tp, percent, stall_s
        self.beginning: Beginning | None = None
        self.samples: list[TokenSample] = []
        self.queue_peak = 0
        self.unread = 0

    async def begin(self, context: StepContext) -> None:
        """Read the counters, or restore those that the stage's first execution kept."""
        note = f"began_{context.step.id}"
        kept = run_notes.recall(context.workdir, note)
        if kept is not None:
            self.beginning = Beginning.model_validate(kept)
            return
        server = await self.host.router.server(self.tier.config.server)
        metrics = await self._metrics()
        state = await self.tier.unit.state()
        events, unread = await read_xids(self.host)
        known = run_notes.recall(context.workdir, XIDS_NOTE)
        self.beginning = Beginning(
            at=Moment.now(),
            requests=server.requests_total,
            errors=server.responses_5xx,
            ttft=metrics.ttft if metrics else None,
            e2e=metrics.e2e if metrics else None,
            main_pid=state.main_pid,
            restarts=state.restarts,
            xids=tuple(name_of(event) for event in events) if known is None else tuple(known["names"]),
            xids_unread=unread,
        )
        run_notes.keep(context.workdir, note, self.beginning.model_dump(mode="json"))

    async def read(self) -> Window:
        """Read everything again and return the window so far. Raises RouterError if the router does not answer."""
        assert self.beginning is not None, "begin comes first"  # noqa: S101
        began = self.beginning
        server = await self.host.router.server(self.tier.config.server)
        metrics = await self._metrics()
        state = await self.tier.unit.state()
        events, unread = await read_xids(self.host)
        missing = [unread or began.xids_unread] if unread or began.xids_unread else []
        queue = server.queued
        if metrics is None:
            self.unread += 1
            missing.append("the engine's counters")
        else:
            self.unread = 0
            self.samples = [*self.samples[-SAMPLES_KEPT:], sample_of(metrics)]
            queue += int(metrics.waiting or 0)
            missing += [name for name in ("ttft", "e2e", "generation_tokens") if name in metrics.missing]
        self.queue_peak = max(self.queue_peak, queue)
        ttft, ttft_count = _p99_ms(began.ttft, metrics.ttft if metrics else None)
        e2e, _ = _p99_ms(began.e2e, metrics.e2e if metrics else None)
        fresh = _new(events, began.xids)
        return Window(
            percent=self.percent,
            seconds=began.at.seconds_ago(),
            # A restarted router counts from 0.
            requests=_delta(began.requests, server.requests_total),
            errors=_delta(began.errors, server.responses_5xx),
            ttft_p99_ms=ttft,
            ttft_samples=ttft_count,
            e2e_p99_ms=e2e,
            queue_peak=self.queue_peak,
            hung=judge_progress(self.samples, stall_s=self.stall_s) is Progress.FLAT,
            died=self._died(began, state),
            xids=tuple(name_of(event) for event in fresh if not event.is_application_fault),
            application_xids=tuple(name_of(event) for event in fresh if event.is_application_fault),
            missing=tuple(missing),
        )

    async def _metrics(self) -> EngineMetrics | None:
        try:
            return await self.tier.engine.metrics(timeout_s=2.0)
        except EngineError:
            return None

    @staticmethod
    def _died(began: Beginning, state: UnitState) -> str:
        if not state.active:
            return "is gone"
        if state.restarts > began.restarts or state.main_pid != began.main_pid:
            return "died and was started again"
        return ""


def _delta(before: int, after: int) -> int:
    return after - before if after >= before else after


def _p99_ms(before: Histogram | None, after: Histogram | None) -> tuple[float | None, int]:
    """Return the 99th percentile between two moments, in ms, and the number of observations."""
    if before is None or after is None:
        return None, 0
    try:
        between = histogram_delta(before, after)
    except ValueError:
        return None, 0  # other buckets: another engine answers, which `died` reports
    p99 = histogram_percentile(between, 0.99)
    return (None if p99 is None else p99 * 1000), int(histogram_count(between))


def _new(events: tuple[XidEvent, ...], known: tuple[str, ...]) -> list[XidEvent]:
    """Return the events that are not known. A line that is known once and appears twice is new once."""
    left = Counter(known)
    fresh = []
    for event in events:
        name = name_of(event)
        if left[name]:
            left[name] -= 1
        else:
            fresh.append(event)
    return fresh
