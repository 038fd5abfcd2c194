"""Recording a baseline of a healthy host, and judging by it."""

import stat
from pathlib import Path

import pytest

from gpu_actions.action import PlanRequest, StepContext
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.host import Host
from gpu_actions.models import VerdictKind
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.triage.action import TriageArguments, plan_triage, triage
from gpu_actions.triage.baselines import TriageBaseline, baseline_from, load_baseline, save_baseline
from gpu_actions.triage.judge import judge
from tests.gpu_actions.triage import builders as make
from tests.gpu_actions.triage.test_action import host  # noqa: F401  (a fixture)


def test_a_healthy_snapshot_updates_its_figures_and_keeps_the_others() -> None:
    known = TriageBaseline(busbw_gbps=380, gemm_tflops=600)
    baseline = baseline_from(make.healthy(), known)
    assert (baseline.busbw_gbps, baseline.gemm_tflops) == (380, 600)
    assert baseline.completion_ms is not None
    assert len(baseline.remote_ends) == 8


def test_a_saved_baseline_is_private_and_loads_unchanged(tmp_path: Path) -> None:
    baseline = baseline_from(make.healthy())
    path = save_baseline(baseline, tmp_path / "baselines" / "triage-h1.json")
    assert load_baseline(str(path)) == baseline
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_only_a_healthy_host_sets_a_baseline(host: Host, tmp_path: Path) -> None:  # noqa: F811
    """With the router down the verdict is watch, so nothing is recorded; with the router up the host is healthy."""
    path = tmp_path / "baselines" / "triage-h1.json"

    async def seen() -> tuple[VerdictKind, str]:
        plan = await plan_triage(
            PlanRequest(host=host, arguments=TriageArguments(window=0.4, record_baseline=True))
        )
        args = {**plan.steps[0].args, "baseline": str(path)}
        step = plan.steps[0].model_copy(update={"args": args})
        result = await triage(StepContext(run_id="tri-1", host=host, step=step, outputs={}, workdir=tmp_path))
        assert result.verdict is not None
        return result.verdict.verdict, result.summary

    kind, summary = await seen()
    assert kind is VerdictKind.WATCH
    assert "no baseline was recorded: the host is watch" in summary
    assert not path.exists()
    await host.router.ensure_running()
    await host.router.set_weight("fb", 0)
    kind, summary = await seen()
    assert kind is VerdictKind.HEALTHY, summary
    assert "recorded as this host's baseline: completion_ms" in summary
    assert load_baseline(str(path)).completion_ms is not None


async def test_thresholds_of_the_settings_reach_the_plan(host: Host) -> None:  # noqa: F811
    plan = await plan_triage(PlanRequest(host=host, arguments=TriageArguments()))
    assert plan.steps[0].args["thresholds"] == {}
    strict = TriageThresholds(completion_slow_ms=0.001)
    object.__setattr__(host, "thresholds", strict)
    plan = await plan_triage(PlanRequest(host=host, arguments=TriageArguments()))
    assert TriageThresholds.model_validate(plan.steps[0].args["thresholds"]) == strict


async def test_a_partial_snapshot_runs_only_its_collectors_and_skips_the_others(tmp_path: Path) -> None:
    log = tmp_path / "kernel.log"
    log.write_text("[    1.0] NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\n")
    target = TriageTarget(host="h1", kernel_log=log, engine_url="http://127.0.0.1:9")
    snapshot = await collect(target, only=frozenset({"kernel_log"}))
    assert {name for name, outcome in snapshot.collectors.items() if outcome.status == "ok"} == {"kernel_log"}
    verdict = judge(snapshot)
    assert (verdict.verdict, verdict.cause) == (VerdictKind.FALL_BACK, "gpu_lost")
    assert {finding.component for finding in verdict.findings} <= {"kernel_log", "gpu"}, verdict.findings


@pytest.mark.parametrize("text", ["", "{", '{"busbw_gbps": -1}', '{"other": 1}'])
def test_a_broken_baseline_is_named_with_its_field(tmp_path: Path, text: str) -> None:
    path = tmp_path / "triage-h1.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"triage-h1\.json"):
        load_baseline(str(path))
