"""A whole incident with the project's own engine: one of two torch.distributed ranks freezes, fallback, restore."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpu_actions.models import Verdict, VerdictKind
from gpu_actions.restore.action import SPEC as RESTORE
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import data_of, summary_of

ENGINE = [
    sys.executable,
    "-m",
    "demo.engine",
    "--model-name",
    "m",
    "--shutdown-timeout",
    "5",
]


def reference(*flags: str) -> dict[str, Any]:
    """Return a tier of the reference engine; the site adds its port."""
    return {"kind": "reference", "argv": [*ENGINE, *flags]}


@pytest.mark.heavy
async def test_a_frozen_rank_of_the_reference_engine_falls_back_and_comes_back(
    site_with: MakeSite, tmp_path: Path
) -> None:
    site = await site_with(
        tp_engine=reference("--tensor-parallel-size", "2", "--profiler-dir", str(tmp_path / "tp_traces")),
        trace={"in_plans": True, "duration_s": 1, "max_trace_mib": 16},
        fallback_engine=reference("--max-num-seqs", "16", "--profiler-dir", str(tmp_path / "traces")),
        fallback={"capture_budget_s": 10},
        restore={"hold_s": 2, "keep_fallback_warm_s": 0},
    )
    await site.host.fallback.unit.start()
    started = time.monotonic()
    await site.host.fallback.engine.wait_ready(timeout_s=60)
    bare_s = time.monotonic() - started
    await site.host.fallback.unit.stop()

    async with site.traffic(clients=3) as seen:
        await site.freeze_rank()
        verdict = Verdict(verdict=VerdictKind.FALL_BACK, cause="nccl_hang", summary="hangs")
        end = await site.run(await site.plan(verdict=verdict))
        assert end.ended.status == "succeeded", end.steps[-1].outcome.summary
    assert len(seen.lost) + data_of(end, "drain")["resent"] == 3
    assert len(seen.lost) == data_of(end, "drain")["cut"]
    first_s = data_of(end, "route")["first_token_through_router_s"]
    print(
        f"bare start-up {bare_s:.2f} s, first token through the router {first_s:.2f} s: {first_s / bare_s:.2f}"
    )
    for step in end.steps:
        print(step.outcome.step_id, f"{step.seconds:.2f} s", step.outcome.summary[:160])
    assert "passed" in summary_of(end, "validate")
    assert data_of(end, "trace-files")["summary"]["ranks"], summary_of(end, "trace-files")
    await site.check_serving("fallback")

    async with site.traffic(clients=3) as seen:
        end = await site.run(await site.plan(RESTORE, accept_no_baseline=True, cause="SIGSTOP"))
    for step in end.steps:
        print(step.outcome.step_id, f"{step.seconds:.2f} s", step.outcome.summary[:160])
    assert end.ended.status == "succeeded"
    assert (seen.lost, seen.refused) == ([], 0)
    await site.check_serving("tp")
