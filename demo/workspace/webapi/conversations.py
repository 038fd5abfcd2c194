"""`conversations.*`: channels and what was said in them."""

import re

from demo.workspace.records import Channel, Message
from demo.workspace.webapi.call import ApiCall, ApiError, Handler
from gpu_actions.models import JsonObject

_NAME = re.compile(r"[a-z0-9_-]{1,80}")
PAGE_SIZE = 100
MAX_PAGE_SIZE = 999


def page(call: ApiCall, entries: list[JsonObject], name: str, *, size: int = PAGE_SIZE) -> JsonObject:
    """One page of a list in Slack's shape; the cursor is the position of the next entry."""
    limit = max(1, min(call.number("limit", size), MAX_PAGE_SIZE))
    cursor = call.text("cursor")
    if cursor and not cursor.isdigit():
        raise ApiError("invalid_cursor")
    start = int(cursor or 0)
    following = str(start + limit) if start + limit < len(entries) else ""
    return {name: entries[start : start + limit], "response_metadata": {"next_cursor": following}}


async def list_(call: ApiCall) -> JsonObject:
    """All channels of the asked types."""
    types = call.names("types") or ["public_channel"]
    chosen = [
        channel.as_slack(call.state.bot_user)
        for channel in call.state.channels.values()
        if ("im" if channel.is_im else "public_channel") in types
        and not (channel.is_archived and call.flag("exclude_archived"))
    ]
    return page(call, chosen, "channels")


async def info(call: ApiCall) -> JsonObject:
    """One channel."""
    channel = call.channel()
    body = channel.as_slack(call.state.bot_user)
    if not call.flag("include_num_members"):
        body.pop("num_members", None)
    return {"channel": body}


def _in_range(call: ApiCall, messages: list[Message]) -> list[Message]:
    oldest, latest, inclusive = call.text("oldest"), call.text("latest"), call.flag("inclusive")
    try:
        low = float(oldest) if oldest else float("-inf")
        high = float(latest) if latest else float("inf")
    except ValueError:
        raise ApiError("invalid_ts_oldest" if oldest else "invalid_ts_latest") from None
    return [
        entry
        for entry in messages
        if low < float(entry.ts) < high or (inclusive and float(entry.ts) in (low, high))
    ]


async def history(call: ApiCall) -> JsonObject:
    """The messages of a channel, newest first, without replies that were not broadcast."""
    channel = call.channel(member=True)
    messages = [
        entry
        for entry in call.state.messages[channel.id].values()
        if entry.visible_to is None and (entry.thread_ts is None or entry.broadcast)
    ]
    shown = [
        call.state.message_json(entry, with_metadata=call.flag("include_all_metadata"))
        for entry in reversed(_in_range(call, messages))
    ]
    body = page(call, shown, "messages")
    return body | {"has_more": bool(body["response_metadata"]["next_cursor"]), "pin_count": 0}


async def replies(call: ApiCall) -> JsonObject:
    """A thread: its first message, then the replies, oldest first."""
    channel = call.channel(member=True)
    given = call.state.message(channel.id, call.required("ts"))
    if given is None or given.visible_to is not None:
        raise ApiError("thread_not_found")
    root = call.state.message(channel.id, given.thread_ts) if given.thread_ts else given
    if root is None:
        raise ApiError("thread_not_found")
    with_metadata = call.flag("include_all_metadata")
    chosen = [root, *_in_range(call, call.state.replies(channel.id, root.ts))]
    shown = [call.state.message_json(entry, with_metadata=with_metadata) for entry in chosen]
    body = page(call, shown, "messages", size=1000)
    return body | {"has_more": bool(body["response_metadata"]["next_cursor"])}


async def join(call: ApiCall) -> JsonObject:
    """Make the bot a member."""
    channel = call.channel()
    if channel.is_im:
        raise ApiError("method_not_supported_for_channel_type")
    body: JsonObject = {}
    if call.state.bot_user in channel.members:
        body = {"warning": "already_in_channel", "response_metadata": {"warnings": ["already_in_channel"]}}
    else:
        channel.members.append(call.state.bot_user)
        call.state.save_channel(channel)
    return body | {"channel": channel.as_slack(call.state.bot_user)}


async def leave(call: ApiCall) -> JsonObject:
    """End the bot's membership."""
    channel = call.channel()
    if call.state.bot_user not in channel.members:
        return {"not_in_channel": True}
    channel.members.remove(call.state.bot_user)
    call.state.save_channel(channel)
    return {}


async def open_(call: ApiCall) -> JsonObject:
    """The direct conversation with one person."""
    users = call.names("users")
    if len(users) != 1:
        raise ApiError("invalid_arguments" if not users else "too_many_users")
    if users[0] not in call.state.people:
        raise ApiError("user_not_found")
    channel = call.state.direct_channel(users[0])
    full = call.flag("return_im")
    return {"channel": channel.as_slack(call.state.bot_user) if full else {"id": channel.id}}


async def members(call: ApiCall) -> JsonObject:
    """User ids of a channel."""
    body = page(call, [{"id": member} for member in call.channel().members], "members")
    return body | {"members": [entry["id"] for entry in body["members"]]}


async def create(call: ApiCall) -> JsonObject:
    """A new public channel with everybody in it, so that whoever is chosen on the page can read it."""
    name = call.required("name")
    if not _NAME.fullmatch(name):
        raise ApiError("invalid_name_specials" if len(name) <= 80 else "invalid_name_maxlength")
    if call.state.channel_by_name(name) is not None:
        raise ApiError("name_taken")
    everybody = [*call.state.people, call.state.bot_user]
    channel = Channel(id=call.state.new_id("C"), name=name, members=everybody, creator=call.state.bot_user)
    call.state.save_channel(channel)
    return {"channel": channel.as_slack(call.state.bot_user)}


async def invite(call: ApiCall) -> JsonObject:
    """Add people to a channel."""
    channel = call.channel(member=True)
    wanted = call.names("users")
    if any(user not in call.state.people for user in wanted):
        raise ApiError("user_not_found")
    new = [user for user in wanted if user not in channel.members]
    if not new:
        raise ApiError("already_in_channel")
    channel.members.extend(new)
    call.state.save_channel(channel)
    return {"channel": channel.as_slack(call.state.bot_user)}


async def set_topic(call: ApiCall) -> JsonObject:
    """The line under a channel's name."""
    channel = call.channel(member=True)
    channel.topic = call.text("topic")[:250]
    call.state.save_channel(channel)
    return {"channel": channel.as_slack(call.state.bot_user)}


async def set_purpose(call: ApiCall) -> JsonObject:
    """What a channel is for."""
    channel = call.channel(member=True)
    channel.purpose = call.text("purpose")[:250]
    call.state.save_channel(channel)
    return {"channel": channel.as_slack(call.state.bot_user)}


async def archive(call: ApiCall) -> JsonObject:
    """Close a channel; it stays readable."""
    channel = call.channel(member=True)
    channel.is_archived = True
    call.state.save_channel(channel)
    return {}


METHODS: dict[str, Handler] = {
    "conversations.list": list_,
    "conversations.info": info,
    "conversations.history": history,
    "conversations.replies": replies,
    "conversations.join": join,
    "conversations.leave": leave,
    "conversations.open": open_,
    "conversations.members": members,
    "conversations.create": create,
    "conversations.invite": invite,
    "conversations.setTopic": set_topic,
    "conversations.setPurpose": set_purpose,
    "conversations.archive": archive,
}
