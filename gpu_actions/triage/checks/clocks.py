"""Heat, power and clocks: does a GPU run slower than it should, or than its peers, which then wait for it?"""

from collections.abc import Iterator
from statistics import median

from gpu_actions.models import Finding
from gpu_actions.snapshot.collectors.nvml import GpuReading, NvmlReading
from gpu_actions.triage.check import Check, CheckContext
from gpu_actions.triage.rule import WATCH, Rules, rule

RULES = Rules(
    rule(
        "gpu.thermal", WATCH,
        "heat slows the GPU down (event reasons 0x20, 0x40), or it is near its slowdown temperature",
        "Check fans, inlet temperature and neighbouring GPUs; lower the power limit if it stays hot.",
        source="NVML clocks event reasons", cause="thermal", threshold="temperature_margin_c",
    ),
    rule(
        "gpu.slowdown", WATCH, "hardware slowdown or power brake (event reasons 0x8, 0x80) in both samples",
        "Check power supplies and the rack's power limit.", source="NVML clocks event reasons", cause="throttling",
    ),
    rule(
        "gpu.clock_low", WATCH, "the clock of a busy GPU is far below its maximum, and NVML names no reason",
        "Run nvidia-smi -q -d CLOCK,PERFORMANCE. Lift a clock limit (nvidia-smi -rgc), or reset the GPU at a quiet time.",
        source="NVML SM clock, utilisation and clocks event reasons", cause="throttling", threshold="clock_low_share",
    ),
    rule(
        "gpu.straggler", WATCH, "one GPU of several runs slower than the others, which wait for it at each collective",
        "Look at this GPU first: its power limit, its cooling, its clocks. The others are not at fault.",
        source="SM clocks of the busy GPUs compared", cause="throttling", threshold="straggler_share",
    ),
    rule(
        "gpu.power_limit", WATCH, "one GPU of several has a lower power limit than the others of its model",
        "Find out who set it, or whether the board or the rack limits it: nvidia-smi -q -d POWER. Set it back with -pl.",
        source="NVML enforced power limits compared", cause="throttling", threshold="straggler_share",
    ),
)  # fmt: skip

HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x8, 0x20, 0x40, 0x80
CLOCK_SETTING, SW_POWER_CAP, SYNC_BOOST = 0x2, 0x4, 0x10
"""NVML's clocks event reasons."""
NAMED_LIMITS = CLOCK_SETTING | SW_POWER_CAP | SYNC_BOOST
"""Reasons that explain a low clock and are no fault."""
BUSY_PERCENT = 50


def check_clocks(context: CheckContext) -> Iterator[Finding]:
    """Judge how fast the GPUs run."""
    nvml = context.snapshot.nvml
    if not context.has_gpus or nvml is None:
        return
    for gpu in nvml.gpus:
        if gpu.error is None:
            yield from _heat(context, gpu)
    yield from _stragglers(context, nvml)
    yield from _power_limits(context, nvml)


def _heat(context: CheckContext, gpu: GpuReading) -> Iterator[Finding]:
    latest = gpu.latest
    lasting = (gpu.first.event_reasons or 0) & (latest.event_reasons or 0)
    limit_c = context.thresholds.temperature_watch_c
    if gpu.slowdown_temperature_c:
        limit_c = gpu.slowdown_temperature_c - context.thresholds.temperature_margin_c
    is_slowed = bool(lasting & (SW_THERMAL | HW_THERMAL))
    evidence = {
        "event_reasons": f"{lasting:#x}",
        "temperature_c": latest.temperature_c,
        "limit_c": limit_c,
        "power_w": latest.power_w,
        "sm_clock_mhz": latest.sm_clock_mhz,
    }
    if is_slowed or (latest.temperature_c is not None and latest.temperature_c >= limit_c):
        temperature = "temperature unknown" if latest.temperature_c is None else f"{latest.temperature_c} C"
        yield RULES.on_gpu(
            gpu, "gpu.thermal", temperature + (", slowed down by heat" if is_slowed else ""), **evidence
        )
    if lasting & (POWER_BRAKE | HW_SLOWDOWN) and not lasting & HW_THERMAL:
        what = "power brake" if lasting & POWER_BRAKE else "hardware slowdown"
        yield RULES.on_gpu(gpu, "gpu.slowdown", what, **evidence)


def _is_busy(gpu: GpuReading) -> bool:
    """Return True if it was busy at both ends of the window."""
    used = [sample.utilisation_percent for sample in (gpu.first, gpu.latest)]
    return all(percent is not None and percent >= BUSY_PERCENT for percent in used)


def _clock_mhz(gpu: GpuReading) -> int | None:
    """Return the higher of its two clock readings: a moment of waiting does not make it slow."""
    clocks = [clock for sample in (gpu.first, gpu.latest) if (clock := sample.sm_clock_mhz) is not None]
    return max(clocks, default=None)


def _stragglers(context: CheckContext, nvml: NvmlReading) -> Iterator[Finding]:
    """Find a busy GPU that is slower than its busy peers, and one whose clock is low without a reason.

    A GPU whose reason NVML names (heat, power brake) has a finding of its own; a power cap that only one has is its reason.
    """
    limits = context.thresholds
    busy = [gpu for gpu in nvml.gpus if gpu.error is None and not gpu.mig and _is_busy(gpu)]
    for gpu in busy:
        clock, reasons = _clock_mhz(gpu), (gpu.first.event_reasons or 0) & (gpu.latest.event_reasons or 0)
        peers = [
            other_clock
            for other in busy
            if other is not gpu and other.name == gpu.name and (other_clock := _clock_mhz(other)) is not None
        ]
        if clock is None or reasons & (HW_SLOWDOWN | SW_THERMAL | HW_THERMAL | POWER_BRAKE):
            continue
        capped = ", at its power limit" if reasons & SW_POWER_CAP else ""
        evidence = {"sm_clock_mhz": clock, "event_reasons": f"{reasons:#x}", "power_w": gpu.latest.power_w}
        usual = median(peers) if len(peers) >= 2 else None
        if usual is not None and clock < limits.straggler_share * usual:
            text = f"{clock} MHz under load{capped}, the others run at {usual:.0f} MHz and wait for it"
            yield RULES.on_gpu(gpu, "gpu.straggler", text, usual_mhz=usual, **evidence)
        elif (
            gpu.max_sm_clock_mhz
            and clock < limits.clock_low_share * gpu.max_sm_clock_mhz
            and not reasons & NAMED_LIMITS
        ):
            text = f"{clock} MHz under load, {gpu.max_sm_clock_mhz} MHz are possible, no reason given"
            yield RULES.on_gpu(gpu, "gpu.clock_low", text, max_sm_clock_mhz=gpu.max_sm_clock_mhz, **evidence)


def _power_limits(context: CheckContext, nvml: NvmlReading) -> Iterator[Finding]:
    """Find a GPU with a lower power limit than its peers: under load it will be the one that the others wait for."""
    limited = [gpu for gpu in nvml.gpus if gpu.error is None and gpu.power_limit_w]
    for gpu in limited:
        peers = [one.power_limit_w or 0 for one in limited if one is not gpu and one.name == gpu.name]
        usual = median(peers) if len(peers) >= 2 else 0
        if (gpu.power_limit_w or 0) < context.thresholds.straggler_share * usual:
            text = f"power limit {gpu.power_limit_w:.0f} W, the others have {usual:.0f} W"
            yield RULES.on_gpu(gpu, "gpu.power_limit", text, power_limit_w=gpu.power_limit_w, usual_w=usual)


CLOCKS = Check(title="Heat, power and clocks", rules=RULES, reads=frozenset({"nvml"}), judge=check_clocks)
