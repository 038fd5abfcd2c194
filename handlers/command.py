"""What a slash command is to us, and what all commands on runs share: plan, start, status, stop.

A command module states its grammar and help once and gives a function; the same function serves the slash command, the umbrella
`/gpu` and a mention in a thread.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from bot.presenter import answers
from bot.presenter.help import CommandHelp, SubcommandHelp, command_help
from bot.presenter.plan_message import plan_message
from bot.presenter.view import action_name, diagnoses
from bot.store.records import Place, RunRecord, UserError
from gpu_actions.action import ActionSpec
from handlers.arguments import Grammar, Words, parse
from handlers.call import Call, permalink

Subcommand = Callable[[Call, Words], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: its name in `settings.slack.commands`, what it understands, and the function of each subcommand."""

    name: str
    summary: str
    grammar: Grammar
    usages: tuple[SubcommandHelp, ...]
    subcommands: Mapping[str, Subcommand]

    async def run(self, call: Call, text: str) -> None:
        """Parse the words and do what they say. Raises UserError for words that are not understood."""
        services = call.services
        words = parse(text, self.grammar, services.hosts)
        if words.subcommand == "help":
            await call.answer(command_help(self.help(call), call.view, hosts=services.hosts))
            return
        await self.subcommands[words.subcommand](call.about(f"/{self.name} {words.subcommand}"), words)

    def help(self, call: Call) -> CommandHelp:
        """Its help, with the options that the action itself declares."""
        spec = call.services.actions.get(self.name)
        options = (
            ()
            if spec is None or not self.grammar.takes_options
            else tuple((name, field.description or "") for name, field in spec.arguments.model_fields.items())
        )
        return CommandHelp(self.name, self.summary, self.usages, options)


def host_of(call: Call, words: Words) -> str:
    """The host that was named, or the only sensible one: the default host of the settings."""
    return words.host or call.services.settings.default_host.name


async def require_change(call: Call, action: str, doing: str) -> None:
    """Raise UserError when the action changes a host and the person does not hold the role for it."""
    spec = call.services.actions.get(action)
    if spec is None or spec.changes_host:
        await call.services.access.require(call.person, call.services.access.change_role, doing)


async def start(call: Call, action: str, words: Words) -> None:
    """Start a run and tell where it is to be seen. The run engine plans, checks and works; this returns at once."""
    await start_run(call, action, host_of(call, words), words.options)


async def start_run(
    call: Call, action: str, host: str, options: Mapping[str, str], *, place: Place | None = None
) -> RunRecord:
    """Start an action at a place (by default: where the person is, in the incident's thread if there is one)."""
    await require_change(call, action, f"start {action} on {host}")
    services = call.services
    where = place or place_for(call, action, host)
    incident = services.incidents.active(host)
    async with call.loading(f"Starting {action_name(action).lower()} on {host} ..."):
        result = await services.runs.start(
            action=action,
            host=host,
            options=dict(options),
            requester=call.person,
            place=where,
            dedupe_key=call.key,
            incident_id=incident.id if incident is not None else None,
        )
    run = result.run
    url = await permalink(call.client, run.place.channel, run.message_ts or run.place.thread_ts)
    in_thread = run.place.thread_ts is not None
    await call.answer(answers.started(run, duplicate=result.duplicate, url=url, in_thread=in_thread))
    return run


def place_for(call: Call, action: str, host: str) -> Place:
    """Where a run's message goes.

    In a thread: there. In a channel with an open incident of the host: in the incident's thread, but a verdict card stands in
    the channel itself, where everybody sees it. Else: in the channel.
    """
    if call.thread_ts is not None:
        return Place(channel=call.channel, thread_ts=call.thread_ts)
    incident = call.services.incidents.active(host)
    if not diagnoses(action) and incident is not None and incident.place.channel == call.channel:
        return incident.place
    return Place(channel=call.channel)


async def plan(call: Call, action: str, words: Words) -> None:
    """Show what a start would do. Free for everybody; nothing is changed."""
    host = host_of(call, words)
    async with call.loading(f"Making the plan: looking at what is there on {host} ..."):
        made = await call.services.runs.plan(
            action=action, host=host, options=dict(words.options), requester=call.person
        )
    await call.answer(plan_message(made, call.view))


async def status(call: Call, action: str, words: Words) -> None:
    """Where the latest run of the action on the host stands, or the run that was named."""
    run = (
        named_run(call, action, words)
        if words.run_id
        else call.services.runs.latest(action=action, host=host_of(call, words))
    )
    url = await permalink(call.client, run.place.channel, run.message_ts) if run is not None else ""
    await call.answer(answers.status_message(run, action, host_of(call, words), call.view, url=url))


async def stop(call: Call, action: str, words: Words) -> None:
    """Stop the active run of the action on the host, or the run that was named."""
    run = active_run(call, action, words)
    await stop_run(call, run)


async def stop_run(call: Call, run: RunRecord) -> None:
    """Stop one run. A load test or a trace ends early and keeps what it has; everything else is cancelled and cleaned up."""
    await require_change(call, run.action, f"stop {run.action} on {run.host}")
    spec = call.services.actions.get(run.action)
    if spec is not None and spec.keeps_partial_results and run.started_at is not None:
        run = await call.services.runs.signal(run.id, "stop", by=call.person)
        await call.answer(answers.accepted(f"{run.id} ends now and keeps what it measured so far."))
        return
    run = await call.services.runs.stop(run.id, by=call.person)
    await call.answer(answers.accepted(f"{run.id} is being stopped; its message says what state it leaves."))


def active_run(call: Call, action: str, words: Words) -> RunRecord:
    """The run to act on. Raises UserError when there is none or it is over."""
    host = host_of(call, words)
    if words.run_id:
        run = named_run(call, action, words)
        if run.status.final:
            raise UserError(f"{run.id} is over ({run.status.value}); there is nothing to stop.")
        return run
    active = call.services.runs.list(action=action, host=host, active_only=True)
    if not active:
        raise UserError(f"No {action_name(action).lower()} is running on {host}; there is nothing to stop.")
    if len(active) > 1:
        ids = ", ".join(run.id for run in active)
        raise UserError(f"Several are running on {host}: {ids}. Say which one.")
    return active[0]


def named_run(call: Call, action: str, words: Words) -> RunRecord:
    run = call.services.runs.get(words.run_id or "")
    if run is None:
        raise UserError(f"I know no run {words.run_id!r}.")
    if run.action != action:
        raise UserError(
            f"{run.id} is a {action_name(run.action).lower()} run, not a {action_name(action).lower()} run."
        )
    return run


def action_command(spec: ActionSpec) -> Command:
    """Build the command of an action from what the action declares."""
    shared: dict[str, Callable[[Call, str, Words], Awaitable[None]]] = {
        "plan": plan,
        "start": start,
        "status": status,
        "stop": stop,
    }

    def bound(function: Callable[[Call, str, Words], Awaitable[None]]) -> Subcommand:
        async def run(call: Call, words: Words) -> None:
            await function(call, spec.name, words)

        return run

    return Command(
        name=spec.name,
        summary=spec.summary,
        grammar=Grammar(
            name=spec.name,
            subcommands=spec.subcommands,
            default="start" if spec.starts_by_name else "",
            flags=spec.flags,
        ),
        usages=tuple(SubcommandHelp(usage, text) for usage, text in spec.usages),
        subcommands={name: bound(shared[name]) for name in spec.subcommands},
    )
