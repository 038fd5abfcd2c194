"""What the knee of a tier says about its limits: how many requests at once, how many may wait, and for how long.

At the knee the tier works on as many requests as its rate times the time that it works on one (Little's law): the time of an
answer less the part in which the request only waits. Those that wait at the router leave the queue at the knee's rate, so the
queue is as long as the TTFT limit allows; a tenth of it is left for variation.
"""

import datetime
import math
from collections.abc import Mapping
from typing import NamedTuple

from gpu_actions.config.host import TierName
from gpu_actions.host import Host
from gpu_actions.loadtest.knee_result import KneeResult, read_knee
from gpu_actions.loadtest.result import RunVerdict
from gpu_actions.models import Frozen
from gpu_actions.serving.registry import ENGINES
from gpu_actions.serving.routers.base import BackPressure
from gpu_actions.system.files import write_atomically

QUEUE_SHARE = 0.9
MOST_CONCURRENT, MOST_QUEUED = 256, 10_000
"""The largest values that the settings accept."""


class OfferedLimits(Frozen):
    """The limits that a knee offers. `max_concurrent` also suits the engine's batch."""

    max_concurrent: int
    max_queue: int
    queue_timeout_s: float

    @property
    def text(self) -> str:
        return (
            f"at most {self.max_concurrent} requests at once (also the engine's batch), {self.max_queue} waiting, "
            f"for at most {self.queue_timeout_s:g} s"
        )


def limits_of(result: KneeResult) -> OfferedLimits | None:
    """Return the limits that a knee offers, or None where it is not known or had no latencies."""
    at, rate = result.knee_trial, result.knee_qps
    if result.verdict is not RunVerdict.PASSED or result.reached_cap or at is None or not rate:
        return None  # a knee above the cap is not known
    unloaded_ms = min((one.ttft_p50_ms for one in result.trials if one.ttft_p50_ms is not None), default=None)
    if at.e2e_p50_ms is None or at.ttft_p50_ms is None or unloaded_ms is None:
        return None
    working_s = (at.e2e_p50_ms - (at.ttft_p50_ms - unloaded_ms)) / 1000
    wait_s = QUEUE_SHARE * max(0.0, result.slo_ttft_ms - unloaded_ms) / 1000
    return OfferedLimits(
        max_concurrent=min(max(2, math.ceil(rate * working_s - 0.1)), MOST_CONCURRENT),
        max_queue=min(max(1, math.floor(rate * wait_s)), MOST_QUEUED),
        queue_timeout_s=max(0.1, round(wait_s, 1)),
    )


def keep_knee(host: Host, tier: TierName, result: KneeResult) -> None:
    """Keep a knee that was found on the tier itself as the latest of it, where the host has a folder for that."""
    path = host.knee_path(tier)
    if path is not None and result.verdict is RunVerdict.PASSED:
        write_atomically(path, result.model_dump_json())


class KnownKnee(NamedTuple):
    """The latest knee of a tier, or why there is none that counts."""

    result: KneeResult | None
    problem: str = ""

    @property
    def text(self) -> str:
        """Return what it is, for plans: rate, limit and day."""
        if self.result is None:
            return self.problem
        day = datetime.datetime.fromisoformat(self.result.started_at).strftime("%Y-%m-%d")
        return f"the knee of {day} ({self.result.knee_qps:.3g} requests/s, TTFT p99 {self.result.slo_ttft_ms:g} ms)"


def latest_knee(host: Host, tier: TierName) -> KnownKnee:
    """Return the latest knee of the tier as it is configured now. A knee of another model or size does not count."""
    path, config = host.knee_path(tier), host.tiers[tier].config
    if path is None or not path.exists():
        return KnownKnee(None, f"no knee of the tier {tier} was measured")
    try:
        result = read_knee(path)
    except ValueError as error:
        return KnownKnee(None, f"the knee of the tier {tier} cannot be read ({error})")
    work = result.workload
    was = (work.model, work.gpus, work.tensor_parallel)
    if was != (config.engine.model, config.gpus, config.ranks):
        return KnownKnee(
            None, f"the last knee of the tier {tier} is of {was[0]} on {was[1]} GPUs, {was[2]} ranks"
        )
    return KnownKnee(result)


class FallbackLimits(NamedTuple):
    """The limits of a fallback: what replaces the configured ones, all that will be in force, and sentences for the plan."""

    given: Mapping[str, int]
    pressure: BackPressure
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def fallback_limits(host: Host) -> FallbackLimits:
    """Return the limits of the fallback: the latest knee's where the settings name none. What they name is never replaced."""
    configured = host.config.router.back_pressure
    if (own := getattr(host.fallback.config, "max_concurrent", None)) is not None:
        long_share = min(configured.long_share, max(1, own // 4))
        given = {"max_concurrent": own, "long_share": long_share}
        pressure = configured.model_copy(update=given)
        return FallbackLimits(given, pressure, notes=(f"limits of rung {host.rung} in the settings",))
    knee = latest_knee(host, "fallback")
    offered = None if knee.result is None else limits_of(knee.result)
    if offered is None:
        problem = knee.problem or f"{knee.text} offers no limits"
        return FallbackLimits({}, configured, notes=(f"limits of the settings: {problem}",))
    named = configured.model_fields_set
    wanted = {"max_concurrent": offered.max_concurrent, "max_queue": offered.max_queue}
    given = {name: value for name, value in wanted.items() if name not in named}
    if given.get("max_concurrent", configured.max_concurrent) <= configured.long_share:
        if "long_share" in named:
            del given["max_concurrent"]
        else:
            given["long_share"] = max(1, given["max_concurrent"] // 4)
    notes, warnings = [], []
    for name, value in wanted.items():
        setting = getattr(configured, name)
        if name in given:
            notes.append(f"{name} {value} from {knee.text}; the settings name none (default {setting})")
        elif setting != value:
            warnings.append(
                f"router.back_pressure.{name} is {setting} in the settings and stays so; {knee.text} offers {value}"
            )
    if abs(offered.queue_timeout_s - configured.queue_timeout_s) > 0.25 * configured.queue_timeout_s:
        notes.append(
            f"proposed: router.back_pressure.queue_timeout_s = {offered.queue_timeout_s:g} "
            f"(now {configured.queue_timeout_s:g}), which needs a restart of the router"
        )
    if proposal := _batch_proposal(host, offered):
        notes.append(proposal)
    pressure = BackPressure.model_validate({**configured.model_dump(), **given})
    return FallbackLimits(given, pressure, tuple(notes), tuple(warnings))


def _batch_proposal(host: Host, offered: OfferedLimits) -> str:
    """Return which batch the engine's command line should name; empty if it does or the engine takes none."""
    flag = ENGINES[host.fallback.config.engine.kind].batch_flag
    if not flag:
        return ""
    words = host.fallback.config.command_words
    now = words[words.index(flag) + 1] if flag in words[:-1] else "not named" if words else "not known here"
    if now == str(offered.max_concurrent):
        return ""
    return f"proposed: start the fallback's engine with {flag} {offered.max_concurrent} (now {now})"
