"""Snapshots of real H100 hosts (see docs/validation/), judged again: their verdicts never change."""

from pathlib import Path

import pytest

from gpu_actions.snapshot.model import load_snapshot
from gpu_actions.triage.judge import judge
from gpu_actions.triage.matrix import matrix_of

RECORDED = Path(__file__).parents[2] / "data" / "snapshots"
VERDICTS = {
    "h100-x1-healthy": ("healthy", "none", 0),
    "h100-x1-deep": ("healthy", "none", 0),
    "h100-x2-healthy": ("healthy", "none", 1),
    "h100-x2-deep": ("healthy", "none", 1),
    "h100-x2-pcie_only": ("fall_back", "pcie_only", 1),
    "h100-x2-frozen_rank": ("fall_back", "nccl_hang", 1),
    "h100-x2-sleeping_rank": ("fall_back", "nccl_hang", 1),
}


def test_every_recorded_snapshot_is_judged_here() -> None:
    assert {path.stem for path in RECORDED.glob("*.json")} == set(VERDICTS)


@pytest.mark.parametrize("name", VERDICTS)
def test_a_recorded_host_keeps_its_verdict(name: str) -> None:
    verdict = judge(load_snapshot(RECORDED / f"{name}.json"))
    kind, cause, gpu = VERDICTS[name]
    assert (verdict.verdict, verdict.cause) == (kind, cause)
    assert verdict.fallback_gpu is not None
    assert verdict.fallback_gpu.index == gpu


def test_a_rank_that_sleeps_before_its_collective_is_found_by_nccls_own_counts() -> None:
    verdict = judge(load_snapshot(RECORDED / "h100-x2-sleeping_rank.json"))
    hang = next(finding for finding in verdict.findings if finding.id == "collective.hang")
    assert hang.evidence["sources"] == ["token counter", "ras_mismatch"]
    counts = hang.evidence["ras_mismatch"]["counts"]
    assert counts["0"]["AllReduce"] != counts["1"]["AllReduce"]


def test_all_eighteen_links_of_both_gpus_are_up_on_the_healthy_host() -> None:
    matrix = matrix_of(load_snapshot(RECORDED / "h100-x2-healthy.json"))
    assert [[link.state for link in gpu.links] for gpu in matrix.gpus] == [["up"] * 18] * 2
