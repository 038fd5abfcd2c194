"""`chat.*`: posting, editing and deleting messages."""

import time

from demo.workspace.records import Channel, Message
from demo.workspace.webapi.call import ApiCall, ApiError, Handler
from gpu_actions.models import JsonObject

MAX_POST_CHARACTERS = 40_000
MAX_UPDATE_CHARACTERS = 4_000
"""docs.slack.dev/reference/methods/chat.update: `msg_too_long` above 4,000."""


def _thread(call: ApiCall, channel: Channel) -> str | None:
    thread_ts = call.text("thread_ts")
    if not thread_ts:
        return None
    parent = call.state.message(channel.id, thread_ts)
    if parent is None or parent.visible_to is not None:
        raise ApiError("thread_not_found")
    if parent.thread_ts is not None:
        raise ApiError(
            "thread_not_found", "thread_ts is that of a reply; use the time of the thread's first message"
        )
    return thread_ts


def _attachments(call: ApiCall) -> list[JsonObject]:
    value = call.parsed("attachments")
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ApiError("invalid_attachments")
    return value


def _new_message(call: ApiCall, channel: Channel) -> Message:
    text = call.text("text")
    blocks, attachments = call.blocks(), _attachments(call)
    if not text and not blocks and not attachments:
        raise ApiError("no_text")
    if len(text) > MAX_POST_CHARACTERS:
        raise ApiError("msg_too_long")
    thread_ts = _thread(call, channel)
    return Message(
        channel=channel.id,
        ts=call.state.new_ts(),
        user=call.state.bot_user,
        text=text,
        blocks=blocks or [],
        attachments=attachments,
        thread_ts=thread_ts,
        from_app=True,
        broadcast=bool(thread_ts) and call.flag("reply_broadcast"),
        metadata=call.metadata(),
    )


async def post_message(call: ApiCall) -> JsonObject:
    """Post a message of the app."""
    channel = call.channel(member=True)
    message = _new_message(call, channel)
    call.state.save_message(message)
    shown = call.state.message_json(message, with_metadata=True)
    return {"channel": channel.id, "ts": message.ts, "message": shown}


async def post_ephemeral(call: ApiCall) -> JsonObject:
    """Show a message to one person."""
    channel = call.channel(member=True)
    user = call.required("user")
    if user not in channel.members:
        raise ApiError("user_not_in_channel")
    message = _new_message(call, channel)
    message.visible_to = user
    message.broadcast = False
    call.state.save_message(message)
    return {"message_ts": message.ts}


async def update(call: ApiCall) -> JsonObject:
    """Edit a message. Text without blocks removes the blocks; blocks leave no "(edited)" mark, as in Slack."""
    channel = call.channel()
    message = call.own_message(channel, refused="cant_update_message")
    text, blocks = call.text("text"), call.blocks()
    if len(text) > MAX_UPDATE_CHARACTERS:
        raise ApiError("msg_too_long")
    if not text and blocks is None and call.parsed("attachments") is None:
        raise ApiError("no_text")
    message.text = text
    message.blocks = blocks or []
    message.attachments = _attachments(call)
    metadata = call.metadata()
    if metadata is not None:
        message.metadata = metadata
    if call.flag("reply_broadcast") and message.thread_ts:
        message.broadcast = True
    if not blocks:
        message.edited = {"user": call.state.bot_user, "ts": f"{time.time():.6f}"}
    call.state.save_message(message)
    shown = call.state.message_json(message, with_metadata=True)
    return {"channel": channel.id, "ts": message.ts, "text": message.text, "message": shown}


async def delete(call: ApiCall) -> JsonObject:
    """Delete a message of the app."""
    channel = call.channel()
    message = call.own_message(channel, refused="cant_delete_message")
    call.state.remove_message(message)
    return {"channel": channel.id, "ts": message.ts}


async def get_permalink(call: ApiCall) -> JsonObject:
    """The address of a message; the page opens it."""
    channel = call.channel()
    message = call.any_message(channel, "message_ts")
    link = f"{call.state.base_url}/archives/{channel.id}/p{message.ts.replace('.', '')}"
    if message.thread_ts:
        link += f"?thread_ts={message.thread_ts}&cid={channel.id}"
    return {"channel": channel.id, "permalink": link}


METHODS: dict[str, Handler] = {
    "chat.postMessage": post_message,
    "chat.postEphemeral": post_ephemeral,
    "chat.update": update,
    "chat.delete": delete,
    "chat.getPermalink": get_permalink,
}
