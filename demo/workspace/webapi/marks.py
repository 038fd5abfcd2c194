"""`reactions.*`, `pins.*`, `bookmarks.*`: small marks on messages and channels."""

import re
import time

from demo.workspace.webapi.call import ApiCall, ApiError, Handler
from gpu_actions.models import JsonObject

_EMOJI = re.compile(r"[a-z0-9_+'-]{1,100}")


async def reactions_add(call: ApiCall) -> JsonObject:
    """Add the bot's reaction to a message."""
    name = call.required("name").strip(":")
    if not _EMOJI.fullmatch(name):
        raise ApiError("invalid_name")
    message = call.any_message(call.channel(member=True))
    entry = next((found for found in message.reactions if found["name"] == name), None)
    if entry is None:
        message.reactions.append({"name": name, "users": [call.state.bot_user], "count": 1})
    elif call.state.bot_user in entry["users"]:
        raise ApiError("already_reacted")
    else:
        entry["users"].append(call.state.bot_user)
        entry["count"] = len(entry["users"])
    call.state.save_message(message)
    return {}


async def reactions_remove(call: ApiCall) -> JsonObject:
    """Take the bot's reaction away."""
    name = call.required("name").strip(":")
    message = call.any_message(call.channel(member=True))
    entry = next((found for found in message.reactions if found["name"] == name), None)
    if entry is None or call.state.bot_user not in entry["users"]:
        raise ApiError("no_reaction")
    entry["users"].remove(call.state.bot_user)
    entry["count"] = len(entry["users"])
    message.reactions = [found for found in message.reactions if found["users"]]
    call.state.save_message(message)
    return {}


async def reactions_get(call: ApiCall) -> JsonObject:
    """A message with its reactions."""
    channel = call.channel(member=True)
    message = call.any_message(channel)
    return {"type": "message", "channel": channel.id, "message": call.state.message_json(message)}


async def pins_add(call: ApiCall) -> JsonObject:
    """Pin a message to its channel."""
    message = call.any_message(call.channel(member=True))
    if message.pinned:
        raise ApiError("already_pinned")
    message.pinned = True
    call.state.save_message(message)
    return {}


async def pins_remove(call: ApiCall) -> JsonObject:
    """Take a pin away."""
    message = call.any_message(call.channel(member=True))
    if not message.pinned:
        raise ApiError("no_pin")
    message.pinned = False
    call.state.save_message(message)
    return {}


async def pins_list(call: ApiCall) -> JsonObject:
    """The pinned messages of a channel."""
    channel = call.channel(member=True)
    pinned = [entry for entry in call.state.messages[channel.id].values() if entry.pinned]
    return {
        "items": [
            {"type": "message", "channel": channel.id, "message": call.state.message_json(entry)}
            for entry in pinned
        ]
    }


async def bookmarks_add(call: ApiCall) -> JsonObject:
    """A link at the top of a channel."""
    channel = call.channel("channel_id", member=True)
    if call.required("type") != "link":
        raise ApiError("invalid_bookmark_type")
    link = call.required("link")
    if not link.startswith(("http://", "https://")):
        raise ApiError("invalid_link")
    bookmark: JsonObject = {
        "id": call.state.new_id("Bk"),
        "channel_id": channel.id,
        "title": call.required("title"),
        "link": link,
        "emoji": call.text("emoji"),
        "type": "link",
        "date_created": int(time.time()),
    }
    channel.bookmarks.append(bookmark)
    call.state.save_channel(channel)
    return {"bookmark": bookmark}


async def bookmarks_list(call: ApiCall) -> JsonObject:
    """The links of a channel."""
    return {"bookmarks": call.channel("channel_id", member=True).bookmarks}


async def bookmarks_remove(call: ApiCall) -> JsonObject:
    """Take a link away."""
    channel = call.channel("channel_id", member=True)
    wanted = call.required("bookmark_id")
    kept = [entry for entry in channel.bookmarks if entry["id"] != wanted]
    if len(kept) == len(channel.bookmarks):
        raise ApiError("not_found")
    channel.bookmarks = kept
    call.state.save_channel(channel)
    return {}


METHODS: dict[str, Handler] = {
    "reactions.add": reactions_add,
    "reactions.remove": reactions_remove,
    "reactions.get": reactions_get,
    "pins.add": pins_add,
    "pins.remove": pins_remove,
    "pins.list": pins_list,
    "bookmarks.add": bookmarks_add,
    "bookmarks.list": bookmarks_list,
    "bookmarks.remove": bookmarks_remove,
}
