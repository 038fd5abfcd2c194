"""Fill a snapshot: all collectors at once, each with its own deadline, so that triage takes its window and a little more.

A collector that fails says why in its outcome and never takes the others down. Stacks are taken last and only when the token
counter stands still, since py-spy costs CPU on a host that may be busy.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, get_args

import aiohttp

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collectors import CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.collectors.completion import collect_completion
from gpu_actions.snapshot.collectors.engine import collect_engine
from gpu_actions.snapshot.collectors.environment import collect_environment
from gpu_actions.snapshot.collectors.fabric_manager import collect_fabric_manager
from gpu_actions.snapshot.collectors.kernel_log import collect_kernel_log
from gpu_actions.snapshot.collectors.nvml import MAX_RESTARTS, START_ALLOWANCE_S, collect_nvml
from gpu_actions.snapshot.collectors.ranks import collect_ranks, roots_of
from gpu_actions.snapshot.collectors.ras import collect_ras
from gpu_actions.snapshot.collectors.router import collect_router
from gpu_actions.snapshot.collectors.stacks import collect_stacks
from gpu_actions.snapshot.model import CollectorName, CollectorOutcome, Expectation, Snapshot
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.triage.checks.context import CheckContext
from gpu_actions.triage.checks.progress import progress_of
from gpu_actions.triage.deep.probe import collect_deep

Report = Callable[[str], None]


class Collection:
    """The outcomes and readings of one look, while it is being taken."""

    def __init__(self, report: Report | None) -> None:
        self.began = time.monotonic()
        self.readings: dict[str, Any] = {}
        self.outcomes: dict[CollectorName, CollectorOutcome] = {}
        self.finished: dict[str, asyncio.Event] = {name: asyncio.Event() for name in get_args(CollectorName)}
        self._report = report

    def snapshot(self, target: TriageTarget, *, taken_at: datetime, window_s: float) -> Snapshot:
        """What is known by now."""
        return Snapshot(
            host=target.host,
            taken_at=taken_at,
            window_s=window_s,
            expected=Expectation(
                gpus=target.expect_gpus,
                links=target.expect_links,
                ranks=target.ranks,
                tier=target.tier,
                tier_expected=target.tier_expected,
                other_pids=target.other_pids,
                unwanted=target.unwanted,
                router_server=target.router_server,
                fallback_memory_gib=target.fallback_memory_gib,
            ),
            collectors={
                name: self.outcomes[name] for name in get_args(CollectorName) if name in self.outcomes
            },
            **self.readings,
        )

    async def run(self, name: CollectorName, work: Awaitable[Any], *, deadline_s: float) -> None:
        """Run one collector to its end or its deadline and note how it fared."""
        started = time.monotonic()

        def note(status: str, reason: str = "") -> None:
            self.outcomes[name] = CollectorOutcome.model_validate(
                {
                    "status": status,
                    "reason": " ".join(reason.split())[:300],
                    "seconds": time.monotonic() - started,
                }
            )

        try:
            async with asyncio.timeout(deadline_s):
                self.readings[name] = await work
        except CollectorSkipped as reason:
            note("skipped", str(reason))
        except CollectorFailed as reason:
            note("failed", str(reason))
        except TimeoutError:
            note("failed", f"no end within {deadline_s:.1f} s")
        except Exception as error:  # noqa: BLE001  (noted as its outcome: one broken source must not hide the others)
            note("failed", f"{type(error).__name__}: {error}")
        else:
            note("ok")
        finally:
            self.finished[name].set()
        if self._report is not None and self.outcomes[name].status != "skipped":
            self._report(f"{name}: {self.outcomes[name].status} in {self.outcomes[name].seconds:.1f} s")


async def collect(
    target: TriageTarget,
    thresholds: TriageThresholds | None = None,
    *,
    window_s: float | None = None,
    deep: bool = False,
    report: Report | None = None,
    only: frozenset[CollectorName] | None = None,
) -> Snapshot:
    """Take a snapshot of `target` over `window_s` seconds (default: the thresholds'). Needs no rights, but sees less.

    `only` names the collectors of a partial look (a monitor's); the others are noted as skipped, so their checks do not apply.
    """
    limits = thresholds or TriageThresholds()
    window = limits.window_s if window_s is None else window_s
    taken_at = datetime.now(UTC)
    collection = Collection(report)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=8)) as session:
        await asyncio.gather(
            *[
                collection.run(
                    name, work() if only is None or name in only else _left_out(), deadline_s=deadline_s
                )
                for name, work, deadline_s in _jobs(target, limits, window, session, collection)
            ],
            _stacks_if_stuck(target, limits, collection),
        )
    nvml = collection.readings.get("nvml")
    await collection.run(
        "deep",
        collect_deep(nvml, asked=deep, expect_gpus=target.expect_gpus, limits=limits),
        deadline_s=limits.deep_deadline_s + 5,
    )
    return collection.snapshot(target, taken_at=taken_at, window_s=window)


async def _left_out() -> Any:
    raise CollectorSkipped("not part of this look")


async def _stacks_if_stuck(target: TriageTarget, limits: TriageThresholds, collection: Collection) -> None:
    """Wait for the engine and the process tree, then look into the ranks if tokens stand still."""
    await asyncio.gather(*[collection.finished[name].wait() for name in ("engine", "completion", "ranks")])
    partial = collection.snapshot(target, taken_at=datetime.now(UTC), window_s=1)
    progress = progress_of(CheckContext(snapshot=partial, thresholds=limits))
    work = collect_stacks(partial.ranks, stuck=progress.stuck, timeout_s=limits.stacks_timeout_s)
    await collection.run("stacks", work, deadline_s=limits.stacks_timeout_s + 2)


def _jobs(
    target: TriageTarget,
    limits: TriageThresholds,
    window_s: float,
    session: aiohttp.ClientSession,
    collection: Collection,
) -> list[tuple[CollectorName, Callable[[], Awaitable[Any]], float]]:
    engine_url = target.engine_url if target.tier_expected else None
    jobs: list[tuple[CollectorName, Callable[[], Awaitable[Any]], float]] = [
        (
            "engine",
            lambda: collect_engine(
                engine_url,
                model=target.model,
                session=session,
                window_s=window_s,
                timeout_s=limits.metrics_timeout_s,
                began=collection.began,
            ),
            window_s + 2 * limits.metrics_timeout_s + 1,
        ),
        (
            "completion",
            lambda: collect_completion(
                engine_url if target.completion else None,
                model=target.model,
                api_key=None if target.api_key is None else target.api_key.get_secret_value(),
                session=session,
                deadline_s=limits.completion_deadline_s,
                tokens=limits.completion_tokens,
            ),
            limits.completion_deadline_s + 1,
        ),
        ("ranks", lambda: _ranks(target, window_s, collection.began), window_s + 3),
        (
            "router",
            lambda: collect_router(
                target.router_socket, backend=target.router_backend, timeout_s=limits.router_timeout_s
            ),
            2 * limits.router_timeout_s + 1,
        ),
        (
            "nvml",
            lambda: collect_nvml(
                expect_gpus=target.expect_gpus, window_s=window_s, stall_s=limits.nvml_stall_s
            ),
            (window_s + limits.nvml_stall_s + START_ALLOWANCE_S) * (1 + MAX_RESTARTS),
        ),
        (
            "fabric_manager",
            lambda: collect_fabric_manager(target.fabric_manager_unit, expect_gpus=target.expect_gpus),
            6,
        ),
        (
            "kernel_log",
            lambda: collect_kernel_log(
                target.kernel_log,
                since=target.since,
                since_s=limits.since_s,
                max_bytes=limits.kernel_log_max_bytes,
                expect_gpus=target.expect_gpus,
            ),
            10,
        ),
        (
            "ras",
            lambda: collect_ras(
                target.ras, window_s=window_s, timeout_s=limits.ras_timeout_s, began=collection.began
            ),
            window_s + 2 * limits.ras_timeout_s + 1,
        ),
        ("environment", lambda: _environment(target), 5),
    ]
    return jobs


async def _ranks(target: TriageTarget, window_s: float, began: float) -> Any:
    if not target.tier_expected:
        raise CollectorSkipped("the tier is not meant to run now")
    roots = roots_of(target.pids, target.pid_file)
    return await collect_ranks(roots, unit_active=target.unit_active, window_s=window_s, began=began)


async def _environment(target: TriageTarget) -> Any:
    if not target.tier_expected:
        raise CollectorSkipped("the tier is not meant to run now")
    return await collect_environment(roots_of(target.pids, target.pid_file))
