"""What the workspace tells the app: the payloads of commands, button presses, events and modals, in Slack's shape.

Field names follow docs.slack.dev (interaction payloads, slash commands, Events API); values that Slack fills with
secrets (`token`) hold a fixed word, because Socket Mode does not use them.
"""

import time
import uuid

from demo.workspace.records import Channel, Message
from demo.workspace.seed import SeedUser
from demo.workspace.state import State
from gpu_actions.models import JsonObject

VERIFICATION_WORD = "local-workspace"


def _common(state: State) -> JsonObject:
    return {
        "token": VERIFICATION_WORD,
        "team_id": state.seed.team_id,
        "api_app_id": state.seed.app.app_id,
    }


def _actor(state: State, user: SeedUser) -> JsonObject:
    return {"id": user.id, "username": user.name, "name": user.name, "team_id": state.seed.team_id}


def _team(state: State) -> JsonObject:
    return {"id": state.seed.team_id, "domain": state.seed.team_domain}


def channel_name(channel: Channel) -> str:
    """The name that payloads carry; direct conversations are called `directmessage` there."""
    return "directmessage" if channel.is_im else channel.name


def slash_command(
    state: State,
    *,
    user: SeedUser,
    channel: Channel,
    command: str,
    text: str,
    trigger_id: str,
    response_url: str,
) -> JsonObject:
    """The payload of a `slash_commands` envelope."""
    return {
        **_common(state),
        "team_domain": state.seed.team_domain,
        "channel_id": channel.id,
        "channel_name": channel_name(channel),
        "user_id": user.id,
        "user_name": user.name,
        "command": command,
        "text": text,
        "is_enterprise_install": "false",
        "response_url": response_url,
        "trigger_id": trigger_id,
    }


def block_actions(
    state: State,
    *,
    user: SeedUser,
    channel: Channel,
    message: Message,
    action: JsonObject,
    trigger_id: str,
    response_url: str,
) -> JsonObject:
    """The payload of a press in a message. An ephemeral message is not sent along, as in Slack."""
    container: JsonObject = {
        "type": "message",
        "message_ts": message.ts,
        "channel_id": channel.id,
        "is_ephemeral": message.visible_to is not None,
    }
    if message.thread_ts:
        container["thread_ts"] = message.thread_ts
    payload: JsonObject = {
        **_common(state),
        "type": "block_actions",
        "user": _actor(state, user),
        "team": _team(state),
        "enterprise": None,
        "is_enterprise_install": False,
        "container": container,
        "channel": {"id": channel.id, "name": channel_name(channel)},
        "trigger_id": trigger_id,
        "response_url": response_url,
        "state": {"values": {}},
        "actions": [{**action, "action_ts": f"{time.time():.6f}"}],
    }
    if message.visible_to is None:
        payload["message"] = state.message_json(message)
    return payload


def event(state: State, body: JsonObject) -> JsonObject:
    """The payload of an `events_api` envelope around one event."""
    return {
        **_common(state),
        "type": "event_callback",
        "event": {**body, "event_ts": body.get("ts", f"{time.time():.6f}")},
        "event_id": "Ev" + uuid.uuid4().hex[:12].upper(),
        "event_time": int(time.time()),
        "authorizations": [
            {
                "enterprise_id": None,
                "team_id": state.seed.team_id,
                "user_id": state.bot_user,
                "is_bot": True,
                "is_enterprise_install": False,
            }
        ],
        "is_ext_shared_channel": False,
    }


def message_event(state: State, kind: str, channel: Channel, message: Message) -> JsonObject:
    """A `message` or `app_mention` event about what a person wrote."""
    body: JsonObject = {
        "type": kind,
        "user": message.user,
        "text": message.text,
        "ts": message.ts,
        "team": state.seed.team_id,
        "channel": channel.id,
        "client_msg_id": str(uuid.uuid4()),
    }
    if message.blocks:
        body["blocks"] = message.blocks
    if message.thread_ts:
        body["thread_ts"] = message.thread_ts
    if kind == "message":
        body["channel_type"] = "im" if channel.is_im else "channel"
    return event(state, body)


def view_interaction(
    state: State, *, kind: str, user: SeedUser, view: JsonObject, trigger_id: str
) -> JsonObject:
    """The payload of `view_submission` or `view_closed`."""
    payload: JsonObject = {
        **_common(state),
        "type": kind,
        "user": _actor(state, user),
        "team": _team(state),
        "enterprise": None,
        "is_enterprise_install": False,
        "view": view,
    }
    if kind == "view_submission":
        payload |= {"trigger_id": trigger_id, "response_urls": []}
    else:
        payload["is_cleared"] = False
    return payload
