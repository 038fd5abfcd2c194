"""Does the tier use PCIe although its links are up? P2P status, the tier's environment, and the slots themselves."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from gpu_actions.models import Finding
from gpu_actions.snapshot.collectors.environment import EnvironmentReading
from gpu_actions.snapshot.collectors.nvml import GpuReading, NvmlReading
from gpu_actions.triage.check import Check, CheckContext, count
from gpu_actions.triage.gpu_models import expected_links, model_facts
from gpu_actions.triage.rule import CRITICAL, INFO, OK, UNKNOWN, WATCH, Rules, rule

RULES = Rules(
    rule("pcie.ok", OK, "the GPUs reach each other over NVLink", source="NVML P2P"),
    rule(
        "pcie.p2p_off", CRITICAL, "links are up, but NVLink P2P between two GPUs is not OK: their traffic uses PCIe",
        "Fall back. Check the driver's registry keys, IOMMU and ACS, then restart the tier.",
        source="NVML P2P status, index NVLINK", cause="pcie_only",
    ),
    rule(
        "pcie.environment", CRITICAL,
        "the running tier has NCCL_P2P_DISABLE or NCCL_P2P_LEVEL=LOC set: it uses PCIe although its links are up",
        "Remove the variable from the unit's environment and restart the tier, on the fallback or at a quiet time.",
        source="NCCL environment variables; measured on 2xH100: 27.5 instead of 331 GB/s", cause="pcie_only",
    ),
    rule(
        "pcie.degraded", WATCH, "a slot has fewer lanes, a lower generation under load, or many replays",
        "Reseat or service the GPU at the next quiet time.", source="NVML PCIe counters", cause="pcie_degraded",
        threshold="pcie_replay_per_min",
    ),
    rule(
        "pcie.unread", UNKNOWN,
        "P2P status or the tier's environment could not be read: a PCIe-only tier cannot be excluded",
        "Run triage as root or as the tier's user.", source="NVML, /proc/PID/environ",
    ),
    rule(
        "pcie.visible_devices", WATCH,
        "CUDA_VISIBLE_DEVICES of the running tier lists fewer GPUs than the tier needs",
        "Remove the leftover variable from the unit's environment before the next start.",
        source="/proc/PID/environ of the main process", cause="environment",
    ),
    rule(
        "pcie.variables", INFO, "the running tier has other NCCL_* or CUDA_* variables set",
        source="/proc/PID/environ",
    ),
)  # fmt: skip

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
"""NVML topology levels: the route of a pair without NVLink."""


def check_pcie(context: CheckContext) -> Iterator[Finding]:
    """Judge how the GPUs reach each other and the host."""
    if not context.has_gpus:
        return
    nvml = context.snapshot.nvml
    findings: list[Finding] = []
    linked: set[int] = set()
    if nvml is not None:
        linked = {gpu.index for gpu in nvml.whole_gpus if gpu.active_links}
        if sum(bool(expected_links(context.snapshot, gpu)) for gpu in nvml.whole_gpus) > 1:
            findings += _p2p(context, nvml, linked)
        for gpu in nvml.gpus:
            if gpu.error is None:
                findings += _slot(context, gpu, nvml.window_s or context.snapshot.window_s)
    findings += _environment(context, has_links=bool(linked) or nvml is None)
    yield from findings
    if len(linked) > 1 and not any(finding.id != "pcie.variables" for finding in findings):
        yield RULES.finding("pcie.ok", f"{count(len(linked), 'GPU')} reach each other over NVLink")


def _p2p(context: CheckContext, nvml: NvmlReading, linked: set[int]) -> Iterator[Finding]:
    pairs = [pair for pair in nvml.pairs if pair.first in linked and pair.second in linked]
    off = [pair for pair in pairs if pair.nvlink_p2p not in (None, 0)]
    uuids = {gpu.index: gpu.uuid for gpu in nvml.gpus}
    expected = {pair: context.baseline.expects_nvlink(uuids[pair.first], uuids[pair.second]) for pair in off}
    by_design = bool(off) and is_bridged(context, nvml, linked)
    off = [pair for pair in off if expected[pair] or (expected[pair] is None and not by_design)]
    if off:
        first = off[0]
        route = ANCESTORS.get(
            -1 if first.common_ancestor is None else first.common_ancestor, "an unknown route"
        )
        yield RULES.finding(
            "pcie.p2p_off",
            f"GPU {first.first} and GPU {first.second}: NVLink P2P status {first.nvlink_p2p} on active links "
            f"(PCIe over {route})" + (f", and {len(off) - 1} more pairs" if len(off) > 1 else ""),
            pairs=[pair.model_dump() for pair in off[:64]],
        )
    unread = sum(pair.nvlink_p2p is None for pair in pairs)
    if unread or (len(linked) > 1 and not pairs):
        yield RULES.finding(
            "pcie.unread",
            f"P2P status of {count(unread, 'pair')} could not be read: {nvml.pairs_unread or 'not reached'}"
            if unread
            else "the P2P status was not reached",
            field="p2p",
            reason=nvml.pairs_unread,
        )


def is_bridged(context: CheckContext, nvml: NvmlReading, linked: set[int]) -> bool:
    """Return True if the GPUs are bridged in groups, mostly pairs, by design: no switch, each fully linked within its group.

    Such PCIe cards have no NVLink between the groups. A board whose links lead to more peers than it reaches is broken instead.
    """
    gpus = [gpu for gpu in nvml.whole_gpus if gpu.index in linked]
    groups = {gpu.index: {gpu.index} for gpu in gpus}
    for pair in nvml.pairs:
        if pair.nvlink_p2p == 0 and pair.first in groups and pair.second in groups:
            groups[pair.first].add(pair.second)
            groups[pair.second].add(pair.first)
    for gpu in gpus:
        group = groups[gpu.index]
        ends = {link.remote_pci for link in gpu.links if link.active and link.remote_pci}
        if (
            any(link.remote_kind == "switch" for link in gpu.links)
            or len(group) < 2
            or len(ends) >= len(group)
        ):
            return False
        if any(groups[member] != group for member in group):
            return False
        if gpu.active_links < (expected_links(context.snapshot, gpu) or 0):
            return False
        if not ends and model_facts(gpu.name) is not None:
            return False  # a model with a full fabric, and nothing that proves another board
    return True


def _slot(context: CheckContext, gpu: GpuReading, window_s: float) -> Iterator[Finding]:
    problems: list[str] = []
    if gpu.pcie_width is not None and gpu.pcie_width_max is not None and gpu.pcie_width < gpu.pcie_width_max:
        problems.append(f"x{gpu.pcie_width} of x{gpu.pcie_width_max}")
    samples = (gpu.first, gpu.latest)
    generation = max((sample.pcie_generation or 0 for sample in samples), default=0)
    busy = all((sample.utilisation_percent or 0) >= BUSY_PERCENT for sample in samples)
    if busy and 0 < generation < (gpu.pcie_generation_max or 0):
        problems.append(f"Gen{generation} of Gen{gpu.pcie_generation_max} under load")
    before, after = gpu.first.pcie_replays, gpu.latest.pcie_replays
    if before is not None and after is not None and window_s > 0:
        per_minute = max(0, after - before) * 60 / window_s
        if per_minute > context.thresholds.pcie_replay_per_min:
            problems.append(f"{per_minute:.0f} replays per minute")
    if problems:
        yield RULES.on_gpu(
            gpu, "pcie.degraded", f"PCIe {', '.join(problems)}", problems=problems, pci=gpu.pci
        )


def _environment(context: CheckContext, *, has_links: bool) -> Iterator[Finding]:
    snapshot = context.snapshot
    needs_links = has_links and snapshot.expected.links != 0 and snapshot.expected.gpus != 1
    environment = snapshot.environment
    if environment is None:
        if snapshot.failed("environment") and needs_links and snapshot.expected.tier_expected:
            yield RULES.finding(
                "pcie.unread",
                f"the tier's environment: {snapshot.why_not('environment')}",
                field="environment",
                reason="no_permission",
            )
        return
    for name, value, pids in _switched_off(environment):
        if needs_links:
            yield RULES.finding(
                "pcie.environment",
                f"{name}={value} in {count(len(pids), 'process', 'processes')} of the running tier",
                variable=name,
                value=value,
                pids=list(pids[:32]),
            )
    yield from _visible_devices(context, environment)
    if environment.values or environment.names_only:
        names = ", ".join(sorted({*environment.values, *environment.names_only}))
        evidence: dict[str, Any] = {name: sorted(values) for name, values in environment.values.items()}
        yield RULES.finding("pcie.variables", f"set in the tier: {names}", **evidence)


def _switched_off(environment: EnvironmentReading) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield the variables that switch P2P off: name, value, processes."""
    for value, pids in environment.values.get("NCCL_P2P_DISABLE", {}).items():
        if value.strip() not in ("", "0"):
            yield "NCCL_P2P_DISABLE", value, pids
    for name, values in OFF_VALUES.items():
        for value, pids in environment.values.get(name, {}).items():
            if value.strip().upper() in values:
                yield name, value, pids


def _visible_devices(context: CheckContext, environment: EnvironmentReading) -> Iterator[Finding]:
    expected, ranks = context.snapshot.expected, context.snapshot.ranks
    roots = set(ranks.roots if ranks is not None else ())
    needed = expected.ranks or expected.gpus
    if not needed or expected.tier != "tp":
        return
    for value, pids in environment.values.get("CUDA_VISIBLE_DEVICES", {}).items():
        shown = [part for part, _ in groupby(value.split(",")) if part.strip()]
        if roots & set(pids) and len(shown) < needed:
            yield RULES.finding(
                "pcie.visible_devices",
                f"CUDA_VISIBLE_DEVICES={value} lists {count(len(shown), 'GPU')} of {needed}",
                value=value,
                needed=needed,
            )


PCIE = Check(
    title="PCIe and P2P", rules=RULES, reads=frozenset({"nvml", "environment", "ranks"}), judge=check_pcie
)
