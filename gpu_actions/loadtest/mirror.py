"""Load-test mirroring: a scheduled load of low rate that looks like the recent traffic, compared with its own baseline.

The rate is a share of the tier's capacity (its latest knee, else the recent rate), within the host's caps. It gives way at
once to traffic that has to wait, and to any run that changes or measures the host. Its first runs at a kind of traffic
become that kind's baseline: rate and lengths of the traffic decide which one judges, so that a busy hour is compared with
busy hours.
"""

import asyncio
import contextlib
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from gpu_actions.config.host import TierName
from gpu_actions.config.policies import LoadPolicy
from gpu_actions.host import Host
from gpu_actions.loadtest.baseline import BaselineError, BaselineStore, make_baseline
from gpu_actions.loadtest.child import LoadTestBroken, run_in_child
from gpu_actions.loadtest.comparison import ENOUGH_RUNS, Change, Comparison
from gpu_actions.loadtest.knee_limits import latest_knee
from gpu_actions.loadtest.recent import RecentTraffic, RecentUnknown, read_recent, tier_in_service
from gpu_actions.loadtest.report import JSON_NAME
from gpu_actions.loadtest.request import spec_for_tier
from gpu_actions.loadtest.result import LoadTestResult, RunVerdict, read_result
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import LoadTestRefused
from gpu_actions.models import Finding, Frozen, Severity, Verdict, VerdictKind
from gpu_actions.serving.interfaces import EngineError, RouterError
from gpu_actions.system.files import write_atomically
from gpu_actions.system.processes import run_process
from gpu_actions.system.redact import redacted_tail

LEARNED_RUNS = ENOUGH_RUNS
ALIKE = 1.5
"""Traffic is of one kind if its rate and its lengths differ by at most this factor."""
KINDS = 8
"""Kinds of traffic that are remembered for a host; the one that was not seen for longest makes room."""
LEAST_REQUESTS = 10
LONGEST_S = 120.0
TOLERANCE_PERCENT = 30.0
"""A smaller change raises no alert: the runbook acts on a sustained 30 %."""
ASK_EVERY_S = 0.25
COMPARE_TIMEOUT_S = 60.0
FOLDER, INDEX_NAME = "mirror", "kinds.json"
REGRESSION, ERRORS = "serving.mirror", "serving.mirror_failed"


class MirrorSkipped(Exception):
    """Raised if no load was sent, or it was dropped to give way. It says nothing about the service; the message says why."""


class TrafficKind(Frozen):
    """A kind of traffic, and the load that mirrors it. `name` is that of its baseline."""

    name: str
    tier: TierName
    requests_per_s: float
    load: LoadPolicy
    last_seen_s: float

    def is_like(self, recent: RecentTraffic, tier: TierName, highest_qps: float) -> bool:
        """Return True if this load mirrors the recent traffic, and its rate is still allowed."""
        pairs = [(self.requests_per_s, recent.requests_per_s)]
        for ours, theirs in (
            (self.load.prompt_lengths, recent.prompt_lengths),
            (self.load.answer_lengths, recent.answer_lengths),
        ):
            pairs += [(ours[len(ours) // 2], theirs[len(theirs) // 2]), (ours[-1], theirs[-1])]
        alike = all(max(one, other) <= ALIKE * min(one, other) for one, other in pairs)
        return alike and self.tier == tier and self.load.target_qps <= highest_qps


class TrafficKinds(Frozen):
    """The kinds of traffic of a host. `made` counts all that there ever were, so that names do not repeat."""

    kinds: tuple[TrafficKind, ...] = ()
    made: int = 0


class Mirrored(NamedTuple):
    """A finished mirrored load: what it says about the service, its result and its comparison."""

    verdict: Verdict
    result: LoadTestResult
    comparison: Comparison | None = None


async def mirror(host: Host, *, must_stop: Callable[[], bool] = lambda: False) -> Mirrored:
    """Send one mirrored load and judge it. Raises MirrorSkipped, RouterError, EngineError and LoadTestBroken.

    `must_stop` is asked some times a second, from a thread; True drops the load.
    """
    tier = await tier_in_service(host)
    if tier is None:
        raise MirrorSkipped("the router sends requests to no tier")
    if busy := await waiting(host, tier):
        raise MirrorSkipped(busy)
    try:
        recent = await read_recent(host, tier)
    except RecentUnknown as error:
        raise MirrorSkipped(str(error)) from error
    folder = host.state_dir / FOLDER
    kind = await asyncio.to_thread(_kind_of, host, tier, recent, folder)
    name = f"mirrored load of {host.name}"
    short = {"warmup_s": 0, "measure_energy": False, "processes": 1}
    spec = spec_for_tier(kind.load, host.tiers[tier], url=host.router.url, name=name, **short)
    out_dir = folder / "last"
    result = await _run(host, tier, spec, out_dir, must_stop)
    if result.verdict is RunVerdict.VOID:
        raise MirrorSkipped(f"the figures say nothing: {'; '.join(result.reasons)}")
    return await _judge(host, kind, result, out_dir)


async def waiting(host: Host, tier: TierName) -> str:
    """Return what waits for a place on the tier; empty if nothing does."""
    server = await host.router.server(host.tiers[tier].config.server)
    if server.queued:
        return f"{server.queued} requests wait at the router"
    engine_waiting = (await host.tiers[tier].engine.metrics()).waiting
    return f"{engine_waiting:.0f} requests wait in the engine" if engine_waiting else ""


async def _run(
    host: Host, tier: TierName, spec: LoadSpec, out_dir: Path, must_stop: Callable[[], bool]
) -> LoadTestResult:
    """Run the load in a child, and end it, with what it has in flight, as soon as it has to give way."""
    run = asyncio.create_task(run_in_child(spec, out_dir, stop_grace_s=0))
    try:
        while not run.done():
            await asyncio.wait({run}, timeout=ASK_EVERY_S)
            if run.done():
                break
            if await asyncio.to_thread(must_stop):
                raise MirrorSkipped("it gave way to a run on this host")
            if busy := await waiting(host, tier):
                raise MirrorSkipped(f"it gave way to traffic: {busy}")
        return await run
    except LoadTestRefused as error:
        raise LoadTestBroken(str(error)) from error
    finally:
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError, LoadTestBroken, LoadTestRefused):
            await run


def highest_rate(host: Host, tier: TierName, recent: RecentTraffic, *, is_known: bool = False) -> float:
    """Return the highest rate of a mirrored load: a share of the capacity, never above the recent traffic or the cap.

    Without a knee the recent rate stands for the capacity. A load that `is_known` mirrors traffic whose rate differs a little
    from the present one, and keeps its own rate.
    """
    settings, knee = host.config.loadtest, latest_knee(host, tier).result
    most = min(recent.requests_per_s, settings.qps_cap)
    if knee is not None and knee.knee_qps:
        return min(most, settings.mirror_share * knee.knee_qps)
    return most if is_known else min(most, settings.mirror_share * recent.requests_per_s)


def _kind_of(host: Host, tier: TierName, recent: RecentTraffic, folder: Path) -> TrafficKind:
    """Return the kind of the recent traffic, a new one if it is like none that is known. Raises MirrorSkipped."""
    allowed, highest = (highest_rate(host, tier, recent, is_known=known) for known in (True, False))
    index = _read_index(folder)
    known = next((kind for kind in index.kinds if kind.is_like(recent, tier, allowed)), None)
    if known is not None:
        kind, made = known.model_copy(update={"last_seen_s": recent.until_s}), index.made
    else:
        duration_s = min(
            max(host.config.loadtest.mirror_s, LEAST_REQUESTS / highest),
            max(LONGEST_S, host.config.loadtest.mirror_s),
            host.config.loadtest.duration_cap_s,
        )
        if highest * duration_s < LEAST_REQUESTS:
            raise MirrorSkipped(
                f"at {highest:.2g} requests/s a load of {duration_s:.0f} s has fewer than {LEAST_REQUESTS} requests"
            )
        step = 10 ** (math.floor(math.log10(highest)) - 1)
        rate = round(math.floor(highest / step) * step, 6)
        made = index.made + 1
        kind = TrafficKind(
            name=f"mirror-{host.name}-{made}",
            tier=tier,
            requests_per_s=recent.requests_per_s,
            load=recent.load(host.config.load, target_qps=rate, duration_s=round(duration_s)),
            last_seen_s=recent.until_s,
        )
    others = sorted((one for one in index.kinds if one.name != kind.name), key=lambda one: -one.last_seen_s)
    for dropped in others[KINDS - 1 :]:
        shutil.rmtree(folder / dropped.name, ignore_errors=True)
        if host.baselines_dir is not None:
            BaselineStore(host.baselines_dir).remove(dropped.name)
    write_atomically(
        folder / INDEX_NAME,
        TrafficKinds(kinds=(kind, *others[: KINDS - 1]), made=made).model_dump_json(indent=1),
    )
    return kind


def _read_index(folder: Path) -> TrafficKinds:
    try:
        return TrafficKinds.model_validate_json((folder / INDEX_NAME).read_bytes())
    except (OSError, ValidationError):
        return TrafficKinds()  # none yet, or one of another version: kinds are learned anew


async def _compared(out_dir: Path, store: BaselineStore, name: str) -> Comparison:
    """Compare the load with a baseline in a child, since the bot would keep numpy's 14 MB. Raises LoadTestBroken."""
    words = ("compare", str(out_dir), name, "--store", str(store.folder), "--json")
    argv = [
        sys.executable,
        "-m",
        "gpu_actions.loadtest",
        *words,
        "--tolerance-percent",
        f"{TOLERANCE_PERCENT:g}",
    ]
    done = await run_process(argv, timeout_s=COMPARE_TIMEOUT_S)
    try:
        return Comparison.model_validate_json(done.stdout)
    except ValidationError as error:
        raise LoadTestBroken(
            f"the comparison ended with {done.exit_code}: {redacted_tail(done.stderr, 300)}"
        ) from error


async def _judge(host: Host, kind: TrafficKind, result: LoadTestResult, out_dir: Path) -> Mirrored:
    """Judge a finished load by its own limits, and by the baseline of its kind of traffic. Learn from it if there is none."""
    store = BaselineStore(host.baselines_dir or host.state_dir / FOLDER)
    figures = f"{result.requests.ok} of {result.requests.sent} mirrored requests served"
    try:
        baseline = await asyncio.to_thread(store.current_for, result)
    except BaselineError:
        baseline = None
    comparison = None
    if baseline is not None and baseline.engine.version == result.engine.version:
        comparison = await _compared(out_dir, store, baseline.name)
    if result.verdict is RunVerdict.FAILED:
        why = f"the mirrored load failed: {'; '.join(result.reasons[:2])}"
        return Mirrored(_bad(result, why, comparison), result, comparison)
    if comparison is None:
        folder = host.state_dir / FOLDER / kind.name
        learned = await asyncio.to_thread(_learn, store, kind, folder, out_dir, result)
        return Mirrored(_healthy(f"{figures}; within its limits, {learned}"), result)
    against = f"against {comparison.baseline_name}: {'; '.join(comparison.reasons[:2])}"
    if comparison.verdict is Change.REGRESSED:
        return Mirrored(
            _bad(result, f"the mirrored load regressed {against}", comparison), result, comparison
        )
    if not comparison.passed:
        raise MirrorSkipped(f"{comparison.verdict.value} {against}")
    return Mirrored(_healthy(f"{figures}; {comparison.verdict.value} {against}"), result, comparison)


def _learn(
    store: BaselineStore, kind: TrafficKind, folder: Path, out_dir: Path, result: LoadTestResult
) -> str:
    """Keep a passed run. With enough of them record the baseline of the kind. Return how far that is."""
    kept = [read_result(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    kept = [one for one in kept if one.engine.version == result.engine.version]
    kept = [
        one for one in kept if one.workload == result.workload and one.host.hostname == result.host.hostname
    ]
    if len(kept) + 1 < LEARNED_RUNS:
        folder.mkdir(parents=True, exist_ok=True)
        started = "".join(char for char in result.times.started_at if char.isdigit())
        shutil.copyfile(out_dir / JSON_NAME, folder / f"{started}.json")
        return f"run {len(kept) + 1} of {LEARNED_RUNS} for the baseline of this kind of traffic"
    baseline = make_baseline(kind.name, [*kept, result])
    store.save(baseline, replace=True)
    store.set_current(kind.name)
    shutil.rmtree(folder, ignore_errors=True)
    return f"recorded the baseline {kind.name}"


def _healthy(summary: str) -> Verdict:
    return Verdict(verdict=VerdictKind.HEALTHY, cause="none", summary=summary)


def _bad(result: LoadTestResult, why: str, comparison: Comparison | None) -> Verdict:
    """Return the verdict of a load that regressed or failed. It alone never means fall back: triage decides that."""
    erred = result.error_percent > result.limits.max_error_percent
    cause = "engine_errors" if erred else "serving_regression"
    finding = Finding(
        id=ERRORS if erred else REGRESSION,
        component="serving",
        severity=Severity.WATCH,
        summary=why,
        evidence={
            "workload": result.workload.model_dump(mode="json"),
            "errors": [one.model_dump(mode="json") for one in result.errors],
            "comparison": None if comparison is None else comparison.model_dump(mode="json"),
        },
        action="Compare with the hardware findings, and check the load. To repeat it at the full rate: "
        "/loadtest start workload=recent",
    )
    return Verdict(
        verdict=VerdictKind.WATCH, cause=cause, summary=why, findings=(finding,), action=finding.action
    )


SKIPPED = (MirrorSkipped, RouterError, EngineError)
"""Raised where nothing was measured. That a router or an engine does not answer is for the other monitors to say."""
