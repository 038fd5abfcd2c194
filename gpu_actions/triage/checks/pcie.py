"""Is the tier on PCIe although its links are up? P2P status, the tier's environment, and the slots themselves."""

from collections.abc import Iterator
from itertools import groupby

from gpu_actions.models import Finding
from gpu_actions.snapshot.collectors.environment import EnvironmentReading
from gpu_actions.snapshot.collectors.nvml import GpuReading, NvmlReading
from gpu_actions.triage.checks.context import CheckContext, count, make_finding
from gpu_actions.triage.checks.gpus import name_of
from gpu_actions.triage.checks.nvlink import expected_links, usable_gpus

OFF_VALUES = {"NCCL_P2P_LEVEL": ("LOC", "0")}
BUSY_PERCENT = 50
ANCESTORS = {
    0: "one board",
    10: "one PCIe switch",
    20: "several switches",
    30: "one host bridge",
    40: "one CPU",
    50: "two CPUs",
}
"""NVML topology levels: how the pair would talk without NVLink."""


def check_pcie(context: CheckContext) -> Iterator[Finding]:
    """Findings on the way between GPUs."""
    if not context.has_gpus:
        return
    nvml = context.snapshot.nvml
    findings: list[Finding] = []
    linked: list[GpuReading] = []
    if nvml is not None:
        linked = [gpu for gpu in usable_gpus(nvml) if any(link.active for link in gpu.links)]
        needed = [gpu for gpu in usable_gpus(nvml) if expected_links(context, gpu, nvml)]
        if len(needed) > 1:
            findings += _p2p(nvml, {gpu.index for gpu in linked})
        for gpu in nvml.gpus:
            if gpu.error is None:
                findings += _slot(context, gpu, nvml.window_s or context.snapshot.window_s)
    findings += _environment(context, has_links=bool(linked) or nvml is None)
    yield from findings
    if len(linked) > 1 and not any(finding.id != "pcie.variables" for finding in findings):
        yield make_finding("pcie.ok", f"{count(len(linked), 'GPU')} reach each other over NVLink")


def _p2p(nvml: NvmlReading, linked: set[int]) -> Iterator[Finding]:
    both = [pair for pair in nvml.pairs if pair.first in linked and pair.second in linked]
    off = [pair for pair in both if pair.nvlink_p2p is not None and pair.nvlink_p2p != 0]
    if off:
        first = off[0]
        route = ANCESTORS.get(
            -1 if first.common_ancestor is None else first.common_ancestor, "an unknown route"
        )
        yield make_finding(
            "pcie.p2p_off",
            f"GPU {first.first} and {first.second}: NVLink P2P status {first.nvlink_p2p} on active links (PCIe over {route})"
            + (f", and {len(off) - 1} more pairs" if len(off) > 1 else ""),
            evidence={"pairs": [pair.model_dump() for pair in off[:64]]},
        )
    unread = [pair for pair in both if pair.nvlink_p2p is None]
    if unread or (len(linked) > 1 and not both):
        yield make_finding(
            "pcie.unread",
            f"P2P status of {count(len(unread), 'pair')} could not be read: {nvml.pairs_unread or 'not reached'}"
            if unread
            else "P2P status was not reached",
            evidence={"reason": nvml.pairs_unread},
        )


def _slot(context: CheckContext, gpu: GpuReading, window_s: float) -> Iterator[Finding]:
    problems: list[str] = []
    if gpu.pcie_width is not None and gpu.pcie_width_max is not None and gpu.pcie_width < gpu.pcie_width_max:
        problems.append(f"x{gpu.pcie_width} of x{gpu.pcie_width_max}")
    busy = min(gpu.first.utilisation_percent or 0, gpu.latest.utilisation_percent or 0) >= BUSY_PERCENT
    generations = [
        sample.pcie_generation for sample in (gpu.first, gpu.latest) if sample.pcie_generation is not None
    ]
    if (
        busy
        and gpu.pcie_generation_max is not None
        and generations
        and max(generations) < gpu.pcie_generation_max
    ):
        problems.append(f"Gen{max(generations)} of Gen{gpu.pcie_generation_max} under load")
    before, after = gpu.first.pcie_replays, gpu.latest.pcie_replays
    if before is not None and after is not None and window_s > 0:
        per_minute = max(0, after - before) * 60 / window_s
        if per_minute > context.thresholds.pcie_replay_per_min:
            problems.append(f"{per_minute:.0f} replays a minute")
    if problems:
        yield make_finding(
            "pcie.degraded",
            f"{gpu.label}: {', '.join(problems)}",
            evidence={"problems": problems, "pci": gpu.pci},
            subject=name_of(gpu),
        )


def _environment(context: CheckContext, *, has_links: bool) -> Iterator[Finding]:
    snapshot = context.snapshot
    wants_links = has_links and snapshot.expected.links != 0 and snapshot.expected.gpus != 1
    environment = snapshot.environment
    if environment is None:
        known = snapshot.collectors.get("environment")
        if known is not None and known.status == "failed" and wants_links and snapshot.expected.tier_expected:
            yield make_finding("pcie.unread", f"the tier's environment: {known.reason}")
        return
    for name, value, pids in _off(environment):
        if wants_links:
            yield make_finding(
                "pcie.environment",
                f"{name}={value} in {count(len(pids), 'process', 'processes')} of the running tier",
                evidence={"variable": name, "value": value, "pids": list(pids[:32])},
            )
    yield from _visible(context, environment)
    if environment.values or environment.names_only:
        yield make_finding(
            "pcie.variables",
            f"set in the tier: {', '.join(sorted({*environment.values, *environment.names_only}))}",
            evidence={name: sorted(values) for name, values in environment.values.items()},
        )


def _off(environment: EnvironmentReading) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Variables that switch P2P off, with their processes."""
    for value, pids in environment.values.get("NCCL_P2P_DISABLE", {}).items():
        if value.strip() not in ("", "0"):
            yield "NCCL_P2P_DISABLE", value, pids
    for name, values in OFF_VALUES.items():
        for value, pids in environment.values.get(name, {}).items():
            if value.strip().upper() in values:
                yield name, value, pids


def _visible(context: CheckContext, environment: EnvironmentReading) -> Iterator[Finding]:
    """A main process that sees fewer GPUs than its tier has ranks."""
    ranks, roots = context.snapshot.expected.ranks, set(_roots(context))
    needed = ranks or context.snapshot.expected.gpus
    if not needed or context.snapshot.expected.tier != "tp":
        return
    for value, pids in environment.values.get("CUDA_VISIBLE_DEVICES", {}).items():
        shown = [part for part, _ in groupby(value.split(",")) if part.strip()]
        if roots & set(pids) and len(shown) < needed:
            yield make_finding(
                "pcie.visible_devices",
                f"CUDA_VISIBLE_DEVICES={value} shows {count(len(shown), 'GPU')} of {needed}",
                evidence={"value": value, "needed": needed},
            )


def _roots(context: CheckContext) -> tuple[int, ...]:
    return context.snapshot.ranks.roots if context.snapshot.ranks is not None else ()
