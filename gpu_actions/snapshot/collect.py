"""Take a snapshot: all collectors at once, each with its own deadline, so that it takes the window and little more, and less
where nothing needs the window.

A collector that fails leaves its reason in its outcome and does not stop the others.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped, Source, Window
from gpu_actions.snapshot.model import COLLECTORS, CollectorOutcome, Snapshot
from gpu_actions.snapshot.progress import is_contradictory, progress_of
from gpu_actions.snapshot.replicas import hung_replicas
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.system.redact import redacted_head

Report = Callable[[str], None]
SHORTEST_S = 0.001


class _Collection:
    """The outcomes and readings of one snapshot while it is taken."""

    def __init__(self, target: TriageTarget, window_s: float, window: Window, report: Report | None) -> None:
        self.target = target
        self.window_s = window_s
        self.window = window
        self.began = time.monotonic()
        self.taken_at = datetime.now(UTC)
        self.readings: dict[str, Any] = {}
        self.outcomes: dict[str, CollectorOutcome] = {}
        self.finished = {name: asyncio.Event() for name in COLLECTORS}
        self._report = report
        self._ended_s: float | None = None

    def is_stuck(self, limits: TriageThresholds) -> bool:
        """Return True if requests get no tokens so far, or get them too slowly: then costlier collectors look for the cause."""
        progress = progress_of(self.snapshot(), limits)
        return progress.stuck or progress.slow or bool(hung_replicas(self.snapshot(), limits))

    def snapshot(self) -> Snapshot:
        """Return what is known so far."""
        return Snapshot(
            host=self.target.host,
            taken_at=self.taken_at,
            window_s=self.window_s if self.ended_s is None else self.ended_s,
            expected=self.target.expectation(),
            collectors={name: self.outcomes[name] for name in COLLECTORS if name in self.outcomes},
            **self.readings,
        )

    @property
    def ended_s(self) -> float | None:
        """When the window ended, if it ended early."""
        return self._ended_s

    async def note_end(self) -> None:
        """Note when the window ends early."""
        await self.window.over.wait()
        self._ended_s = min(self.window_s, max(SHORTEST_S, time.monotonic() - self.began))

    async def run(self, name: str, source: Source, *, wanted: bool) -> None:
        """Run one collector to its end or its deadline, and note its outcome."""
        collector = COLLECTORS[name]
        for earlier in collector.after:
            await self.finished[earlier].wait()
        deadline_s = collector.deadline_s(source)
        started = time.monotonic()
        status: Literal["ok", "failed", "skipped"] = "failed"
        reason = ""
        try:
            async with asyncio.timeout(deadline_s):
                self.readings[name] = await (collector.collect(source) if wanted else _left_out())
            status = "ok"
        except CollectorSkipped as error:
            status, reason = "skipped", str(error)
        except CollectorFailed as error:
            reason = str(error)
        except TimeoutError:
            reason = f"not finished within {deadline_s:.1f} s"
        except Exception as error:  # noqa: BLE001  (its outcome: one broken source must not hide the others)
            reason = f"{type(error).__name__}: {error}"
        finally:
            self.finished[name].set()
            self.window.needs_no_more(name)
        seconds = time.monotonic() - started
        self.outcomes[name] = CollectorOutcome(
            status=status, reason=redacted_head(" ".join(reason.split()), 300), seconds=seconds
        )
        if self._report is not None and status != "skipped":
            self._report(f"{name}: {status} in {seconds:.1f} s")


async def _left_out() -> Any:
    raise CollectorSkipped("not part of this snapshot")


async def collect(
    target: TriageTarget,
    thresholds: TriageThresholds | None = None,
    *,
    window_s: float | None = None,
    deep: bool = False,
    report: Report | None = None,
    only: frozenset[str] | None = None,
    in_doubt: frozenset[str] = frozenset(),
    whole_window: bool = False,
) -> Snapshot:
    """Take a snapshot of `target` over `window_s` seconds (default: the thresholds'), or over less if nothing that was read
    needs to be observed for as long (see `Window`), unless the caller wants the `whole_window`. It needs no rights, but sees
    less without them.

    `only` limits a monitor's snapshot to these collectors; the others are noted as skipped, so that their checks do not apply.
    Those `in_doubt` run only if engine and router contradict each other (see `is_contradictory`). Raises ValueError for a name
    that is not a collector.
    """
    if only is not None and (unknown := only - COLLECTORS.keys()):
        raise ValueError(f"there is no collector {', '.join(sorted(unknown))}")
    limits = thresholds or TriageThresholds()
    window = limits.window_s if window_s is None else window_s
    observers = {name for name, one in COLLECTORS.items() if one.observes and (only is None or name in only)}
    ends = Window(observers, whole=whole_window)
    collection = _Collection(target, window, ends, report)
    source = Source(
        target=target,
        limits=limits,
        window_s=window,
        window=ends,
        finished=collection.finished,
        began=collection.began,
        deep=deep,
        reads_nvml=only is None or "nvml" in only,
        readings=collection.readings,
        is_stuck=lambda: collection.is_stuck(limits),
    )

    async def run(name: str) -> None:
        if name in in_doubt:
            for earlier in ("engine", "router"):
                await collection.finished[earlier].wait()
            if not is_contradictory(collection.snapshot()):
                return await collection.run(name, source, wanted=False)
        return await collection.run(name, source, wanted=only is None or name in only)

    alone = [name for name, collector in COLLECTORS.items() if collector.runs_alone]
    noting = asyncio.create_task(collection.note_end())
    try:
        await asyncio.gather(*[run(name) for name in COLLECTORS if name not in alone])
    finally:
        noting.cancel()
    for name in alone:
        await run(name)
    return collection.snapshot()
