"""A drill plays the real path on a real tier of its own, compares itself with earlier ones, and leaves nothing behind."""

import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from gpu_actions.action import PlanRefused, PlanRequest
from gpu_actions.config.policies import DrillPolicy
from gpu_actions.drill.action import SPEC, DrillArguments, history_path
from gpu_actions.drill.faults import FAULTS
from gpu_actions.drill.history import Drill, DrilledFault, append_drill, read_history, table, too_slow
from gpu_actions.drill.site import drill_host, free_ports
from gpu_actions.host import Host
from gpu_actions.walk import walk
from tests.gpu_actions.site import Site, make_site


def processes_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if str(folder) in process.cwd() or any(str(folder) in word for word in process.cmdline()):
                found.append(" ".join(process.cmdline())[:120])
    return found


def quiet(host: Host, **policy: float) -> Host:
    drill = DrillPolicy(max_load_per_core=1000, min_free_memory_gib=0, **policy)
    return replace(host, config=host.config.model_copy(update={"drill": drill}))


def request(host: Host, fault: str = "all") -> PlanRequest:
    return PlanRequest(host=host, arguments=DrillArguments(fault=fault), verdict_age_s=math.inf)


def drilled(run_id: str, **phase_s: float) -> Drill:
    fault = DrilledFault(fault="dead-rank", began_at=0, phase_s=phase_s)
    return Drill(run_id=run_id, at=0, faults=(fault,))


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Site]:
    running = make_site(tmp_path)
    await running.up()
    yield running
    await running.down()


@pytest.fixture
def production(tmp_path: Path) -> Site:
    return make_site(tmp_path)


async def test_the_plan_plays_every_fault_kind_on_ports_that_are_not_the_service_s(production: Site) -> None:
    host = quiet(production.host)
    plan = await SPEC.plan(request(host))
    assert [step.id for step in plan.steps] == [*(fault.id for fault in FAULTS), "clear", "compare"]
    used = set(plan.steps[0].args["ports"].values())
    own = {int(tier.engine.url.rsplit(":", 1)[1]) for tier in host.tiers.values()}
    assert len(used) == 3 and not used & {*own, int(host.router.url.rsplit(":", 1)[1])}


async def test_a_drill_on_a_busy_machine_is_refused_with_the_setting_that_decides(production: Site) -> None:
    busy = production.host.config.model_copy(update={"drill": DrillPolicy(min_free_memory_gib=10**6)})
    with pytest.raises(PlanRefused, match="GiB of memory are free"):
        await SPEC.plan(request(replace(production.host, config=busy)))


@pytest.mark.heavy
@pytest.mark.timeout(600)
async def test_a_dead_rank_is_drilled_twice_to_its_end_beside_a_service_that_is_not_touched(
    serving: Site, tmp_path: Path
) -> None:
    host = quiet(serving.host, max_detect_s=0.01)
    before = (await host.tp.unit.state()).main_pid
    append_drill(history_path(host.state_dir), drilled("dr-0001", detect=1, fallback=2, restore=3))
    plan = await SPEC.plan(request(host, "dead-rank"))
    end = await walk(plan, host, run_id="dr-test", workdir=tmp_path / "run")
    said = [(one.outcome.step_id, one.outcome.status, one.outcome.summary) for one in end.steps]
    assert end.ended.status == "succeeded", said
    played, compared = end.steps[0], end.steps[-1]
    assert played.verdict is not None and played.verdict.verdict == "fall_back"
    record = DrilledFault.model_validate(played.outcome.data["drilled"])
    assert set(record.phase_s) == {"detect", "fallback", "restore"}
    assert {"capture", "validate", "loadtest"} <= {step.step_id for step in record.steps}
    assert any("detect took" in line for line in compared.outcome.data["slow"]), said
    assert compared.artifacts[0].inline and compared.artifacts[0].path.read_bytes()[:4] == b"\x89PNG"
    assert [one.run_id for one in read_history(history_path(host.state_dir))] == ["dr-0001", "dr-test"]
    assert not processes_in(host.state_dir / "drill")
    again = await SPEC.plan(request(host, "dead-rank"))  # on other ports, in the same folder
    assert again.steps[0].args["ports"] != plan.steps[0].args["ports"]
    end = await walk(again, host, run_id="dr-again", workdir=tmp_path / "again")
    assert end.ended.status == "succeeded", [(one.outcome.step_id, one.outcome.summary) for one in end.steps]
    assert (await host.tp.unit.state()).main_pid == before


def test_slower_than_the_last_five_or_than_the_limit_is_said_and_noise_is_not() -> None:
    earlier = [drilled(f"dr-000{n}", detect=5, fallback=10, restore=20) for n in range(6)]
    policy = DrillPolicy(max_detect_s=60, max_fallback_s=30, max_restore_s=60, max_slower_percent=50)
    assert too_slow(drilled("dr-new", detect=9, fallback=14, restore=29), earlier, policy) == ()
    slow = too_slow(drilled("dr-new", detect=11, fallback=31, restore=31), earlier, policy)
    assert [line.split(" took")[0] for line in slow] == [
        "dead-rank: detect", "dead-rank: fallback", "dead-rank: restore",
    ]  # fmt: skip
    assert "over its limit of 30 s" in slow[1] and "usually 20.0 s" in slow[2]
    assert too_slow(drilled("dr-new", detect=50), [], policy) == ()  # nothing to compare with
    assert "usually" in table(drilled("dr-new", detect=9), earlier)


def test_a_damaged_line_of_the_history_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "drills.jsonl"
    append_drill(path, drilled("dr-0001", detect=1))
    path.write_text("{broken\n" + path.read_text())
    assert [one.run_id for one in append_drill(path, drilled("dr-0002", detect=2))] == ["dr-0001", "dr-0002"]
    assert len(append_drill(path, drilled("dr-0002", detect=3))) == 2  # the same run again replaces its line


def test_the_drill_tier_has_its_own_folder_name_and_router(production: Site) -> None:
    own = drill_host(production.host, free_ports())
    assert own.name == f"{production.host.name}-drill"
    assert own.state_dir == production.host.state_dir / "drill"
    assert own.router.url != production.host.router.url
