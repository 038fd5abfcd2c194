"""GPUs and links as a matrix, for the picture: the worst finding of each GPU, the state of each link, its remote end."""

from typing import Literal

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Finding, Frozen, Severity, Verdict
from gpu_actions.snapshot.collectors.nvml import GpuReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.triage.gpu_models import expected_links

ERRORS = ("replay", "recovery")
LinkState = Literal["up", "down", "errors", "unread", "absent"]


class MatrixLink(Frozen):
    """One cell: a link of a GPU."""

    index: int
    state: LinkState
    remote_kind: str | None = None
    remote: str | None = None


class MatrixGpu(Frozen):
    """One row: a GPU, its worst finding, and its links."""

    index: int
    uuid: str
    name: str
    severity: Severity
    words: str = ""
    temperature_c: int | None = None
    links: tuple[MatrixLink, ...] = ()


class LinkMatrix(Frozen):
    """All rows. `bad_ends` are remote ends shared by several missing links; `pairs_off` cannot use NVLink P2P."""

    host: str
    gpus: tuple[MatrixGpu, ...] = ()
    missing_gpus: int = 0
    bad_ends: tuple[str, ...] = ()
    pairs_off: tuple[tuple[int, int], ...] = ()
    fallback_index: int | None = None


def matrix_of(
    snapshot: Snapshot, verdict: Verdict | None = None, thresholds: TriageThresholds | None = None
) -> LinkMatrix:
    """Return the matrix of a snapshot, with the findings of its verdict. It is empty without GPUs."""
    nvml = snapshot.nvml
    if nvml is None:
        return LinkMatrix(host=snapshot.host)
    replay_limit = (thresholds or TriageThresholds()).nvlink_replay_delta
    findings = verdict.findings if verdict is not None else ()
    rows = []
    for gpu in nvml.gpus:
        expected = 0 if gpu.mig or gpu.error else expected_links(snapshot, gpu) or 0
        worst = _worst([finding for finding in findings if finding.subject == gpu.subject])
        rows.append(
            MatrixGpu(
                index=gpu.index,
                uuid=gpu.uuid,
                name=gpu.name,
                severity=Severity.CRITICAL if gpu.error else worst.severity if worst else Severity.OK,
                words=gpu.error or (worst.summary if worst else ""),
                temperature_c=gpu.latest.temperature_c,
                links=_links(gpu, expected, replay_limit),
            )
        )
    return LinkMatrix(
        host=snapshot.host,
        gpus=tuple(rows),
        missing_gpus=max(0, (snapshot.expected.gpus or 0) - len(rows)),
        bad_ends=tuple(row.subject or "" for row in findings if row.id == "nvlink.shared_end"),
        pairs_off=tuple((pair.first, pair.second) for pair in nvml.pairs if pair.nvlink_p2p not in (None, 0)),
        fallback_index=verdict.fallback_gpu.index if verdict is not None and verdict.fallback_gpu else None,
    )


def _links(gpu: GpuReading, expected: int, replay_limit: int) -> tuple[MatrixLink, ...]:
    cells = []
    for link in gpu.links:
        grown = any((link.delta(name) or 0) >= replay_limit for name in ERRORS)
        state: LinkState = (
            "unread" if link.active is None else "down" if not link.active else "errors" if grown else "up"
        )
        cells.append(
            MatrixLink(index=link.index, state=state, remote_kind=link.remote_kind, remote=link.remote_pci)
        )
    reported = {link.index for link in gpu.links}
    cells += [MatrixLink(index=index, state="absent") for index in range(expected) if index not in reported]
    return tuple(cells)


def _worst(findings: list[Finding]) -> Finding | None:
    order = (Severity.OK, Severity.INFO, Severity.WATCH, Severity.UNKNOWN, Severity.CRITICAL)
    return max(findings, key=lambda finding: order.index(finding.severity), default=None)
