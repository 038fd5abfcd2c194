"""All cases of the judgement: a name, how to build the host's snapshot, and the verdict and cause that must follow.

A fourth element names the settings or the baseline that a case is judged by (arguments of `judge`).
"""

from functools import cache
from typing import Any

from gpu_actions.models import Verdict
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.triage.judge import judge
from tests.gpu_actions.triage import (
    cases_clocks,
    cases_crashes,
    cases_deep,
    cases_engine,
    cases_fleet,
    cases_gpus,
    cases_kernel_log,
    cases_links,
    cases_ranks,
    cases_replicas,
    cases_serving,
    cases_slots,
)

PARTS = (
    cases_serving,
    cases_engine,
    cases_replicas,
    cases_ranks,
    cases_crashes,
    cases_gpus,
    cases_clocks,
    cases_links,
    cases_slots,
    cases_kernel_log,
    cases_deep,
    cases_fleet,
)
CASES: dict[str, tuple[Any, ...]] = {name: case for part in PARTS for name, case in part.CASES.items()}
assert len(CASES) == sum(len(part.CASES) for part in PARTS), "two cases have one name"


@cache
def snapshot_of(name: str) -> Snapshot:
    """Return the snapshot of a case."""
    snapshot: Snapshot = CASES[name][0]()
    return snapshot


def judge_case(name: str) -> Verdict:
    """Judge a case by its own settings."""
    _, _, _, *options = CASES[name]
    return judge(snapshot_of(name), **(options[0] if options else {}))
