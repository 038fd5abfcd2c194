"""A slash command, and the subcommands that all actions share: plan, start, status, stop.

A command module declares one `Command`; the slash command, `/gpu NAME` and a mention in a thread all call its `run`.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from bot.presenter import forms, private_answers
from bot.presenter.help import CommandText, command_help
from bot.presenter.plan_message import plan_message
from bot.presenter.vocabulary import action_name, diagnoses
from bot.runs.planning import typed_options
from bot.slack.channels import why_unseen
from bot.store.records import IncidentRecord, Place, RunRecord, UserError
from gpu_actions.action import ActionSpec
from handlers import modals
from handlers.arguments import Grammar, Words, parse
from handlers.call import Call, permalink

POST_SCOPE = "chat:write"
FORM_FROM = 3
"""An action with this many options has a form for them: on a phone nobody types them."""

Subcommand = Callable[[Call, Words], Awaitable[None]]
FreeText = Callable[[Call, str], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Command(CommandText):
    """One slash command: its texts, the function of each subcommand, and what else its words may be.

    `free_text` holds subcommands that take the rest of the line as it was typed; `default` is the subcommand that may be
    left out; `flags` are words that set an option to true.
    """

    subcommands: Mapping[str, Subcommand]
    free_text: Mapping[str, FreeText] = field(default_factory=dict)
    default: str = ""
    flags: tuple[str, ...] = ()
    takes_options: bool = True

    async def run(self, call: Call, text: str) -> None:
        """Parse the words and call the subcommand. Raises UserError for words that are not understood."""
        first, _, rest = text.strip().partition(" ")
        first = first.lower().lstrip("-")
        if first in self.free_text:
            await self.free_text[first](call.about(call.slash(self.name, first)), rest.strip())
            return
        words = parse(text, self.grammar(call.slash(self.name)), call.services.hosts)
        if words.subcommand == "help":
            spec = call.services.actions.get(self.name) if self.takes_options else None
            fields = spec.arguments.model_fields if spec is not None else {}
            options = {name: field.description or "" for name, field in fields.items()}
            await call.answer(command_help(self, call.context, hosts=call.services.hosts, options=options))
            return
        await self.subcommands[words.subcommand](call.about(call.slash(self.name, words.subcommand)), words)

    def grammar(self, name: str) -> Grammar:
        """Return what the command accepts; `name` is the name it has in the settings, with its slash."""
        return Grammar(
            name=name,
            subcommands=(*self.subcommands, *self.free_text),
            default=self.default,
            flags=self.flags,
            takes_options=self.takes_options,
        )


def action_command(
    spec: ActionSpec,
    *,
    usages: Mapping[str, str] | None = None,
    free_text: Mapping[str, FreeText] | None = None,
) -> Command:
    """Build the command of an action from what the action declares, plus further subcommands."""
    shared = {"plan": _plan, "start": _start, "status": _status, "stop": _stop}
    subcommands = {name: partial(shared[name], spec.name) for name in spec.subcommands}
    filled = {"form": partial(_form, spec.name)} if len(spec.arguments.model_fields) >= FORM_FROM else {}
    form = {"form [host]": "choose the options in a form"} if filled else {}
    return Command(
        name=spec.name,
        summary=spec.summary,
        hint=spec.usage_hint,
        usages=dict(spec.usages) | form | dict(usages or {}),
        subcommands=subcommands | filled,
        free_text=free_text or {},
        default="start" if spec.starts_by_name else "",
        task=_task(spec),
        flags=spec.flags,
    )


def _task(spec: ActionSpec) -> str:
    """Return what people want when they need an action."""
    if spec.diagnoses:
        return "See what is wrong"
    if spec.changes_host:
        return "Change what serves"
    return "Measure it" if spec.disturbs_service else "Keep the record"


def host_of(call: Call, words: Words) -> str:
    """Return the host that was named, or the default host of the settings."""
    return words.host or call.services.default_host()


async def require_role(call: Call, action: str, doing: str) -> None:
    """Raise UserError if the action needs a role that the person does not hold."""
    spec = call.services.actions.get(action)
    if spec is None or spec.changes_host or spec.disturbs_service:
        await call.services.access.require(call.person, call.services.access.change_role, doing)


async def _require_for_overrides(call: Call, action: str, host: str, options: Mapping[str, str]) -> None:
    """Raise UserError if an option overrules a check and the person may not do that, or if nobody would see the run."""
    spec, access = call.services.actions.get(action), call.services.access
    if spec is None:
        return
    if given := sorted(spec.overrides & options.keys()):
        await access.require(call.person, "override", f"start {action} on {host} with {', '.join(given)}")
    if not (spec.changes_host or spec.disturbs_service):
        if stranger := await access.reader_refusal(call.person, f"start {action} on {host}"):
            raise UserError(stranger)
    elif call.channel.startswith("D"):
        where = call.services.settings.slack.incident_channel.removeprefix("#")
        raise UserError(
            f"Ask for {action} in #{where}, not in a direct message: others must see what happens to {host}."
        )


async def _require_seen(call: Call, action: str, place: Place) -> None:
    """Raise UserError if a run would be where nobody sees its messages."""
    services = call.services
    if POST_SCOPE in services.identity.missing_scopes:
        raise UserError(
            f"The app lacks the scope {POST_SCOPE}, so nobody would see what happens, and nothing was started. "
            "Apply `gpu-oncall manifest` to the app and install it again."
        )
    if problem := await why_unseen(call.client, place.channel, services.identity.name):
        raise UserError(problem)


async def start_run(
    call: Call, action: str, host: str, options: Mapping[str, str], *, place: Place | None = None
) -> None:
    """Start a run. Its message is the answer where the person is; elsewhere they are told where to follow it.

    `place` defaults to where the person is (see `_place_for`).
    """
    await require_role(call, action, f"start {action} on {host}")
    await _require_for_overrides(call, action, host, options)
    services = call.services
    incident = services.incidents.active(host)
    where = place or _place_for(call, action, host)
    await _require_seen(call, action, where)
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
    if (
        not result.duplicate
        and run.place.channel == call.channel
        and run.place.thread_ts in (None, call.thread_ts)
    ):
        return  # its message appears here
    url = await permalink(call.client, run.place.channel, run.message_ts or run.place.thread_ts)
    await call.answer(private_answers.started(run, duplicate=result.duplicate, url=url))


async def stop_run(call: Call, run: RunRecord) -> None:
    """Stop one run. Some actions end early and keep what they measured; all others are cancelled and cleaned up."""
    await require_role(call, run.action, f"stop {run.action} on {run.host}")
    spec = call.services.actions.get(run.action)
    if spec is not None and spec.keeps_partial_results and run.started_at is not None:
        run = await call.services.runs.signal(run.id, "stop", by=call.person)
        await call.answer(
            private_answers.accepted(f"{run.id} is ending early and keeps what it has measured.")
        )
        return
    run = await call.services.runs.stop(run.id, by=call.person)
    await call.answer(
        private_answers.accepted(f"{run.id} is stopping. Its message will say how it left the host.")
    )


async def _start(action: str, call: Call, words: Words) -> None:
    await start_run(call, action, host_of(call, words), words.options)


async def _plan(action: str, call: Call, words: Words) -> None:
    """Show what a start would do. Open to everyone; nothing is changed."""
    host = host_of(call, words)
    async with call.loading(f"Planning {action_name(action).lower()} on {host} ..."):
        plan = await call.services.runs.plan(
            action=action, host=host, options=dict(words.options), requester=call.person
        )
    await call.answer(plan_message(plan, call.context))


async def _status(action: str, call: Call, words: Words) -> None:
    host = host_of(call, words)
    latest = call.services.runs.latest
    run = _named_run(call, action, words.run_id) if words.run_id else latest(action=action, host=host)
    url = await permalink(call.client, run.place.channel, run.message_ts) if run is not None else ""
    await call.answer(private_answers.status_message(run, action, host, call.context, url=url))


async def _stop(action: str, call: Call, words: Words) -> None:
    """Stop the named run, or the only active run of the action on the host."""
    if words.run_id:
        run = _named_run(call, action, words.run_id)
        if run.status.final:
            raise UserError(f"{run.id} is over ({run.status.value}), so there is nothing to stop.")
        await stop_run(call, run)
        return
    host = host_of(call, words)
    active = call.services.runs.list(action=action, host=host, active_only=True)
    if not active:
        raise UserError(
            f"No {action_name(action).lower()} is running on {host}, so there is nothing to stop."
        )
    if len(active) > 1:
        raise UserError(
            f"Several are running on {host}: {', '.join(run.id for run in active)}. Say which one."
        )
    await stop_run(call, active[0])


def _named_run(call: Call, action: str, run_id: str) -> RunRecord:
    run = call.services.runs.get(run_id)
    if run is None:
        raise UserError(f"I know no run {run_id!r}.")
    if run.action != action:
        raise UserError(
            f"{run.id} is a {action_name(run.action).lower()}, not a {action_name(action).lower()}."
        )
    return run


def goes_on_in(incident: IncidentRecord, channel: str) -> bool:
    """Return True if what is asked for in a channel belongs to the place of this incident.

    An incident with a channel of its own takes everything; one with a thread only what is asked for in the same channel.
    """
    return incident.place.thread_ts is None or incident.place.channel == channel


def _place_for(call: Call, action: str, host: str) -> Place:
    """Return where a run's message goes: the thread it was asked for in, else the incident's thread, else the channel.

    A verdict card goes to the channel even during an incident, so that everyone sees it.
    """
    if call.thread_ts is not None:
        return Place(channel=call.channel, thread_ts=call.thread_ts)
    incident = call.services.incidents.active(host)
    if not diagnoses(action) and incident is not None and goes_on_in(incident, call.channel):
        return incident.place
    return Place(channel=call.channel)


async def _form(action: str, call: Call, words: Words) -> None:
    """Show an action's options as a form."""
    host = host_of(call, words)
    if not call.trigger_id:
        slash = call.slash(action, "form")
        raise UserError(
            f"A form opens from a slash command only: {slash}. Or write the options as key=value."
        )
    await require_role(call, action, f"start {action} on {host}")
    spec = call.services.actions[action]

    async def build() -> modals.View:
        about = json.dumps({"action": action, "channel": call.channel, "thread": call.thread_ts})
        return forms.options_view(spec, host, call.services.hosts, callback=OPTIONS, metadata=about)

    await modals.show(call, spec.label, build, otherwise=forms.no_form(call.slash(action, "help")))


def _options_of(values: modals.Values) -> dict[str, str]:
    return {
        name.removeprefix(forms.OPTION): value
        for name, value in values.items()
        if name.startswith(forms.OPTION)
    }


def _wrong_option(call: Call, about: modals.View, values: modals.Values) -> Mapping[str, str]:
    """Return the first option that is wrong, under its own field."""
    spec = call.services.actions.get(str(about.get("action")))
    if spec is None:
        return {forms.HOST: "This form belongs to another version of the bot: open it again."}
    try:
        typed_options(spec, _options_of(values))
    except UserError as error:
        name = next((n for n in spec.arguments.model_fields if str(error).startswith(f"{n}=")), "")
        return {f"{forms.OPTION}{name}" if name else forms.HOST: str(error)[:150]}
    return {}


async def _start_filled(call: Call, about: modals.View, values: modals.Values) -> None:
    host = values.get(forms.HOST) or call.services.default_host()
    await start_run(call, str(about["action"]), host, _options_of(values))


OPTIONS = "options"
FORMS: Mapping[str, modals.Form] = {OPTIONS: modals.Form(submit=_start_filled, check=_wrong_option)}
