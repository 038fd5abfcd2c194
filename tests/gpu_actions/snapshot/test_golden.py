"""Golden prompts in triage: a real tier that answers well, wrongly, slowly or not at all."""

import dataclasses
from pathlib import Path

import pytest

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.host import Host
from gpu_actions.models import Finding, Verdict, VerdictKind
from gpu_actions.serving.golden.record import save_golden
from gpu_actions.serving.golden.recording import record_golden
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.target import target_of_host
from gpu_actions.triage.judge import judge
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import Site

LIMITS = TriageThresholds(window_s=0.3, completion_slow_ms=30_000)


def kept(site: Site) -> tuple[Host, Path]:
    """Return the site's host with a folder of baselines, and the file of tp's golden prompts."""
    host = dataclasses.replace(site.host, baselines_dir=site.folder / "baselines")
    path = host.golden_path("tp")
    assert path is not None
    return host, path


async def record(site: Site) -> Host:
    host, path = kept(site)
    save_golden(await record_golden(host.tp.engine, host="test", tier="tp", repeats=1, concurrency=0), path)
    return host


async def triage(host: Host) -> tuple[Snapshot, Verdict]:
    snapshot = await collect(await target_of_host(host), LIMITS)
    return snapshot, judge(snapshot, LIMITS)


def finding(verdict: Verdict, rule: str) -> Finding:
    return next(one for one in verdict.findings if one.id == rule)


async def test_without_a_record_the_prompts_are_skipped_and_the_verdict_is_as_before(
    site_with: MakeSite,
) -> None:
    host, _ = kept(await site_with())
    snapshot, verdict = await triage(host)
    assert snapshot.collectors["golden"].status == "skipped"
    assert "gpu-oncall golden record" in snapshot.collectors["golden"].reason
    assert verdict.verdict is VerdictKind.HEALTHY, verdict.findings


async def test_a_tier_that_begins_to_lie_is_a_reason_to_fall_back(site_with: MakeSite) -> None:
    site = await site_with()
    host = await record(site)
    snapshot, verdict = await triage(host)
    assert verdict.verdict is VerdictKind.HEALTHY, verdict.findings
    assert "4 of 4 golden prompts match, 4 with equal tokens" in finding(verdict, "serving.tokens_ok").summary

    (site.folder / "wrong_tp").touch()
    snapshot, verdict = await triage(host)
    assert (verdict.verdict, verdict.cause) == (VerdictKind.FALL_BACK, "wrong_output")
    assert "golden prompt 1, token 1" in verdict.summary
    assert finding(verdict, "serving.wrong_tokens").evidence["difference_nats"] == pytest.approx(5.9)
    assert judge(Snapshot.model_validate_json(snapshot.model_dump_json()), LIMITS) == verdict


async def test_a_replica_that_lies_is_named_and_is_no_reason_to_give_up_those_that_do_not(
    site_with: MakeSite,
) -> None:
    site = await site_with()
    host = await record(site)
    await host.fallback.unit.start()
    await host.fallback.engine.wait_ready(timeout_s=30)
    urls = (host.tp.engine.url, host.fallback.engine.url)
    target = (await target_of_host(host)).model_copy(update={"replica_urls": urls})
    name = urls[1].removeprefix("http://")
    for lies, expected in (
        ((), (VerdictKind.HEALTHY, "none")),
        (("fallback",), (VerdictKind.WATCH, "wrong_output")),
        (("fallback", "tp"), (VerdictKind.FALL_BACK, "wrong_output")),
    ):
        for tier in lies:
            (site.folder / f"wrong_{tier}").touch()
        snapshot = await collect(target, LIMITS, only=frozenset({"engine", "completion", "golden"}))
        verdict = judge(snapshot, LIMITS)
        assert (verdict.verdict, verdict.cause) == expected, verdict.findings
        if lies == ("fallback",):
            assert verdict.summary.startswith(
                f"replica {name} of 2 answers wrongly: the engine answers wrongly"
            )
            assert verdict.action.startswith("Stop this replica")
            assert finding(verdict, "serving.replica_wrong").subject == f"replica {name}"


async def test_a_lie_is_found_beside_traffic_too(site_with: MakeSite) -> None:
    site = await site_with()
    host = await record(site)
    async with site.traffic(clients=6, tokens=40) as seen:
        snapshot, verdict = await triage(host)
        assert verdict.verdict is VerdictKind.HEALTHY, verdict.findings
        assert snapshot.golden is not None
        assert not snapshot.golden.idle
        (site.folder / "wrong_tp").touch()
        _, verdict = await triage(host)
        assert (verdict.verdict, verdict.cause) == (VerdictKind.FALL_BACK, "wrong_output")
    assert not seen.lost


async def test_an_engine_with_another_fault_is_not_asked(site_with: MakeSite) -> None:
    site = await site_with()
    host = await record(site)
    (site.folder / "wrong_tp").touch()
    (site.folder / "error_tp").touch()
    snapshot, verdict = await triage(host)
    assert snapshot.collectors["golden"].status == "skipped"
    assert verdict.cause == "engine_errors"


async def test_a_slow_tier_is_compared_as_far_as_the_budget_goes(site_with: MakeSite) -> None:
    site = await site_with()
    host = await record(site)
    (site.folder / "slow_tp").write_text("0.4")
    snapshot, verdict = await triage(host)
    assert snapshot.golden is not None
    assert snapshot.golden.seconds < 2
    assert "3 of 4" in finding(verdict, "serving.tokens_ok").summary
    (site.folder / "slow_tp").write_text("1.7")
    snapshot, verdict = await triage(host)
    assert verdict.verdict is VerdictKind.WATCH
    assert "0 of 4 prompts were scored within 1.5 s" in finding(verdict, "serving.tokens_unknown").summary


async def test_a_damaged_record_is_a_warning_with_its_name(site_with: MakeSite) -> None:
    host, path = kept(await site_with())
    path.parent.mkdir()
    path.write_text("{")
    _, verdict = await triage(host)
    assert verdict.verdict is VerdictKind.WATCH
    assert str(path) in finding(verdict, "serving.tokens_unknown").summary
    assert "gpu-oncall golden record" in verdict.action
