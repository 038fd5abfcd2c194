"""The Slack side of the bot: the slash commands, and the listeners that connect them to Bolt.

Every action has a command, built from its spec; a command of its own, or one with more subcommands, takes one module and
one entry in `COMMANDS`. Help, manifest, Home tab, `/gpu`, mentions and the command names in the settings read this table.
Every listener acknowledges before it looks anything up.
"""

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
from slack_bolt.async_app import AsyncAck, AsyncApp, AsyncBoltContext, AsyncRespond
from slack_sdk.web.async_client import AsyncWebClient

from bot.presenter import private_answers
from bot.presenter.help import CommandText
from bot.presenter.message import Message
from bot.services import Services
from bot.settings.load import SettingsError
from bot.settings.model import SlackSettings
from bot.store.records import Person, UserError
from gpu_actions.registry import actions
from handlers import (
    approvals,
    buttons,
    command,
    drill,
    gpu,
    home,
    incident,
    loadtest,
    mentions,
    modals,
    reactions,
)
from handlers.arguments import did_you_mean
from handlers.call import Call, Request, ephemeral_answer, guarded, record, renamed_answer, respond_answer
from handlers.command import Command, action_command

COMMANDS: Mapping[str, Command] = {
    **{spec.name: action_command(spec) for spec in actions().values()},
    **{module.COMMAND.name: module.COMMAND for module in (loadtest, drill, incident)},
}
"""Every slash command by its name in the settings, in the order of help and manifest."""
SLASH_COMMANDS: tuple[CommandText, ...] = (*COMMANDS.values(), gpu.UMBRELLA)

FORMS: Mapping[str, modals.Form] = {**approvals.FORMS, **command.FORMS, **incident.FORMS}
"""Every form by its callback id."""

ARRIVED = "gpu_oncall_arrived"
ACK_LIMIT_S = 3.0
"""Slack reports a command or button as failed if it is not acknowledged within this time."""
EVENT_LIMIT_S = 300.0
"""A mention older than this is refused: Slack repeats an undelivered event for minutes, and the situation has changed."""

log = structlog.get_logger()

Body = dict[str, Any]
Work = Callable[[Call, str], Awaitable[None]]


def check_command_names(slack: SlackSettings) -> None:
    """Raise SettingsError if `slack.commands` renames a command that does not exist."""
    known = [command.name for command in SLASH_COMMANDS]
    problems = [
        f"slack.commands: {name!r} is not a command.{did_you_mean(name, known)} Commands: {', '.join(known)}."
        for name in slack.commands
        if name not in known
    ]
    if problems:
        raise SettingsError(problems)


async def stamp_arrival(context: AsyncBoltContext, next: Callable[[], Awaitable[Any]]) -> None:
    """Record when a request arrived (monotonic seconds); Bolt middleware, also used as `before_authorize` to run first."""
    context.setdefault(ARRIVED, time.monotonic())
    await next()


def register(app: AsyncApp, services: Services) -> None:
    """Attach every listener to a Bolt app."""

    def listener(read: Callable[[Body], Request | None], work: Work) -> Callable[..., Awaitable[None]]:
        return _listener(services, read, work)

    async def umbrella(call: Call, text: str) -> None:
        await gpu.run(call, text, COMMANDS)

    async def mention(call: Call, text: str) -> None:
        await mentions.run(call, text, COMMANDS)

    async def home_opened(call: Call, _: str) -> None:
        await home.publish(call, COMMANDS)

    slash = services.settings.slack.command
    app.use(stamp_arrival)
    for one in COMMANDS.values():
        app.command(slash(one.name))(listener(_command, one.run))
    app.command(slash(gpu.UMBRELLA.name))(listener(_command, umbrella))
    app.command(re.compile(r".*"))(listener(_command, _unknown_command))
    for callback, form in FORMS.items():
        app.view(callback)(_form_listener(services, form))
    for action_id, press in buttons.PRESSES.items():
        app.action(action_id)(listener(_button, press))
    app.action(re.compile(r".*"))(listener(_button, _unknown_button))
    app.event("app_mention")(listener(_mention, mention))
    app.event("app_home_opened")(listener(_home_tab, home_opened))
    app.event("reaction_added")(listener(partial(_reaction, services), reactions.record))
    app.event({"type": "message", "subtype": (None, "bot_message")})(listener(_direct_message, mention))
    app.event("message")(_ignore)


def _listener(
    services: Services, read: Callable[[Body], Request | None], work: Work
) -> Callable[..., Awaitable[None]]:
    async def listener(
        ack: AsyncAck, body: Body, respond: AsyncRespond, client: AsyncWebClient, context: AsyncBoltContext
    ) -> None:
        await ack()
        request = read(body)
        if request is None:
            return
        call = Call(**vars(request), services=services, client=client, answer=_no_answer)
        if request.from_app:
            # An app gives no orders. It is not answered either: two bots that answer each other never end.
            await record(call, "request.refused", f"an app gives no orders: {call.words}")
            log.warning("ignored: an app wrote to the bot", app=request.person.id, channel=request.channel)
            return
        answer = ephemeral_answer(client, request.channel, request.person.id, request.thread_ts)
        if body.get("response_url"):
            answer = respond_answer(respond, request.thread_ts, answer)
        answer = renamed_answer(answer, services.render_context().commands)
        late_s, limit_s = time.monotonic() - context[ARRIVED], ACK_LIMIT_S
        if request.sent_at is not None:
            now = services.store.clock() - services.identity.clock_ahead_s
            late_s, limit_s = now - request.sent_at, EVENT_LIMIT_S
        await guarded(replace(call, answer=answer), work, late_s=late_s, limit_s=limit_s)

    return listener


async def _no_answer(message: Message) -> None:
    """Answer nobody."""


def _form_listener(services: Services, form: modals.Form) -> Callable[..., Awaitable[None]]:
    """Return the listener of a form: a wrong field is answered in the form, anything else after it has closed."""

    async def listener(ack: AsyncAck, body: Body, client: AsyncWebClient, context: AsyncBoltContext) -> None:
        view = body["view"]
        about, values, user = modals.about_of(view), modals.values_of(view), body["user"]
        channel, thread = str(about.get("channel") or user["id"]), about.get("thread")
        call = Call(
            person=Person(id=str(user["id"]), name=str(user.get("username") or user.get("name") or "")),
            channel=channel,
            thread_ts=thread,
            key=f"view:{body['trigger_id']}",
            what=f"the form {view['title']['text']!r}",
            text=" ".join(f"{name}={value}" for name, value in values.items()),
            services=services,
            client=client,
            answer=renamed_answer(
                ephemeral_answer(client, channel, str(user["id"]), thread), services.render_context().commands
            ),
        )
        if errors := form.check(call, about, values):
            await ack(response_action="errors", errors=dict(errors))
            return
        await ack()

        async def work(call: Call, _: str) -> None:
            await form.submit(call, about, values)

        await guarded(call, work, late_s=time.monotonic() - context[ARRIVED], limit_s=ACK_LIMIT_S)

    return listener


def _command(body: Body) -> Request:
    return Request(
        person=Person(id=str(body["user_id"]), name=str(body.get("user_name") or "")),
        channel=str(body["channel_id"]),
        key=f"command:{body['trigger_id']}",
        what=str(body.get("command") or "the command"),
        text=str(body.get("text") or ""),
        trigger_id=str(body["trigger_id"]),
    )


def _button(body: Body) -> Request | None:
    action, user, container = body["actions"][0], body["user"], body.get("container") or {}
    if action.get("url"):
        return None  # a link: the client has opened it
    label = (action.get("text") or {}).get("text") or action["action_id"]
    return Request(
        person=Person(id=str(user["id"]), name=str(user.get("username") or user.get("name") or "")),
        channel=str((body.get("channel") or {}).get("id") or container.get("channel_id") or ""),
        thread_ts=container.get("thread_ts"),
        key=f"action:{body['trigger_id']}:{action.get('action_ts', '')}",
        what=f"the button {str(label)!r}",
        text=str(action.get("value") or ""),
        trigger_id=str(body["trigger_id"]),
    )


def _mention(body: Body) -> Request | None:
    event = body["event"]
    from_app = bool(event.get("bot_id")) or not event.get("user")
    return Request(
        person=Person(id=str(event.get("bot_id") or event.get("user") or "an app")),
        from_app=from_app,
        channel=str(event["channel"]),
        thread_ts=event.get("thread_ts"),
        key=f"event:{body.get('event_id') or event.get('ts')}",
        what="your mention",
        text=str(event.get("text") or ""),
        sent_at=float(event.get("event_ts") or event["ts"]),
    )


def _direct_message(body: Body) -> Request | None:
    """Read a message to the bot alone as a mention; every other message of a channel is not for the bot."""
    return _mention(body) if body["event"].get("channel_type") == "im" else None


def _reaction(services: Services, body: Body) -> Request | None:
    """Read the reaction that records a message; every other reaction is not for the bot."""
    event = body["event"]
    item, wanted = event.get("item") or {}, services.settings.slack.record_reaction
    if not wanted or event.get("reaction") != wanted or item.get("type") != "message":
        return None
    return Request(
        person=Person(id=str(event["user"])),
        channel=str(item["channel"]),
        key=f"event:{body.get('event_id') or event.get('event_ts')}",
        what=f"your reaction :{wanted}:",
        text=str(item["ts"]),
        sent_at=float(event["event_ts"]),
    )


def _home_tab(body: Body) -> Request | None:
    event = body["event"]
    if event.get("tab", "home") != "home":
        return None
    return Request(
        person=Person(id=str(event["user"])),
        channel=str(event.get("channel") or event["user"]),
        key=f"event:{body.get('event_id') or event.get('event_ts')}",
        what="the Home tab",
        what_was_asked=False,
    )


async def _unknown_command(call: Call, _: str) -> None:
    known = ", ".join(call.slash(command.name) for command in SLASH_COMMANDS)
    raise UserError(f"{call.what} is not one of my commands. I have {known}.")


async def _unknown_button(call: Call, _: str) -> None:
    await call.answer(private_answers.outdated_button())


async def _ignore() -> None:
    """Ignore edits, joins and other messages with a subtype."""
