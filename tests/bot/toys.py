"""A toy action whose steps leave countable effects: files with one line per execution of a step.

Its plan is a script such as `count:a count:b hold:c`. `hold` waits for a file, so that a test controls the run.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import Field

import bot.runs.dbos_config
from bot.hosts import Hosts
from bot.incidents.artifacts import ArtifactStore
from bot.runs.run_engine import ProcessRole
from bot.runs.runs import Runs
from bot.settings.model import AccessSettings, ApprovalRule, ArtifactSettings, Settings
from bot.store.records import Person, Place, RunRecord
from bot.store.store import Store
from gpu_actions.action import ActionSpec, PlanRefused, PlanRequest, StepContext, StepFailed, StepResult, step
from gpu_actions.config.host import EngineConfig, HostConfig, TierConfig
from gpu_actions.models import Frozen, JsonObject, Verdict, VerdictKind
from gpu_actions.plan import Plan, Step
from gpu_actions.serving.routers.haproxy import HaproxyConfig
from gpu_actions.serving.units.process import ProcessUnit
from gpu_actions.system.files import artifact_of
from gpu_actions.system.processes import child_environment, run_process

if TYPE_CHECKING:
    from gpu_actions.host import Host

ONCALL = Person(id="U_ONCALL", name="oncall")
LEAD = Person(id="U_LEAD", name="lead")
OTHER = Person(id="U_OTHER", name="other")
HERE = Place(channel="C_INCIDENTS")

TREE = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"


class ToyArguments(Frozen):
    """The options of the toy action."""

    script: str = Field(default="count:a count:b", description="words VERB:ID")
    settle: str = Field(default="", description="the same, for the compensation")
    tries: int = Field(default=1, ge=1, le=5, description="alternatives of the group of steps named *ID")
    qps: float = Field(default=1, gt=0, le=100)
    timeout_s: float = Field(default=60, gt=0)
    refuse: str = ""


@dataclass(frozen=True)
class ToyHost:
    """The part of a host that toy steps use."""

    name: str
    state_dir: Path


def effects_dir(state_dir: Path) -> Path:
    """Return the folder of the effects of the toy host's steps."""
    return state_dir / "hosts" / "toy" / "effects"


def effects(state_dir: Path, name: str) -> list[str]:
    """Return the lines that a step left; each is the `alternative` of that attempt."""
    path = effects_dir(state_dir) / name
    return path.read_text().splitlines() if path.is_file() else []


def _leave(context: StepContext, name: str, line: str) -> None:
    _leave_at(context.host, name, line)


def _leave_at(host: "Host", name: str, line: str) -> None:
    folder = host.state_dir / "effects"
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{line}\n".encode())
    os.fsync(descriptor)
    os.close(descriptor)


@step("toy.count")
async def count(context: StepContext) -> StepResult:
    """Write one line."""
    _leave(context, context.step.id, str(context.args.get("alternative", "")))
    return StepResult(summary=f"counted {context.step.id}", data={"seen": sorted(context.outputs)})


@step("toy.hold")
async def hold(context: StepContext) -> StepResult:
    """Write a line, wait for the file `release`, write another line."""
    _leave(context, context.step.id, str(os.getpid()))
    while not (context.host.state_dir / "effects" / "release").exists():
        context.report("holding", 0.5)
        await asyncio.sleep(0.01)
    _leave(context, f"{context.step.id}.done", str(os.getpid()))
    return StepResult(summary="held")


@step("toy.signal")
async def until_signal(context: StepContext) -> StepResult:
    """Wait for a signal."""
    while not (told := await context.signals()):
        await asyncio.sleep(0.01)
    return StepResult(summary=f"told {', '.join(told)}")


@step("toy.fail")
async def fail(context: StepContext) -> StepResult:
    """Write a line and fail."""
    _leave(context, context.step.id, str(context.args.get("alternative", "")))
    raise StepFailed("it did not work", next_action="try the other one")


@step("toy.warn")
async def warn(context: StepContext) -> StepResult:
    """Finish with a warning."""
    return StepResult(summary="done, but check it", warning=True)


@step("toy.defect")
async def defect(context: StepContext) -> StepResult:
    """Raise an unexpected exception."""
    raise ZeroDivisionError("a defect")


@step("toy.tree")
async def tree(context: StepContext) -> StepResult:
    """Run a child with a grandchild, both sleeping for ten minutes."""
    marked = {**child_environment(), "TOY_TREE": str(context.host.state_dir)}
    _leave(context, context.step.id, "")
    await run_process([sys.executable, "-c", TREE], timeout_s=600, env=marked)
    return StepResult(summary="the tree ended by itself")


@step("toy.file")
async def file(context: StepContext) -> StepResult:
    """Create an artifact."""
    path = context.workdir / "report.txt"
    path.write_text("evidence\n")
    return StepResult(summary="made a file", artifacts=(artifact_of(path, source="toy"),))


@step("toy.verdict")
async def verdict(context: StepContext) -> StepResult:
    """Return a bad verdict."""
    return StepResult(
        summary="bad", verdict=Verdict(verdict=VerdictKind.FALL_BACK, cause="nccl_hang", summary="it hangs")
    )


@step("toy.calm")
async def calm(context: StepContext) -> StepResult:
    """Return a healthy verdict."""
    return StepResult(
        summary="fine",
        verdict=Verdict(verdict=VerdictKind.HEALTHY, cause="none", summary="all checks passed"),
    )


async def plan(request: PlanRequest) -> Plan:
    """Make a plan from the script. Its `losses` come from a file, so that a test can change the plan."""
    given: ToyArguments = request.arguments
    if given.refuse:
        raise PlanRefused([given.refuse])
    alternatives: dict[str, tuple[JsonObject, ...]] = {}
    if given.tries > 1:
        alternatives = {"tried": tuple({"alternative": f"try{n}"} for n in range(1, given.tries + 1))}
    marker = request.host.state_dir / "plan-marker"
    return Plan(
        action="toy",
        host=request.host.name,
        title="a toy",
        steps=_steps(given.script, given.timeout_s),
        compensation=_steps(given.settle, given.timeout_s),
        alternatives=alternatives,
        losses=marker.read_text() if marker.exists() else "",
        options={
            "qps": given.qps,
            "cause": request.verdict.cause if request.verdict else "",
            "fresh": 0 <= request.verdict_age_s < 60,
        },
    )


def _steps(script: str, timeout_s: float) -> tuple[Step, ...]:
    made = []
    for word in script.split():
        verb, name = word.split(":")
        grouped = name.startswith("*")
        name = name.removeprefix("*")
        goes_on = name.endswith("?")
        name = name.removesuffix("?")
        made.append(
            Step(
                id=name,
                verb=f"toy.{verb}",
                title=f"{verb} {name}",
                timeout_s=timeout_s,
                group="tried" if grouped else None,
                on_failure="continue" if goes_on else "stop",
            )
        )
    return tuple(made)


def toy_actions() -> dict[str, ActionSpec]:
    """Return the toy action under four names: changing, read-only, with approval and a preparation, and as triage."""
    shapes = {"toy": ("toy", True), "look": ("lk", False), "gated": ("gt", True), "triage": ("tr", False)}

    def spec(name: str, prefix: str, changes: bool) -> ActionSpec:
        async def planned(request: PlanRequest) -> Plan:
            return (await plan(request)).model_copy(update={"action": name})

        async def prepared(request: PlanRequest) -> Plan:
            _leave_at(request.host, "prepared", name)
            return await planned(request)

        async def give_back(host: "Host") -> None:
            _leave_at(host, "given_back", name)

        return ActionSpec(
            plan_start=prepared if name == "gated" else None,
            give_back=give_back if name == "gated" else None,
            name=name,
            prefix=prefix,
            summary="",
            arguments=ToyArguments,
            plan=planned,
            changes_host=changes,
        )

    return {name: spec(name, *shape) for name, shape in shapes.items()}


def toy_settings(state_dir: Path, *, expires_s: float = 600, approvals: int = 1) -> Settings:
    """Return settings with one host `toy`, whose drivers are never used."""

    def tier(name: str) -> TierConfig:
        return TierConfig(
            engine=EngineConfig(url="http://127.0.0.1:9", model="toy"),
            unit=ProcessUnit(argv=("true",)),
            server=name,
        )

    rule = ApprovalRule(approvals=approvals, expires_s=expires_s)
    return Settings(
        _env_file=None,
        state_dir=state_dir,
        # model_construct, since the validator refuses "gated", which is not an action of the product
        access=AccessSettings.model_construct(
            roles={}, change="responder", groups_ttl_s=300, approvals={"gated": rule}
        ),
        artifacts=ArtifactSettings(max_mib=1),
        hosts=(
            HostConfig(
                name="toy",
                tiers={"tp": tier("tp"), "fallback": tier("fallback")},
                router=HaproxyConfig(url="http://127.0.0.1:9"),
            ),
        ),
    )


def build(
    state_dir: Path,
    *,
    role: ProcessRole = "all",
    **how: float,
) -> tuple[Settings, Store, Runs]:
    """Return settings, store and runs with toy actions. Nothing is launched."""
    hurry()
    settings = toy_settings(state_dir, **how)  # type: ignore[arg-type]
    store = Store(settings.own_database_url)
    folder = settings.host_dir("toy")
    folder.mkdir(parents=True, exist_ok=True)
    runs = Runs(
        settings,
        store=store,
        artifacts=ArtifactStore(settings, store),
        actions=toy_actions(),
        hosts=Hosts(settings, {"toy": cast("Host", ToyHost("toy", folder))}),
        role=role,
    )
    return settings, store, runs


def hurry() -> None:
    """Shorten the poll interval of DBOS, so that closing it does not take a second in every test."""
    bot.runs.dbos_config.NOTIFICATION_POLL_S = 0.02


@asynccontextmanager
async def launched(state_dir: Path, *, role: ProcessRole = "all", **how: float) -> AsyncIterator[Runs]:
    """Launch runs with toy actions for the duration of the block."""
    _, store, runs = build(state_dir, role=role, **how)
    await runs.engine.launch()
    try:
        yield runs
    finally:
        await runs.engine.close()
        store.close()


def store_of(state_dir: Path) -> Store:
    """Return a second store on the same database, as another process has."""
    store = Store(toy_settings(state_dir).own_database_url)
    store.create()
    return store


async def start(runs: Runs, action: str = "toy", *, key: str = "", **options: str) -> RunRecord:
    """Start a run as `oncall`."""
    started = await runs.start(
        action=action,
        host=None,
        options=options,
        requester=ONCALL,
        place=HERE,
        dedupe_key=key or os.urandom(8).hex(),
    )
    return started.run


async def ended(runs: Runs, run_id: str) -> RunRecord:
    """Wait until a run has ended and return it."""
    async with asyncio.timeout(30):
        return await runs.wait(run_id, until=lambda run: run.status.final)
