"""The drill action: the whole incident path against a tier of its own on this host, each fault kind in turn.

The drill tier is the reference engine behind its own router on its own ports. No step of a drill reads or changes a unit, port
or weight of the production tier; its plan is refused while the host is busy.
"""

import os
import sys
import time
from pathlib import Path

import psutil
from pydantic import Field

from gpu_actions.action import ActionSpec, PlanRefused, PlanRequest, StepContext, StepFailed, StepResult, step
from gpu_actions.config.policies import DrillPolicy
from gpu_actions.drill.faults import FAULTS
from gpu_actions.drill.history import Drill, DrilledFault, append_drill, read_history, table, too_slow
from gpu_actions.drill.play import Play
from gpu_actions.drill.site import DrillPorts, clear, drill_host, free_ports
from gpu_actions.models import Artifact, Frozen
from gpu_actions.plan import Plan, Step
from gpu_actions.serving.interfaces import EngineError, RouterError, UnitError
from gpu_actions.system.files import artifact_of, write_atomically
from gpu_actions.system.processes import run_process

DETECT_S = 90.0
FAULT_TIMEOUT_S = 900.0
PICTURE_TIMEOUT_S = 60.0
KINDS = tuple(fault.id for fault in FAULTS)


class DrillArguments(Frozen):
    """Options of `/drill start`."""

    fault: str = Field(
        default="all",
        pattern=rf"^(all|{'|'.join(KINDS)})$",
        description=f"all, or one of: {', '.join(KINDS)}",
    )


def history_path(state_dir: Path) -> Path:
    """Return the file with the times of a host's drills."""
    return state_dir / "drills.jsonl"


def busy_problems(policy: DrillPolicy) -> list[str]:
    """Return why the machine is too busy for a drill now; empty if it is not."""
    problems = []
    free_gib = psutil.virtual_memory().available / 2**30
    if free_gib < policy.min_free_memory_gib:
        problems.append(
            f"{free_gib:.1f} GiB of memory are free, a drill needs {policy.min_free_memory_gib:g} GiB: "
            "drill when less runs here"
        )
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if load > policy.max_load_per_core:
        problems.append(
            f"the CPU load is {load:.2f} per core, over drill.max_load_per_core ({policy.max_load_per_core:g}): "
            "a drill would disturb the service; drill at a quieter hour"
        )
    return problems


async def plan_drill(request: PlanRequest) -> Plan:
    """Plan a drill. Refused while the host is busy. Reads only."""
    arguments: DrillArguments = request.arguments
    host, policy = request.host, request.host.config.drill
    if problems := busy_problems(policy):
        raise PlanRefused(problems)
    kinds = KINDS if arguments.fault == "all" else (arguments.fault,)
    ports = free_ports()
    args = {"ports": ports.model_dump()}
    where = f"router {ports.router}, tp {ports.tp}, fallback {ports.fallback}, all on 127.0.0.1"
    explained = {fault.id: fault.help for fault in FAULTS}
    return Plan(
        action="drill",
        host=host.name,
        title=f"DRILL: {', '.join(kinds)} on a tier of its own; {host.name}'s service is not touched",
        steps=(
            *(
                Step(
                    id=kind,
                    verb="drill.play",
                    title=f"{kind}: triage, fallback, restore",
                    args={**args, "fault": kind, "detect_s": DETECT_S},
                    details=(where, explained[kind]),
                    timeout_s=FAULT_TIMEOUT_S,
                    expected_s=60,
                    mutates=False,
                    on_failure="continue",
                )
                for kind in kinds
            ),
            Step(
                id="clear",
                verb="drill.clear",
                title="stop the drill tier",
                args=args,
                timeout_s=60,
                expected_s=3,
                mutates=False,
                on_failure="continue",
            ),
            Step(
                id="compare",
                verb="drill.compare",
                title="compare with the last drills",
                args={"faults": list(kinds), "policy": policy.model_dump(mode="json")},
                timeout_s=PICTURE_TIMEOUT_S + 10,
                expected_s=3,
                mutates=False,
            ),
        ),
        compensation=(
            Step(
                id="clean_up",
                verb="drill.clear",
                title="stop the drill tier",
                args=args,
                timeout_s=60,
                mutates=False,
            ),
        ),
        losses="nothing: no client reaches the drill tier",
        options=arguments.model_dump(mode="json", exclude_defaults=True),
    )


@step("drill.play")
async def play_fault(context: StepContext) -> StepResult:
    """Effect: processes of the drill tier only. Verified by the restore's own proofs; a killed one starts anew."""
    fault = str(context.args["fault"])
    host = drill_host(context.host, DrillPorts.model_validate(context.args["ports"]))
    play = Play(host=host, fault=fault, workdir=context.workdir / fault, report=context.report)
    try:
        record = await play.run(detect_s=float(context.args["detect_s"]))
    except (StepFailed, EngineError, RouterError, UnitError) as error:
        raise StepFailed(
            f"drill of {fault}: {error}",
            next_action=getattr(error, "next_action", "")
            or "see the timeline; the production tier was not touched",
            data={"drilled": play.record.model_dump(mode="json")},
            artifacts=_artifacts(play),
        ) from error
    phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in record.phase_s.items())
    return StepResult(
        summary=f"{record.verdict}; {phases}",
        data={"drilled": record.model_dump(mode="json")},
        artifacts=_artifacts(play),
        verdict=play.diagnosis,
    )


def _artifacts(play: Play) -> tuple[Artifact, ...]:
    """Return the files that the played actions wrote, and the record of every step; pictures are not shown in the thread."""
    path = write_atomically(play.workdir / f"drill_{play.fault}.json", play.record.model_dump_json(indent=1))
    kept = [artifact.model_copy(update={"inline": False}) for artifact in play.artifacts.values()]
    return (*kept, artifact_of(path, source="gpu_actions.drill", title=f"steps of the drill of {play.fault}"))


@step("drill.clear")
async def clear_tier(context: StepContext) -> StepResult:
    """Effect: every process of the drill tier ends. Verified by its units' state."""
    host = drill_host(context.host, DrillPorts.model_validate(context.args["ports"]))
    problems = await clear(host)
    left = [name for name, tier in host.tiers.items() if (await tier.unit.state()).active]
    if problems or left:
        raise StepFailed(
            f"the drill tier is not stopped: {'; '.join(problems) or ', '.join(left)}",
            next_action=f"end its processes: they work in {host.state_dir}",
        )
    return StepResult(summary="the drill tier is stopped; no process of it is left")


@step("drill.compare")
async def compare(context: StepContext) -> StepResult:
    """Effect: one line in the host's history of drills, and a chart. Verified by the file."""
    wanted = [str(name) for name in context.args["faults"]]
    played = [
        DrilledFault.model_validate(context.outputs[name]["drilled"])
        for name in wanted
        if "drilled" in context.outputs.get(name, {})
    ]
    missing = [name for name in wanted if name not in {one.fault for one in played}]
    if not played:
        raise StepFailed(
            f"no fault was played to its end ({', '.join(missing)})", next_action="see the steps above"
        )
    path = history_path(context.host.state_dir)
    earlier = tuple(one for one in read_history(path) if one.run_id != context.run_id)
    drill = Drill(run_id=context.run_id, at=time.time(), faults=tuple(played))
    append_drill(path, drill)
    slow = too_slow(drill, earlier, DrillPolicy.model_validate(context.args["policy"]))
    data = {"thread_text": table(drill, earlier), "slow": list(slow), "missing": missing}
    artifacts = await _chart(context, path)
    if missing:
        raise StepFailed(
            f"not played to the end: {', '.join(missing)}",
            next_action="the path does not work for it: mend that before an incident needs it",
            data=data,
            artifacts=artifacts,
        )
    total = sum(one.total_s for one in played)
    kinds = "1 fault kind" if len(played) == 1 else f"{len(played)} fault kinds"
    summary = f"{kinds} in {total:.0f} s, compared with {len(earlier)} earlier drill(s)"
    return StepResult(summary="; ".join([summary, *slow]), data=data, artifacts=artifacts, warning=bool(slow))


async def _chart(context: StepContext, history: Path) -> tuple[Artifact, ...]:
    """Draw the history in a child process. A drill does not fail because of its picture."""
    picture = context.workdir / "drill_times.png"
    picture.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "gpu_actions.drill.picture", str(history), str(picture)]
    await run_process(argv, timeout_s=PICTURE_TIMEOUT_S)
    if not picture.is_file():
        return ()
    return (
        artifact_of(picture, source="gpu_actions.drill.picture", title="times of the drills", inline=True),
    )


SPEC = ActionSpec(
    name="drill",
    prefix="dr",
    summary="Play an incident on a tier of its own beside the service: break, triage, fallback, restore.",
    arguments=DrillArguments,
    plan=plan_drill,
    changes_host=False,
    disturbs_service=True,
    needs_calm=True,
    usages=(
        ("start [host] [fault=KIND]", "play each fault kind in turn, or one"),
        ("plan [host]", "show what it would do"),
        ("status [host]", "show where the last one is"),
        ("stop [host]", "stop it and clear the drill tier"),
    ),
)
