"""The payloads that the app receives for commands, button presses, events and modals, in Slack's form.

Field names follow docs.slack.dev (interaction payloads, slash commands, Events API). `token` is a fixed word because Socket
Mode does not use it.
"""

import time
import uuid

from demo.workspace.open_interactions import Interaction
from demo.workspace.records import Channel, JsonObject, Message
from demo.workspace.state import State


def _common(state: State) -> JsonObject:
    return {"token": "local-workspace", "team_id": state.team.id, "api_app_id": state.team.app.app_id}


def _channel_name(channel: Channel) -> str:
    return "directmessage" if channel.is_im else channel.name


def slash_command(
    state: State, interaction: Interaction, channel: Channel, command: str, text: str
) -> JsonObject:
    """Build the payload of a `slash_commands` envelope."""
    return _common(state) | {
        "team_domain": state.team.domain,
        "channel_id": channel.id,
        "channel_name": _channel_name(channel),
        "user_id": interaction.user.id,
        "user_name": interaction.user.name,
        "command": command,
        "text": text,
        "is_enterprise_install": "false",
        "response_url": interaction.response_url,
        "trigger_id": interaction.trigger_id,
    }


def _interactive(state: State, kind: str, interaction: Interaction) -> JsonObject:
    user, team = interaction.user, state.team
    return _common(state) | {
        "type": kind,
        "user": {"id": user.id, "username": user.name, "name": user.name, "team_id": state.team_of(user)},
        "team": {"id": team.id, "domain": team.domain},
        "enterprise": None,
        "is_enterprise_install": False,
        "trigger_id": interaction.trigger_id,
    }


def block_actions(
    state: State, interaction: Interaction, channel: Channel, message: Message, action: JsonObject
) -> JsonObject:
    """Build the payload of a press in a message. As in Slack, an ephemeral message is not included."""
    is_ephemeral = message.visible_to is not None
    thread = {"thread_ts": message.thread_ts} if message.thread_ts else {}
    place = {"message_ts": message.ts, "channel_id": channel.id, "is_ephemeral": is_ephemeral}
    payload = _interactive(state, "block_actions", interaction) | {
        "container": {"type": "message"} | place | thread,
        "channel": {"id": channel.id, "name": _channel_name(channel)},
        "response_url": interaction.response_url,
        "state": {"values": {}},
        "actions": [action | {"action_ts": f"{time.time():.6f}"}],
    }
    return payload if is_ephemeral else payload | {"message": state.message_json(message)}


def view_actions(state: State, interaction: Interaction, view: JsonObject, action: JsonObject) -> JsonObject:
    """Build the payload of a press in a modal or on the Home tab; there is no message and no response_url."""
    return _interactive(state, "block_actions", interaction) | {
        "container": {"type": "view", "view_id": view["id"]},
        "view": view,
        "actions": [action | {"action_ts": f"{time.time():.6f}"}],
    }


def view_closed(state: State, interaction: Interaction, view: JsonObject) -> JsonObject:
    """Build the payload of a modal that a person closed; sent for `notify_on_close` only."""
    return _interactive(state, "view_closed", interaction) | {"view": view, "is_cleared": False}


def home_opened(state: State, channel: Channel, user_id: str) -> JsonObject:
    """Build the `app_home_opened` event."""
    view = state.views.get(f"VHOME{user_id}")
    event: JsonObject = {"type": "app_home_opened", "user": user_id, "channel": channel.id, "tab": "home"}
    event |= {"event_ts": f"{time.time():.6f}"} | ({"view": view} if view else {})
    return _event(state, event)


def view_submission(state: State, interaction: Interaction, view: JsonObject) -> JsonObject:
    """Build the payload of a submitted modal."""
    return _interactive(state, "view_submission", interaction) | {"view": view, "response_urls": []}


def message_event(state: State, kind: str, channel: Channel, message: Message) -> JsonObject:
    """Build the `events_api` payload of a `message` or `app_mention` event."""
    event: JsonObject = {
        "type": kind,
        "user": message.user,
        "text": message.text,
        "ts": message.ts,
        "event_ts": message.ts,
        "team": state.team.id,
        "channel": channel.id,
    }
    event |= {"bot_id": state.team.app.bot_id} if message.from_app else {"client_msg_id": str(uuid.uuid4())}
    if message.thread_ts:
        event["thread_ts"] = message.thread_ts
    if kind == "message":
        event["channel_type"] = "im" if channel.is_im else "channel"
    sender = state.people.get(message.user)
    if sender is not None and state.team_of(sender) != state.team.id:
        event |= {"user_team": state.team_of(sender), "source_team": state.team_of(sender)}
    return _event(state, event, is_shared=channel.is_shared)


def reaction(state: State, user_id: str, channel: Channel, message: Message, name: str) -> JsonObject:
    """Build the `reaction_added` event."""
    event: JsonObject = {
        "type": "reaction_added",
        "user": user_id,
        "reaction": name,
        "item_user": message.user,
        "item": {"type": "message", "channel": channel.id, "ts": message.ts},
        "event_ts": f"{state.clock():.6f}",
    }
    return _event(state, event)


def _event(state: State, event: JsonObject, *, is_shared: bool = False) -> JsonObject:
    enterprise = {"enterprise_id": None, "is_enterprise_install": False}
    bot = {"team_id": state.team.id, "user_id": state.bot_user, "is_bot": True}
    return _common(state) | {
        "type": "event_callback",
        "event": event,
        "event_id": "Ev" + uuid.uuid4().hex[:12].upper(),
        "event_time": int(time.time()),
        "authorizations": [bot | enterprise],
        "is_ext_shared_channel": is_shared,
    }
