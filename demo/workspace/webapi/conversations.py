"""`conversations.*`: channels and their messages."""

import re

from demo.workspace.records import Channel, JsonObject, Message
from demo.workspace.webapi.call import ApiCall, ApiError, api_method

_NAME = re.compile(r"[a-z0-9_-]{1,80}")
MAX_TOPIC_CHARACTERS = 250
READ = ("channels:read", "groups:read", "im:read", "mpim:read")
HISTORY = ("channels:history", "groups:history", "im:history", "mpim:history")
MANAGE = ("channels:manage", "groups:write", "im:write", "mpim:write")


def _shown(call: ApiCall, channel: Channel) -> JsonObject:
    return {"channel": channel.as_slack(call.state.bot_user)}


def _saved(call: ApiCall, channel: Channel) -> JsonObject:
    call.state.save_channel(channel)
    return _shown(call, channel)


@api_method("conversations.list", *READ)
async def list_(call: ApiCall) -> JsonObject:
    types = call.names("types") or ["public_channel"]
    chosen = [
        channel.as_slack(call.state.bot_user)
        for channel in call.state.channels.values()
        if ("im" if channel.is_im else "public_channel") in types
        and not (channel.is_archived and call.flag("exclude_archived"))
    ]
    return call.page(chosen, "channels")


@api_method("conversations.info", *READ)
async def info(call: ApiCall) -> JsonObject:
    body = call.channel().as_slack(call.state.bot_user)
    if not call.flag("include_num_members"):
        body.pop("num_members", None)
    return {"channel": body}


def _messages(call: ApiCall, first: list[Message], ranged: list[Message], *, size: int) -> JsonObject:
    """Return a page of `first`, then those of `ranged` that lie between the call's `oldest` and `latest`."""
    oldest, latest, inclusive = call.text("oldest"), call.text("latest"), call.flag("inclusive")
    try:
        low = float(oldest) if oldest else float("-inf")
        high = float(latest) if latest else float("inf")
    except ValueError:
        raise ApiError("invalid_ts_oldest" if oldest else "invalid_ts_latest") from None
    chosen = first + [
        entry
        for entry in ranged
        if low < float(entry.ts) < high or (inclusive and float(entry.ts) in (low, high))
    ]
    with_metadata = call.flag("include_all_metadata")
    shown = [call.state.message_json(entry, with_metadata=with_metadata) for entry in chosen]
    body = call.page(shown, "messages", size=size)
    return body | {"has_more": bool(body["response_metadata"]["next_cursor"])}


@api_method("conversations.history", *HISTORY)
async def history(call: ApiCall) -> JsonObject:
    """List the messages of a channel, newest first, without replies that were not sent to the channel as well."""
    channel = call.channel(member=True)
    messages = [
        entry
        for entry in reversed(call.state.messages[channel.id].values())
        if entry.visible_to is None and (entry.thread_ts is None or entry.broadcast)
    ]
    return _messages(call, [], messages, size=100) | {"pin_count": 0}


@api_method("conversations.replies", *HISTORY)
async def replies(call: ApiCall) -> JsonObject:
    """List a thread: its first message, then the replies, oldest first."""
    channel = call.channel(member=True)
    root = call.state.public_message(channel.id, call.required("ts"))
    if root is not None and root.thread_ts:
        root = call.state.message(channel.id, root.thread_ts)
    if root is None:
        raise ApiError("thread_not_found")
    return _messages(call, [root], call.state.replies(channel.id, root.ts), size=1000)


@api_method("conversations.join", "channels:join")
async def join(call: ApiCall) -> JsonObject:
    channel = call.channel()
    if channel.is_im:
        raise ApiError("method_not_supported_for_channel_type")
    if call.state.bot_user in channel.members:
        warning = "already_in_channel"
        return _shown(call, channel) | {"warning": warning, "response_metadata": {"warnings": [warning]}}
    channel.members.append(call.state.bot_user)
    return _saved(call, channel)


@api_method("conversations.leave", *MANAGE)
async def leave(call: ApiCall) -> JsonObject:
    channel = call.channel()
    if call.state.bot_user not in channel.members:
        return {"not_in_channel": True}
    channel.members.remove(call.state.bot_user)
    call.state.save_channel(channel)
    return {}


@api_method("conversations.open", *MANAGE)
async def open_(call: ApiCall) -> JsonObject:
    users = call.names("users")
    if len(users) != 1:
        raise ApiError("too_many_users" if users else "invalid_arguments")
    if users[0] not in call.state.people:
        raise ApiError("user_not_found")
    channel = call.state.direct_channel(users[0])
    return _shown(call, channel) if call.flag("return_im") else {"channel": {"id": channel.id}}


@api_method("conversations.members", *READ)
async def members(call: ApiCall) -> JsonObject:
    return call.page(call.channel().members, "members")


@api_method("conversations.create", *MANAGE)
async def create(call: ApiCall) -> JsonObject:
    """Create a public channel, whose only member is the app."""
    name = call.required("name")
    if not _NAME.fullmatch(name):
        raise ApiError("invalid_name_specials" if len(name) <= 80 else "invalid_name_maxlength")
    if call.state.channel_by_name(name) is not None:
        raise ApiError("name_taken")
    channel_id = call.state.new_id("C")
    return _saved(call, Channel(channel_id, name, [call.state.bot_user], creator=call.state.bot_user))


@api_method("conversations.invite", *MANAGE)
async def invite(call: ApiCall) -> JsonObject:
    channel = call.channel(member=True)
    wanted = call.names("users")
    if call.state.bot_user in wanted and not call.flag("force"):
        raise ApiError("cant_invite_self")
    known = [user for user in wanted if user in call.state.people]
    if len(known) < len(wanted) and not (call.flag("force") and known):
        raise ApiError("user_not_found")
    wanted = known
    new = [user for user in wanted if user not in channel.members]
    if not new:
        raise ApiError("already_in_channel")
    channel.members.extend(new)
    return _saved(call, channel)


@api_method("conversations.setTopic", *MANAGE)
async def set_topic(call: ApiCall) -> JsonObject:
    channel = call.channel(member=True)
    if len(call.text("topic")) > MAX_TOPIC_CHARACTERS:
        raise ApiError("too_long")
    channel.topic = call.text("topic")
    return _saved(call, channel)


@api_method("conversations.setPurpose", *MANAGE)
async def set_purpose(call: ApiCall) -> JsonObject:
    channel = call.channel(member=True)
    if len(call.text("purpose")) > MAX_TOPIC_CHARACTERS:
        raise ApiError("too_long")
    channel.purpose = call.text("purpose")
    return _saved(call, channel)


@api_method("conversations.archive", *MANAGE)
async def archive(call: ApiCall) -> JsonObject:
    """Close a channel; it remains readable."""
    channel = call.channel(member=True)
    channel.is_archived = True
    call.state.save_channel(channel)
    return {}
