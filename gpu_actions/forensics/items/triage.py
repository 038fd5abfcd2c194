"""One triage of the host: its snapshot, which can be judged again later, and its verdict."""

import asyncio

from gpu_actions.forensics.item import Collected, Scope, evidence
from gpu_actions.models import Verdict
from gpu_actions.snapshot.model import Snapshot, snapshot_json
from gpu_actions.system.redact import redacted_json
from gpu_actions.triage.host_verdict import judge_host

WINDOW_SHARE = 0.3
"""Share of the budget for the window in which triage watches the counters: 3 s of 10, its own default."""


def _judged(scope: Scope) -> "asyncio.Task[tuple[Snapshot, Verdict]]":
    window_s = max(0.5, min(3.0, scope.budget_s * WINDOW_SHARE))
    limits = scope.host.thresholds.model_copy(
        update={
            "completion_deadline_s": window_s + 0.5,
            "stacks_timeout_s": max(1.0, scope.budget_s * WINDOW_SHARE),
        }
    )
    return scope.once("triage", lambda: judge_host(scope.host, window_s=window_s, thresholds=limits))


@evidence("triage/snapshot.json", source="triage: one snapshot")
async def snapshot(scope: Scope) -> Collected:
    taken, _ = await _judged(scope)
    return Collected(text=snapshot_json(taken))


@evidence("triage/verdict.json", source="triage: the verdict on that snapshot")
async def verdict(scope: Scope) -> Collected:
    _, judged = await _judged(scope)
    return Collected(text=redacted_json(judged.model_dump_json()))
