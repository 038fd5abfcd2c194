"""`reactions.*`: the bot's emoji reactions to messages."""

import re

from demo.workspace.reactions import add_reaction, remove_reaction
from demo.workspace.records import JsonObject
from demo.workspace.webapi.call import ApiCall, ApiError, api_method

_EMOJI = re.compile(r"[a-z0-9_+'-]{1,100}")


@api_method("reactions.add", "reactions:write")
async def add(call: ApiCall) -> JsonObject:
    name = call.required("name").strip(":")
    if not _EMOJI.fullmatch(name):
        raise ApiError("invalid_name")
    channel = call.channel(member=True)
    message = call.message(channel)
    if not add_reaction(call.state, call.socket_mode, call.state.bot_user, channel, message, name):
        raise ApiError("already_reacted")
    return {}


@api_method("reactions.remove", "reactions:write")
async def remove(call: ApiCall) -> JsonObject:
    name = call.required("name").strip(":")
    message = call.message(call.channel(member=True))
    if not remove_reaction(call.state, call.state.bot_user, message, name):
        raise ApiError("no_reaction")
    return {}


@api_method("reactions.get", "reactions:read")
async def get(call: ApiCall) -> JsonObject:
    channel = call.channel(member=True)
    message = call.state.message_json(call.message(channel))
    return {"type": "message", "channel": channel.id, "message": message}
