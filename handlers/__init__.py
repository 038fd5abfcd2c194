"""Slack's side of the bot: one module a slash command, thin listeners that acknowledge, check, hand over and return.

`register` is the only entry. Every listener acknowledges before it looks anything up, then runs in the frame of
`handlers.call.guarded`, so nothing that a person does is ignored in silence.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from slack_bolt.async_app import AsyncAck, AsyncApp, AsyncBoltContext, AsyncRespond
from slack_sdk.web.async_client import AsyncWebClient

from bot.presenter import answers
from bot.services import Services
from bot.store.records import Person, UserError
from gpu_actions.registry import actions
from handlers import buttons, gpu, home, incident, loadtest, mentions
from handlers.call import ARRIVED, Call, ephemeral_answer, guarded, respond_answer, stamp_arrival
from handlers.command import Command, action_command

__all__ = ["COMMANDS", "UMBRELLA", "register", "stamp_arrival"]

UMBRELLA = "gpu"
COMMANDS: Mapping[str, Command] = {
    **{spec.name: action_command(spec) for spec in actions().values()},
    **{module.COMMAND.name: module.COMMAND for module in (loadtest, incident)},
}
"""Every command of its own, by its name in the settings; the umbrella `gpu` reaches all of them."""

Body = dict[str, Any]


def register(app: AsyncApp, services: Services) -> None:
    """Attach every listener to a Bolt app; `before_authorize=stamp_arrival` in its building times requests from their start."""
    app.use(stamp_arrival)
    slash = services.settings.slack.command
    for command in COMMANDS.values():
        app.command(slash(command.name))(_command_listener(services, _runner(command)))
    app.command(slash(UMBRELLA))(_command_listener(services, _umbrella))
    app.command(re.compile(r".*"))(_command_listener(services, _unknown_command))
    for action_id, press in buttons.PRESSES.items():
        app.action(action_id)(_button_listener(services, press))
    app.action(re.compile(r".*"))(_button_listener(services, _unknown_button))
    app.event("app_mention")(_mention_listener(services))
    app.event("app_home_opened")(_home_listener(services))
    app.event("message")(_not_for_us)


def _runner(command: Command) -> Callable[[Call, Body], Awaitable[None]]:
    async def run(call: Call, body: Body) -> None:
        await command.run(call, str(body.get("text") or ""))

    return run


async def _umbrella(call: Call, body: Body) -> None:
    await gpu.run(call, str(body.get("text") or ""), COMMANDS)


async def _unknown_command(call: Call, body: Body) -> None:
    name = str(body.get("command") or "")
    known = ", ".join(call.services.settings.slack.command(n) for n in (*COMMANDS, UMBRELLA))
    raise UserError(f"{name} is not one of mine. I have {known}.")


def _command_listener(
    services: Services, work: Callable[[Call, Body], Awaitable[None]]
) -> Callable[..., Awaitable[None]]:
    async def listener(
        ack: AsyncAck, body: Body, respond: AsyncRespond, client: AsyncWebClient, context: AsyncBoltContext
    ) -> None:
        await ack()
        user, channel = str(body["user_id"]), str(body["channel_id"])
        call = Call(
            services=services,
            client=client,
            person=Person(id=user, name=str(body.get("user_name") or "")),
            channel=channel,
            thread_ts=None,
            key=f"command:{body['trigger_id']}",
            what=str(body.get("command") or "the command"),
            answer=respond_answer(respond, None, ephemeral_answer(client, channel, user, None)),
            arrived=context.get(ARRIVED),
        )
        await guarded(call, lambda call: work(call, body))

    return listener


def _button_listener(services: Services, press: buttons.Press) -> Callable[..., Awaitable[None]]:
    async def listener(
        ack: AsyncAck, body: Body, respond: AsyncRespond, client: AsyncWebClient, context: AsyncBoltContext
    ) -> None:
        await ack()
        action = body["actions"][0]
        if action.get("url"):
            return  # a link: the client opened it already
        container = body.get("container") or {}
        thread_ts = container.get("thread_ts")
        person = body["user"]
        channel = str((body.get("channel") or {}).get("id") or container.get("channel_id") or "")
        call = Call(
            services=services,
            client=client,
            person=Person(id=str(person["id"]), name=str(person.get("username") or person.get("name") or "")),
            channel=channel,
            thread_ts=thread_ts,
            key=f"action:{body['trigger_id']}:{action.get('action_ts', '')}",
            what=f"the button {str((action.get('text') or {}).get('text') or action['action_id'])!r}",
            answer=respond_answer(
                respond, thread_ts, ephemeral_answer(client, channel, str(person["id"]), thread_ts)
            ),
            arrived=context.get(ARRIVED),
        )
        await guarded(call, lambda call: press(call, str(action.get("value") or "")))

    return listener


async def _unknown_button(call: Call, value: str) -> None:
    await call.answer(answers.outdated_button())


def _mention_listener(services: Services) -> Callable[..., Awaitable[None]]:
    async def listener(body: Body, client: AsyncWebClient) -> None:
        event = body["event"]
        if event.get("bot_id") or not event.get("user"):
            return  # bots do not give us orders
        thread_ts = event.get("thread_ts")
        channel, user = str(event["channel"]), str(event["user"])
        call = Call(
            services=services,
            client=client,
            person=Person(id=user),
            channel=channel,
            thread_ts=thread_ts,
            key=f"event:{body.get('event_id') or event.get('ts')}",
            what="your mention",
            answer=ephemeral_answer(client, channel, user, thread_ts),
        )
        text = mentions.words_behind_mention(str(event.get("text") or ""), services)
        await guarded(call, lambda call: mentions.run(call, text, COMMANDS))

    return listener


def _home_listener(services: Services) -> Callable[..., Awaitable[None]]:
    async def listener(body: Body, client: AsyncWebClient) -> None:
        event = body["event"]
        if event.get("tab", "home") != "home":
            return
        user = str(event["user"])
        call = Call(
            services=services,
            client=client,
            person=Person(id=user),
            channel=str(event.get("channel") or user),
            thread_ts=None,
            key=f"event:{body.get('event_id') or event.get('event_ts')}",
            what="the Home tab",
            answer=ephemeral_answer(client, str(event.get("channel") or user), user, None),
        )
        await guarded(call, lambda call: home.opened(call, COMMANDS))

    return listener


async def _not_for_us() -> None:
    """Messages that are no mention: Slack sends them where the app is in the channel, and they are none of our business."""
