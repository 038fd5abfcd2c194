"""Which GPUs can serve in a fallback, and which of them reach each other over NVLink: pure, from a snapshot."""

from collections.abc import Iterable, Sequence
from itertools import combinations

from gpu_actions.models import Finding, GpuHealth, Severity
from gpu_actions.snapshot.collectors.nvml import GpuReading, LinkReading
from gpu_actions.snapshot.kernel_log_lines import normal_pci
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.triage.registry import RULES

LINK_COMPONENTS = ("nvlink", "fabric", "pcie")
LINK_CAUSES = ("nvlink_loss", "nvlink_partial", "nvlink_errors", "pcie_only", "fabric_manager_down")
"""Causes that matter only to a tier of several GPUs."""

NOT_ABOUT_THE_GPU = ("gpu.ok", "gpu.memory_held", "kernel_log.application")
BETWEEN_ALL = ("fabric", "kernel_log", "deep")
"""Components whose critical findings about links concern every GPU, unless they name one."""


def about_gpus(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Return the findings that count, by their subject."""
    about: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.subject and finding.id not in NOT_ABOUT_THE_GPU and finding.severity is not Severity.OK:
            about.setdefault(finding.subject, []).append(finding)
    return about


def rules_out(finding: Finding) -> bool:
    """Return True if a GPU with this finding cannot serve alone. Lost links do not matter to a single GPU."""
    return (finding.component not in LINK_COMPONENTS and finding.severity is Severity.CRITICAL) or (
        finding.id in ("gpu.row_remap_pending", "gpu.unread", "gpu.prohibited")
    )


def why_not(gpu: GpuReading, snapshot: Snapshot, findings: Iterable[Finding]) -> str:
    """Return why a GPU cannot serve, from the findings about it; empty if it can."""
    if gpu.error is not None or not gpu.uuid:
        return f"it could not be read: {gpu.error or 'it has no UUID'}"
    if gpu.mig:
        return "it is partitioned (MIG)"
    if snapshot.nvml is not None and gpu.index == snapshot.nvml.hung_gpu:
        return "the driver hangs on it"
    return next((finding.summary for finding in findings if rules_out(finding)), "")


def gpu_health(snapshot: Snapshot, findings: Sequence[Finding]) -> tuple[GpuHealth, ...]:
    """Return what is known of every GPU that the driver lists, for a fallback; empty without GPUs."""
    nvml = snapshot.nvml
    if nvml is None or snapshot.expected.gpus == 0:
        return ()
    about = about_gpus(findings)
    reaches = nvlink_peers(snapshot, findings)
    return tuple(
        GpuHealth(
            uuid=gpu.uuid,
            index=gpu.index,
            ruled_out=why_not(gpu, snapshot, about.get(gpu.subject, ())),
            findings=sum(row.severity is not Severity.INFO for row in about.get(gpu.subject, ())),
            reaches=tuple(sorted(reaches[gpu.index])),
        )
        for gpu in nvml.gpus
    )


def nvlink_peers(snapshot: Snapshot, findings: Sequence[Finding]) -> dict[int, set[int]]:
    """Return, for each GPU, those that it reaches over NVLink. A link that was not read counts as absent.

    GPUs on switches reach each other if neither has lost a link and nothing is wrong with the fabric as a whole; GPUs that are
    linked directly, if none of the links between the two is down.
    """
    nvml = snapshot.nvml
    peers: dict[int, set[int]] = {} if nvml is None else {gpu.index: set() for gpu in nvml.gpus}
    if nvml is None:
        return peers
    subjects = {gpu.subject for gpu in nvml.gpus}
    critical = [row for row in findings if row.severity is Severity.CRITICAL]
    sick = {row.subject for row in critical if row.component in ("nvlink", "fabric")}
    fabric_ok = not any(
        row.component in BETWEEN_ALL and RULES[row.id].cause in LINK_CAUSES and row.subject not in subjects
        for row in critical
    )
    p2p = {frozenset((pair.first, pair.second)): pair.nvlink_p2p for pair in nvml.pairs}
    for one, other in combinations(nvml.whole_gpus, 2):
        status = p2p.get(frozenset((one.index, other.index)))
        if status not in (None, 0):
            continue
        direct = [*_links_to(one, other), *_links_to(other, one)]
        if direct:
            connected = all(link.active is True for link in direct)
        else:
            whole = fabric_ok and not {one.subject, other.subject} & sick
            switched = _on_switch(one) and _on_switch(other)
            connected = whole and bool(one.active_links and other.active_links) and (switched or status == 0)
        if connected:
            peers[one.index].add(other.index)
            peers[other.index].add(one.index)
    return peers


def _links_to(gpu: GpuReading, other: GpuReading) -> list[LinkReading]:
    if not other.pci:
        return []
    end = normal_pci(other.pci)
    return [link for link in gpu.links if link.remote_pci is not None and normal_pci(link.remote_pci) == end]


def _on_switch(gpu: GpuReading) -> bool:
    return any(link.active is True and link.remote_kind == "switch" for link in gpu.links)
