"""Read the returning tier during a stage: router counters, engine histograms, its process, the kernel log.

This only reads; `analysis.judge_stage` judges the `Window` that results. What cannot be read is named in the window.
"""

from collections import Counter

from gpu_actions.action import StepContext
from gpu_actions.config.policies import RestorePolicy
from gpu_actions.host import Host
from gpu_actions.models import Frozen
from gpu_actions.restore.analysis import Window
from gpu_actions.restore.compared import Thresholds
from gpu_actions.restore.live_answers import LiveAnswers, histogram_between
from gpu_actions.restore.sequential import Counts
from gpu_actions.serving.condition import Condition, Observation, TokenSample, sample_of
from gpu_actions.serving.engines.metrics import (
    histogram_above,
    histogram_count,
    histogram_percentile,
)
from gpu_actions.serving.interfaces import (
    EngineError,
    EngineMetrics,
    Histogram,
    ServerState,
    UnitState,
)
from gpu_actions.serving.routers.driver import summed
from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.collectors.kernel_log import collect_kernel_log
from gpu_actions.snapshot.kernel_log_lines import XidEvent
from gpu_actions.system.clock import Moment
from gpu_actions.tier import run_notes
from gpu_actions.tier.condition import judge_with_activity

KERNEL_LOG_BYTES = 1024 * 1024
KERNEL_LOG_SPAN_S = 900.0
SAMPLES_KEPT = 400


class Beginning(Frozen):
    """The counters at the start of a stage, which later readings are compared with. Kept in the run's folder."""

    at: Moment
    requests: int
    errors: int
    open: int = 0
    refused: int = 0
    fallback_requests: int = 0
    fallback_refused: int = 0
    fallback_errors: int = 0
    fallback_open: int = 0
    ttft: Histogram | None = None
    e2e: Histogram | None = None
    main_pid: int | None = None
    restarts: int = 0
    itl: Histogram | None = None
    control_itl: Histogram | None = None
    thresholds: Thresholds = Thresholds()
    xids: tuple[str, ...] = ()
    xids_unread: str = ""


def name_of(event: XidEvent) -> str:
    """Return a short name of an event. Equal lines of the log have equal names."""
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
CONTROL_NOTE = "control"


async def keep_known_xids(context: StepContext) -> None:
    """Record the kernel log's errors before triage judges them: all that come later are judged by the stages."""
    if run_notes.recall(context.workdir, XIDS_NOTE) is None:
        events, unread = await read_xids(context.host)
        if not unread:
            run_notes.keep(context.workdir, XIDS_NOTE, {"names": [name_of(event) for event in events]})


class Watcher:
    """Collects one stage's window: call `begin` once, then `read` twice a second.

    `probes` and `failed_probes` count the bot's own requests to the tier, which the router does not see; `requests` counts
    all requests of the latest reading.
    """

    def __init__(self, host: Host, percent: int, policy: RestorePolicy, *, stall_s: float) -> None:
        self.host, self.tier, self.percent, self.policy, self.stall_s = (
            host,
            host.tp,
            percent,
            policy,
            stall_s,
        )
        self.probes = self.failed_probes = 0
        self.requests = 0
        self.beginning: Beginning | None = None
        self.samples: list[TokenSample] = []
        self.live = LiveAnswers(host)
        self.queue_peak = 0
        self.unread = 0

    async def begin(self, context: StepContext) -> None:
        """Read the counters, or restore those that the stage's first execution kept."""
        note = f"began_{context.step.id}"
        kept = run_notes.recall(context.workdir, note)
        if kept is not None:
            self.beginning = Beginning.model_validate(kept)
            return
        server, control = await self._servers()
        metrics = await self._metrics()
        control_itl = await self.live.control_itl()
        state = await self.tier.unit.state()
        events, unread = await read_xids(self.host)
        known = run_notes.recall(context.workdir, XIDS_NOTE)
        self.beginning = Beginning(
            at=Moment.now(),
            requests=server.requests_total,
            errors=_errors(server),
            open=server.sessions,
            refused=server.responses_4xx,
            **self._control_counts(context, control),
            ttft=metrics.ttft if metrics else None,
            e2e=metrics.e2e if metrics else None,
            itl=metrics.itl if metrics else None,
            control_itl=control_itl,
            thresholds=await self.live.thresholds(context, control_itl),
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
        server, control = await self._servers()
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
        ttft = histogram_between(began.ttft, metrics.ttft if metrics else None)
        e2e = histogram_between(began.e2e, metrics.e2e if metrics else None)
        slow_ttft = _slow(ttft, self.policy.max_ttft_p99_ms)
        slow_e2e = _slow(e2e, self.policy.max_e2e_p99_ms)
        missing += [
            f"{name} over {limit_ms:g} ms: the engine's buckets end before it"
            for name, between, slow, limit_ms in (
                ("TTFT", ttft, slow_ttft, self.policy.max_ttft_p99_ms),
                ("E2E", e2e, slow_e2e, self.policy.max_e2e_p99_ms),
            )
            if between is not None and slow is None
        ]
        compared = await self.live.read(
            began.thresholds,
            since_s=began.at.wall_s,
            canary_itl=histogram_between(began.itl, metrics.itl if metrics else None),
            control_itl_before=began.control_itl,
        )
        fresh = _new(events, began.xids)
        of_control = _delta(began.fallback_requests, control.requests_total)
        # A restarted router counts from 0.
        self.requests = _delta(began.requests, server.requests_total) + self.probes
        return Window(
            percent=self.percent,
            seconds=began.at.seconds_ago(),
            requests=self.requests,
            carried=began.open,
            errors=_delta(began.errors, _errors(server)) + self.failed_probes + self.live.faulty,
            refused=_delta(began.refused, server.responses_4xx),
            control=Counts(bad=_delta(began.fallback_refused, control.responses_4xx), total=of_control),
            control_failed=Counts(
                bad=_delta(began.fallback_errors, _errors(control)) + self.live.control_faulty,
                total=of_control + began.fallback_open,
            ),
            ttft_p99_ms=_p99_ms(ttft),
            ttft_samples=0 if ttft is None else int(histogram_count(ttft)),
            slow_ttft=slow_ttft,
            e2e_p99_ms=_p99_ms(e2e),
            slow_e2e=slow_e2e,
            compared=compared,
            probes=self.probes,
            looked_into=self.probes if self.live.is_blind else None,
            queue_peak=self.queue_peak,
            hung=await self._hangs(state),
            died=self._died(began, state),
            xids=tuple(name_of(event) for event in fresh if not event.is_application_fault),
            application_xids=tuple(name_of(event) for event in fresh if event.is_application_fault),
            missing=tuple(missing),
        )

    @staticmethod
    def _control_counts(context: StepContext, control: ServerState) -> dict[str, int]:
        """Return the control's counters when the first stage began: at the last one it gets no requests to compare with."""
        note = run_notes.recall(context.workdir, CONTROL_NOTE)
        if note is None:
            note = {
                "fallback_requests": control.requests_total,
                "fallback_refused": control.responses_4xx,
                "fallback_errors": _errors(control),
                "fallback_open": control.sessions,
            }
            run_notes.keep(context.workdir, CONTROL_NOTE, note)
        return note

    @property
    def judged_requests(self) -> int:
        """Return how many requests the stage is judged on. Behind a router that looks into no answer only the probes count."""
        return self.probes if self.live.is_blind else self.requests

    async def _servers(self) -> tuple[ServerState, ServerState]:
        """Return the state of the tier's server and of its control's, from one reading of the router."""
        rows = await self.host.router.servers()
        return summed(rows, self.tier.config.server), summed(rows, self.host.fallback.config.server)

    async def _hangs(self, state: UnitState) -> bool:
        seen = Observation(samples=tuple(self.samples))
        judged = await judge_with_activity(self.tier, state, seen, stall_s=self.stall_s)
        return judged.condition is Condition.HUNG

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


def _errors(server: ServerState) -> int:
    """Return what the router counts of the errors of clients: 5xx answers and answers that break off."""
    return server.responses_5xx + server.streams_broken


def _p99_ms(between: Histogram | None) -> float | None:
    p99 = None if between is None else histogram_percentile(between, 0.99)
    return None if p99 is None else p99 * 1000


def _slow(between: Histogram | None, limit_ms: float) -> Counts | None:
    """Return how many observations are above a limit, or None if that cannot be read."""
    above = None if between is None else histogram_above(between, limit_ms / 1000)
    if between is None or above is None:
        return None
    return Counts(bad=above, total=int(histogram_count(between)))


def _new(events: tuple[XidEvent, ...], known: tuple[str, ...]) -> list[XidEvent]:
    """Return the events that are not known yet. If a known line appears once more, that occurrence is new."""
    left = Counter(known)
    fresh = []
    for event in events:
        name = name_of(event)
        if left[name]:
            left[name] -= 1
        else:
            fresh.append(event)
    return fresh
