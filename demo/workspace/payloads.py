"""The payloads that the app receives for commands, button presses, events and modals, in Slack's form.

Field names follow docs.slack.dev (interaction payloads, slash commands, Events API). `token` is a fixed word because Socket
Mode does not use it.
"""

import time
import uuid

from demo.workspace.records import Channel, JsonObject, Message
from demo.workspace.state import State
from demo.workspace.team import User


def _common(state: State) -> JsonObject:
    return {"token": "local-workspace", "team_id": state.team.id, "api_app_id": state.team.app.app_id}


def _channel_name(channel: Channel) -> str:
    return "directmessage" if channel.is_im else channel.name


def _interaction(state: State, kind: str, user: User) -> JsonObject:
    team = state.team
    return _common(state) | {
        "type": kind,
        "user": {"id": user.id, "username": user.name, "name": user.name, "team_id": team.id},
        "team": {"id": team.id, "domain": team.domain},
        "enterprise": None,
        "is_enterprise_install": False,
    }


def slash_command(
    state: State, user: User, channel: Channel, *, command: str, text: str, trigger_id: str, response_url: str
) -> JsonObject:
    """Build the payload of a `slash_commands` envelope."""
    return _common(state) | {
        "team_domain": state.team.domain,
        "channel_id": channel.id,
        "channel_name": _channel_name(channel),
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
    user: User,
    channel: Channel,
    *,
    message: Message,
    action: JsonObject,
    trigger_id: str,
    response_url: str,
) -> JsonObject:
    """Build the payload of a press in a message. As in Slack, an ephemeral message is not included."""
    is_ephemeral = message.visible_to is not None
    thread = {"thread_ts": message.thread_ts} if message.thread_ts else {}
    place = {"message_ts": message.ts, "channel_id": channel.id, "is_ephemeral": is_ephemeral}
    payload = _interaction(state, "block_actions", user) | {
        "container": {"type": "message"} | place | thread,
        "channel": {"id": channel.id, "name": _channel_name(channel)},
        "trigger_id": trigger_id,
        "response_url": response_url,
        "state": {"values": {}},
        "actions": [action | {"action_ts": f"{time.time():.6f}"}],
    }
    return payload if is_ephemeral else payload | {"message": state.message_json(message)}


def view_submission(state: State, user: User, *, view: JsonObject, trigger_id: str) -> JsonObject:
    """Build the payload of a submitted modal."""
    fields = {"view": view, "trigger_id": trigger_id, "response_urls": []}
    return _interaction(state, "view_submission", user) | fields


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
        "client_msg_id": str(uuid.uuid4()),
    }
    if message.thread_ts:
        event["thread_ts"] = message.thread_ts
    if kind == "message":
        event["channel_type"] = "im" if channel.is_im else "channel"
    authorization = {
        "enterprise_id": None,
        "team_id": state.team.id,
        "user_id": state.bot_user,
        "is_bot": True,
        "is_enterprise_install": False,
    }
    return _common(state) | {
        "type": "event_callback",
        "event": event,
        "event_id": "Ev" + uuid.uuid4().hex[:12].upper(),
        "event_time": int(time.time()),
        "authorizations": [authorization],
        "is_ext_shared_channel": False,
    }
