"""Break-glass: plan and run an action on this host from a shell, when Slack or the database is away.

While the worker runs, it carries the run as if it came from Slack, and Slack is told once it answers again. Otherwise the plan
and the steps are the same without the database; this process then takes the worker's lock, so that two never act side by side,
and asks for no approval: whoever has a shell here has the right already. Every start, step and end is recorded
(`bot.store.local_record`).
"""

import asyncio
import contextlib
import getpass
import signal
import sys
import time
import uuid

import structlog
import typer

from bot.hosts import Hosts
from bot.incidents.artifacts import ArtifactStore
from bot.runs.planning import Planner
from bot.runs.process_lock import AlreadyRunning, ProcessLock
from bot.runs.runs import Runs
from bot.settings.model import Settings
from bot.store import local_record
from bot.store.records import NOT_YET, Person, RunRecord, RunStatus, UserError
from bot.store.store import Store, random_id
from gpu_actions.action import ActionSpec, PlanRefused
from gpu_actions.host import Host
from gpu_actions.plan import Plan
from gpu_actions.registry import actions
from gpu_actions.system.redact import redacted_head
from gpu_actions.walk import RunStep, StepEnd, WalkEnd, WalkReport, walk

log = structlog.get_logger()

USAGE_ERROR = 2
VERBS = ("plan", "start")
TAKEN_S = 30.0
"""A worker that lives takes a new run within a second, and plans it within a few."""


async def run_local(
    settings: Settings,
    *,
    action: str,
    verb: str,
    options: list[str],
    host: str | None,
    local: bool,
    as_json: bool,
) -> int:
    """Plan or run an action here. Return the exit code: 0 done or planned, 1 failed or refused, 2 wrong usage."""
    try:
        if verb not in VERBS:
            raise UserError(f"{verb!r} is not a verb; use one of: {', '.join(VERBS)}")
        pairs = _pairs(options)
        spec = actions()[action]
        if verb == "start" and spec.changes_host and not local:
            raise UserError(
                f"{action} changes the host. In Slack it is approved and recorded: use it there. "
                "Only when Slack or the database is away: add --local."
            )
        return await _run(settings, spec, verb, pairs, host, as_json)
    except UserError as error:
        typer.echo(f"{action}: {error}", err=True)
        return USAGE_ERROR


def _pairs(options: list[str]) -> dict[str, str]:
    pairs = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise UserError(f"{option!r} is not an option: write name=value")
        pairs[name] = value
    return pairs


async def _run(
    settings: Settings, spec: ActionSpec, verb: str, pairs: dict[str, str], name: str | None, as_json: bool
) -> int:
    hosts = Hosts(settings)
    planner = Planner(settings, actions=actions(), hosts=hosts, verdict=lambda _: None, clock=time.time)
    host = hosts.name(name)
    person = Person(id="shell", name=getpass.getuser())
    lock = ProcessLock(settings.state_dir)
    held = verb == "start" and spec.changes_host
    try:
        if held:
            lock.take()
        plan = await planner.plan(spec.name, host, pairs, person, starts=verb == "start")
        if verb == "plan":
            typer.echo(plan.model_dump_json(indent=1) if as_json else render_plan(plan))
            return 0
        return await _walk(settings, spec, plan, hosts.get(host), as_json)
    except AlreadyRunning as error:
        return await _through_worker(settings, spec, pairs, host, person, as_json, holder=str(error))
    except PlanRefused as refusal:
        for problem in refusal.problems:
            typer.echo(f"refused: {problem}", err=True)
        return 1
    finally:
        if held:
            lock.release()


async def _through_worker(
    settings: Settings,
    spec: ActionSpec,
    pairs: dict[str, str],
    host: str,
    person: Person,
    as_json: bool,
    *,
    holder: str,
) -> int:
    """Have the running worker carry the run, and print its steps until it ends. Ctrl-C stops it."""
    if spec.name in settings.access.approvals:
        raise UserError(
            f"the bot runs here, and {spec.name} needs approvals, which it takes in Slack. Without Slack: stop the bot, then "
            "give this command again."
        )
    store = Store(settings.own_database_url)
    runs = Runs(
        settings, store=store, artifacts=ArtifactStore(settings, store), actions=actions(), role="bot"
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await runs.engine.launch()
        started = await runs.start(
            action=spec.name,
            host=host,
            options=pairs,
            requester=person,
            place=NOT_YET,
            dedupe_key=f"shell:{uuid.uuid4().hex}",
        )
        run_id = started.run.id
        local_record.append(settings.state_dir, run=run_id, event="start", action=spec.name, by="worker")
        out = sys.stderr if as_json else sys.stdout
        print(f"{spec.name} on {host} ({run_id}): the running worker carries it", file=out, flush=True)
        try:
            async with asyncio.timeout(TAKEN_S):
                await runs.wait(run_id, until=lambda run: run.status is not RunStatus.PLANNING)
        except TimeoutError:  # another shell holds the host, or a worker that hangs
            await runs.stop(run_id, by=person)
            raise UserError(f"{holder} It did not take the run within {TAKEN_S:.0f} s.") from None
        stopping = asyncio.create_task(_stop_when(stop, runs, run_id, person))
        shown: set[tuple[str, int]] = set()

        def ended(run: RunRecord) -> bool:
            for step in run.steps:
                if step.ended_at is not None and (step.step_id, step.attempt) not in shown:
                    shown.add((step.step_id, step.attempt))
                    took_s = step.ended_at - (step.started_at or step.ended_at)
                    print(
                        f"  {step.status.value:>9}  {step.step_id}: {step.summary} ({took_s:.1f} s)",
                        file=out,
                        flush=True,
                    )
            return run.status.final

        run = await runs.wait(run_id, until=ended)
        stopping.cancel()
    finally:
        await runs.engine.close()
        store.close()
    local_record.append(settings.state_dir, run=run_id, event="end", status=run.status.value)
    problems = [f"refused: {problem}" for problem in run.problems]
    end = run.model_dump_json(indent=1) if as_json else f"{run.status.value.upper()}: {run.outcome}"
    typer.echo("\n".join([*problems, end]))
    return 0 if run.status is RunStatus.SUCCEEDED else 1


async def _stop_when(stop: asyncio.Event, runs: Runs, run_id: str, by: Person) -> None:
    await stop.wait()
    with contextlib.suppress(UserError):
        await runs.stop(run_id, by=by)


async def _walk(settings: Settings, spec: ActionSpec, plan: Plan, host: Host, as_json: bool) -> int:
    run_id = random_id(spec.prefix)
    folder = settings.state_dir
    local_record.append(
        folder,
        run=run_id,
        event="start",
        action=plan.action,
        host=host.name,
        plan=plan.hash,
        title=plan.title,
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    out = sys.stderr if as_json else sys.stdout

    def began(move: RunStep) -> None:
        print(f"  ... {move.step.title}", file=out, flush=True)

    def ended(move: RunStep, end: StepEnd) -> None:
        outcome = end.outcome
        local_record.append(
            folder,
            run=run_id,
            event="step",
            step=move.step.id,
            status=outcome.status,
            summary=redacted_head(outcome.summary, 2000),
        )
        print(
            f"  {outcome.status:>9}  {move.step.id}: {outcome.summary} ({end.seconds:.1f} s)",
            file=out,
            flush=True,
        )
        for artifact in end.artifacts:
            print(f"             {artifact.path}", file=out, flush=True)

    print(f"{plan.title} ({run_id}, plan {plan.hash})", file=out, flush=True)
    end = await walk(
        plan,
        host,
        run_id=run_id,
        workdir=settings.host_dir(host.name) / "runs" / run_id,
        report=WalkReport(began=began, ended=ended),
        stop=stop,
    )
    local_record.append(folder, run=run_id, event="end", status=end.ended.status)
    typer.echo(end.model_dump_json(indent=1) if as_json else _outcome(end))
    return 0 if end.ended.status == "succeeded" else 1


def _outcome(end: WalkEnd) -> str:
    last = end.last
    line = f"{end.ended.status.upper()}" + (f": {last.outcome.summary}" if last else "")
    return line + (f"\nNext: {last.outcome.next_action}" if last and last.outcome.next_action else "")


def render_plan(plan: Plan) -> str:
    """Return the plan for a terminal: its title, what is lost, and every step with its details."""
    lines = [f"{plan.title} (plan {plan.hash}, about {plan.expected_s:.0f} s)"]
    if plan.losses:
        lines.append(f"What is lost: {plan.losses}")
    lines += [f"Warning: {warning}" for warning in plan.warnings]
    for number, step in enumerate(plan.steps, 1):
        lines.append(f"{number:>3}. {step.title}")
        lines += [f"       {detail}" for detail in step.details]
    return "\n".join(lines)
