"""`chat.*`: posting, editing and deleting messages."""

import time

from demo.workspace import payloads
from demo.workspace.records import Channel, JsonObject, Message
from demo.workspace.webapi.call import ApiCall, ApiError, api_method

MAX_POST_CHARACTERS = 40_000
MAX_UPDATE_CHARACTERS = 4_000
"""`msg_too_long` above this: docs.slack.dev/reference/methods/chat.update."""


def _thread(call: ApiCall, channel: Channel) -> str | None:
    thread_ts = call.text("thread_ts")
    if not thread_ts:
        return None
    parent = call.state.public_message(channel.id, thread_ts)
    if parent is None:
        raise ApiError("thread_not_found")
    if parent.thread_ts is not None:
        raise ApiError("thread_not_found", "thread_ts is a reply; use the ts of the thread's first message")
    return thread_ts


def _post(call: ApiCall, channel: Channel, *, visible_to: str | None = None) -> Message:
    text, blocks = call.text("text"), call.blocks()
    attachments = call.objects("attachments", ApiError("invalid_attachments"))
    if not text and not blocks and not attachments:
        raise ApiError("no_text")
    if len(text) > MAX_POST_CHARACTERS:
        raise ApiError("msg_too_long")
    thread_ts = _thread(call, channel)
    return call.state.post(
        channel.id,
        call.state.bot_user,
        text,
        blocks=blocks or [],
        attachments=attachments,
        thread_ts=thread_ts,
        from_app=True,
        broadcast=bool(thread_ts) and visible_to is None and call.flag("reply_broadcast"),
        metadata=call.metadata(),
        visible_to=visible_to,
    )


def _posted(call: ApiCall, channel: Channel, message: Message) -> JsonObject:
    shown = call.state.message_json(message, with_metadata=True)
    return {"channel": channel.id, "ts": message.ts, "message": shown}


@api_method("chat.postMessage", "chat:write")
async def post_message(call: ApiCall) -> JsonObject:
    """Post a message. As in Slack, an app that subscribes to a conversation's messages gets its own ones too."""
    channel = call.channel(member=True)
    message = _post(call, channel)
    if call.state.team.app.subscribes("message", in_dm=channel.is_im):
        call.socket_mode.deliver_event(payloads.message_event(call.state, "message", channel, message))
    return _posted(call, channel, message)


@api_method("chat.postEphemeral", "chat:write")
async def post_ephemeral(call: ApiCall) -> JsonObject:
    channel = call.channel(member=True)
    user = call.required("user")
    if user not in channel.members:
        raise ApiError("user_not_in_channel")
    return {"message_ts": _post(call, channel, visible_to=user).ts}


@api_method("chat.update", "chat:write")
async def update(call: ApiCall) -> JsonObject:
    """Edit a message. As in Slack, text without blocks removes the blocks, and blocks leave no "(edited)" mark."""
    channel = call.channel()
    message = call.own_message(channel, refused="cant_update_message")
    text, blocks = call.text("text"), call.blocks()
    if len(text) > MAX_UPDATE_CHARACTERS:
        raise ApiError("msg_too_long")
    if not text and blocks is None and call.parsed("attachments") is None:
        raise ApiError("no_text")
    attachments = call.objects("attachments", ApiError("invalid_attachments"))
    metadata = call.metadata()
    message.text, message.blocks, message.attachments = text, blocks or [], attachments
    if metadata is not None:
        message.metadata = metadata
    if call.flag("reply_broadcast") and message.thread_ts:
        message.broadcast = True
    if not blocks:
        message.edited = {"user": call.state.bot_user, "ts": f"{time.time():.6f}"}
    call.state.save_message(message)
    return _posted(call, channel, message) | {"text": message.text}


@api_method("chat.delete", "chat:write")
async def delete(call: ApiCall) -> JsonObject:
    channel = call.channel()
    message = call.own_message(channel, refused="cant_delete_message")
    call.state.remove_message(message)
    return {"channel": channel.id, "ts": message.ts}


@api_method("chat.getPermalink")
async def get_permalink(call: ApiCall) -> JsonObject:
    """Return the URL of a message, which the page opens."""
    channel = call.channel()
    message = call.message(channel, "message_ts")
    link = f"{call.state.base_url}/archives/{channel.id}/p{message.ts.replace('.', '')}"
    if message.thread_ts:
        link += f"?thread_ts={message.thread_ts}&cid={channel.id}"
    return {"channel": channel.id, "permalink": link}
