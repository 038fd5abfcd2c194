"""The triage action on a configured host: a real supervised tier with two processes, one of which is stopped."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_actions.action import PlanRequest, StepContext
from gpu_actions.config.host import HostConfig
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.host import Host, build_host
from gpu_actions.serving.interfaces import EngineError, UnitError, UnitState
from gpu_actions.snapshot.model import load_snapshot
from gpu_actions.system.proc import process_table
from gpu_actions.triage.action import SPEC, TriageArguments, plan_triage, triage
from gpu_actions.triage.judge import judge
from tests.gpu_actions.fakes import process_state
from tests.ports import free_port

ENGINE = """
import asyncio, subprocess, sys
from aiohttp import web
rank_1 = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "--rank", "1"])
state = {"tokens": 0}
def stuck():
    with open(f"/proc/{rank_1.pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"
async def metrics(request):
    state["tokens"] += 0 if stuck() else 5
    return web.Response(text=f"vllm:num_requests_running 1\\nvllm:num_requests_waiting 0\\nvllm:generation_tokens_total {state['tokens']}\\n")
async def completions(request):
    while stuck():
        await asyncio.sleep(0.05)
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'data: {"choices": [{"text": "ab", "finish_reason": "length"}], "usage": {"completion_tokens": 2}}\\n\\ndata: [DONE]\\n\\n')
    return response
app = web.Application()
app.router.add_get("/metrics", metrics)
app.router.add_post("/v1/completions", completions)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, shutdown_timeout=0.1)
"""  # noqa: E501
QUICK = TriageThresholds(window_s=0.4, completion_deadline_s=0.6)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    program = tmp_path / "engine.py"
    program.write_text(ENGINE)

    def tier(name: str, ranks: int) -> dict[str, object]:
        port = free_port()
        unit = {"driver": "process", "argv": [sys.executable, str(program), str(port)], "stop_grace_s": 1}
        engine = {"url": f"http://127.0.0.1:{port}", "model": "m"}
        return {"engine": engine, "unit": unit, "server": name, "ranks": ranks}

    config = HostConfig.model_validate(
        {
            "name": "h1",
            "gpus": 0,
            "ras_address": None,
            "router": {"url": f"http://127.0.0.1:{free_port()}"},
            "tiers": {"tp": tier("tp", 2), "fallback": tier("fb", 1)},
        }
    )
    built = build_host(config, state_dir=tmp_path / "state")
    await built.tp.unit.start()
    until = time.monotonic() + 20
    while not await listens(built):
        assert time.monotonic() < until, await built.tp.unit.log_tail()
        await asyncio.sleep(0.05)
    yield built
    for unit in (*(one.unit for one in built.tiers.values()), built.router.unit):  # type: ignore[attr-defined]
        await unit.stop(grace_s=1)


async def listens(host: Host) -> bool:
    try:
        return (await host.tp.engine.metrics()).generation_tokens is not None
    except EngineError:
        return False


async def context_of(host: Host, workdir: Path, lines: list[str]) -> StepContext:
    plan = await plan_triage(PlanRequest(host=host, arguments=TriageArguments(window=0.4)))
    args = {**plan.steps[0].args, "thresholds": QUICK.model_dump(mode="json")}
    return StepContext(
        run_id="tri-1",
        host=host,
        step=plan.steps[0].model_copy(update={"args": args}),
        outputs={},
        workdir=workdir,
        report=lambda text, fraction: lines.append(text),
    )


async def test_window_and_deep_probe_deadline_come_from_the_settings(host: Host) -> None:
    configured = replace(host, thresholds=TriageThresholds(window_s=7, deep_deadline_s=90))
    (step,) = (await plan_triage(PlanRequest(host=configured, arguments=TriageArguments(deep=True)))).steps
    assert step.args["window_s"] == 7
    assert step.timeout_s >= 7 + 90
    assert step.args["thresholds"] == {"window_s": 7, "deep_deadline_s": 90}


async def test_a_stopped_rank_turns_a_serving_host_into_nccl_hang(host: Host, tmp_path: Path) -> None:
    lines: list[str] = []
    context = await context_of(host, tmp_path, lines)
    result = await triage(context)
    # the managed router is not started here, so it is down: watch, and nothing worse
    assert result.verdict is not None and result.verdict.cause == "router_down", result.verdict
    assert any(line.startswith("engine: ok") for line in lines)

    main = (await host.tp.unit.state()).main_pid
    rank_1 = next(row.pid for row in process_table().values() if row.parent == main)
    os.kill(rank_1, signal.SIGSTOP)
    until = time.monotonic() + 5
    while process_state(rank_1) != "T":
        assert time.monotonic() < until
    result = await triage(context)
    assert result.verdict is not None
    assert (result.verdict.verdict, result.verdict.cause) == ("fall_back", "nccl_hang"), result.verdict
    assert result.data["tier"] == "tp" and "rank 1" in result.summary

    recorded = load_snapshot(result.artifacts[0].path)
    assert judge(recorded, QUICK) == result.verdict


async def test_a_picture_is_made_only_on_a_host_with_gpus(
    host: Host, tmp_path: Path, fake_nvml: Callable[..., Path]
) -> None:
    assert [
        artifact.title for artifact in (await triage(await context_of(host, tmp_path, []))).artifacts
    ] == ["raw snapshot"]
    fake_nvml("gpu.2.link.5.active=0")
    with_gpus = replace(host, config=host.config.model_copy(update={"gpus": 8}))
    result = await triage(await context_of(with_gpus, tmp_path, []))
    picture = result.artifacts[1]
    assert (picture.title, picture.inline) == ("GPUs and links", True)
    assert Path(picture.path).read_bytes().startswith(b"\x89PNG")


async def test_a_unit_whose_driver_fails_is_never_healthy(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails() -> UnitState:
        raise UnitError("systemctl: Connection timed out")

    monkeypatch.setattr(host.tp.unit, "state", fails)
    result = await triage(await context_of(host, tmp_path, []))
    assert result.verdict is not None and result.verdict.verdict == "unknown"
    unread = next(finding for finding in result.findings if finding.id == "serving.unit_unread")
    assert "Connection timed out" in unread.summary


async def test_triage_goes_on_without_a_broken_baseline(host: Host, tmp_path: Path) -> None:
    broken = tmp_path / "baseline.json"
    broken.write_text('{"completion_ms": -1}')
    context = await context_of(host, tmp_path, [])
    step = context.step.model_copy(update={"args": {**context.args, "baseline": str(broken)}})
    result = await triage(replace(context, step=step))
    assert result.verdict is not None and result.verdict.cause == "router_down"
    assert "judged without the baseline" in result.summary and "completion_ms" in result.summary


async def test_a_tier_frozen_on_purpose_is_not_reported_down(host: Host, tmp_path: Path) -> None:
    await host.tp.unit.freeze("fallback")
    await host.tp.unit.stop(grace_s=1)
    result = await triage(await context_of(host, tmp_path, []))
    assert result.verdict is not None
    assert "serving.down" not in {finding.id for finding in result.verdict.findings}


def test_the_action_changes_nothing_on_the_host() -> None:
    assert not SPEC.changes_host
    assert TriageArguments.model_validate({"deep": True}).deep
