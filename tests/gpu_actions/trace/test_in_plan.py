"""Traces by plan: bounded, always stopped, taken when the engine has written them, and never a reason for a run to fail."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gpu_actions.action import PlanRequest, StepContext
from gpu_actions.config.policies import TracePolicy
from gpu_actions.fallback.action import SPEC as FALLBACK
from gpu_actions.plan import Plan, Step
from gpu_actions.restore.action import SPEC as RESTORE
from gpu_actions.serving.interfaces import Completion, EngineError
from gpu_actions.trace import in_plan
from gpu_actions.trace.in_plan import begin, trace_steps
from gpu_actions.walk import walk
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import Site, data_of, statuses, summary_of
from tests.gpu_actions.trace.test_action import Profiler

SHORT = {"in_plans": True, "duration_s": 0.3, "max_trace_mib": 1}


def only_trace(site: Site) -> Plan:
    return Plan(action="fallback", host="test", title="t", steps=trace_steps(site.host, site.host.tp))


async def test_the_run_goes_on_while_the_engine_writes_and_the_files_are_taken_at_the_end(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await site_with(trace=SHORT)
    profiler = Profiler(site, monkeypatch)
    profiler.files = [profiler.folder / "rank0.trace.json"]
    written, stop = asyncio.Event(), profiler.stop

    async def slow_stop() -> tuple[Path, ...]:
        if profiler.running:
            await written.wait()
        return await stop()

    monkeypatch.setattr(site.host.tp.engine, "stop_profile", slow_stop)
    plan = only_trace(site)
    walking = asyncio.create_task(walk(plan, site.host, run_id="fb-slow", workdir=site.folder / "run"))
    async with asyncio.timeout(20):
        while not profiler.running:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
    assert not walking.done()  # the last step waits; what stands between the two has been done
    written.set()
    end = await walking
    assert statuses(end) == [("trace", "done"), ("trace-files", "done")], end
    assert not profiler.running
    assert "gemm" in data_of(end, "trace-files")["thread_text"]
    assert {one.name for one in end.steps[-1].artifacts} >= {"rank0.trace.json", "trace_summary.json"}


async def test_traffic_waits_while_the_engine_stands_still_to_write_its_trace(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await site_with(trace=SHORT)
    profiler, engine = Profiler(site, monkeypatch), site.host.tp.engine
    complete, writing, refused = engine.complete, asyncio.Event(), 0

    async def stop() -> tuple[Path, ...]:
        writing.set()
        return await profiler.stop()

    async def stalled(*args: Any, **options: Any) -> Completion:
        nonlocal refused
        if writing.is_set() and refused < 3:
            refused += 1
            raise EngineError("no answer")
        return await complete(*args, **options)

    monkeypatch.setattr(engine, "stop_profile", stop)
    monkeypatch.setattr(engine, "complete", stalled)
    monkeypatch.setattr("gpu_actions.trace.in_plan.PROBE_PERIOD_S", 0.05)
    first = trace_steps(site.host, site.host.tp, before_traffic=True)[0]
    said: list[str] = []
    context = StepContext(
        run_id="rs-wait", host=site.host, step=first, outputs={}, workdir=site.folder,
        report=lambda text, fraction: said.append(text),
    )  # fmt: skip
    assert "traced tp" in (await begin(context)).summary
    assert refused == 3 and any("traffic waits" in text for text in said)


async def test_a_trace_that_was_killed_is_stopped_before_the_next_begins(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await site_with(trace=SHORT)
    profiler, stops = Profiler(site, monkeypatch), 0

    async def stop() -> tuple[Path, ...]:
        nonlocal stops
        stops += 1
        return await profiler.stop()

    monkeypatch.setattr(site.host.tp.engine, "stop_profile", stop)
    first = trace_steps(site.host, site.host.tp)[0]
    for run, expected in (
        ("fb-a", 1),
        ("fb-a", 3),
        ("fb-b", 4),
    ):  # the second stops what the first may have left
        context = StepContext(run_id=run, host=site.host, step=first, outputs={}, workdir=site.folder / run)
        context.workdir.mkdir(exist_ok=True)
        in_plan._stops.clear()  # as in a process that was started again
        await begin(context)
        await in_plan._stops[run, "tp"]
        assert stops == expected


async def test_an_engine_with_traffic_is_traced_for_a_moment_only(site_with: MakeSite) -> None:
    site = await site_with(trace={**SHORT, "duration_s": 30, "max_iterations": 5000}, up=False)
    serving = trace_steps(site.host, site.host.tp)[0].args
    idle = trace_steps(site.host, site.host.tp, before_traffic=True)[0].args
    assert (serving["duration_s"], serving["max_iterations"]) == (1.0, 25)
    assert (idle["duration_s"], idle["max_iterations"]) == (30, 5000)


async def test_a_stop_in_the_middle_of_a_trace_stops_the_profiler(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await site_with(trace={**SHORT, "duration_s": 60})
    monkeypatch.setattr(in_plan, "SERVING_S", 60)
    profiler = Profiler(site, monkeypatch)
    stop = asyncio.Event()
    plan = only_trace(site)
    walking = asyncio.create_task(
        walk(plan, site.host, run_id="fb-stop", workdir=site.folder / "run", stop=stop)
    )
    async with asyncio.timeout(20):
        while not profiler.running:
            await asyncio.sleep(0.05)
        stop.set()
        assert (await walking).ended.status == "cancelled"
        while profiler.running:
            await asyncio.sleep(0.05)


async def test_an_engine_without_a_profiler_is_said_with_its_flag_and_the_run_goes_on(
    site_with: MakeSite,
) -> None:
    site = await site_with(trace=SHORT)
    end = await walk(only_trace(site), site.host, run_id="fb-none", workdir=site.folder / "run")
    assert end.ended.status == "succeeded" and not end.ended.warnings
    assert "profiler" in summary_of(end, "trace") and "no trace was taken" in summary_of(end, "trace-files")
    hint = type(site.host.tp.engine).profiler_hint  # type: ignore[attr-defined]
    assert hint and hint in summary_of(end, "trace")


async def test_a_disk_without_room_for_a_trace_is_said_before_the_profiler_starts(
    site_with: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await site_with(trace=SHORT, up=False)
    profiler = Profiler(site, monkeypatch)
    first = trace_steps(site.host, site.host.tp)[0]
    full = first.model_copy(update={"args": {**first.args, "max_trace_mib": 10**9}})
    context = StepContext(run_id="fb-disk", host=site.host, step=full, outputs={}, workdir=site.folder)
    assert "trace.max_trace_mib" in (await begin(context)).summary and not profiler.running


async def test_both_plans_trace_after_the_load_test_and_take_the_files_last(site_with: MakeSite) -> None:
    site = await site_with(trace=SHORT)

    async def ids(spec, **options) -> list[str]:  # type: ignore[no-untyped-def]
        request = PlanRequest(host=site.host, arguments=spec.arguments.model_validate(options))
        steps: tuple[Step, ...] = (await spec.plan(request)).steps
        return [step.id for step in steps]

    fallback = await ids(FALLBACK)
    assert fallback[-3:] == ["validate", "trace", "trace-files"]
    assert "trace" not in await ids(FALLBACK, skip_validation=True)
    await site.host.tp.unit.stop(grace_s=2)
    restore = await ids(RESTORE, accept_no_baseline=True)
    assert restore[restore.index("compare") + 1] == "trace" and restore[-1] == "trace-files"
    assert not TracePolicy(in_plans=False).in_plans
