"""`reactions.*`: the bot's emoji reactions to messages."""

import re

from demo.workspace.records import JsonObject
from demo.workspace.webapi.call import ApiCall, ApiError, api_method

_EMOJI = re.compile(r"[a-z0-9_+'-]{1,100}")


@api_method("reactions.add", "reactions:write")
async def add(call: ApiCall) -> JsonObject:
    name = call.required("name").strip(":")
    if not _EMOJI.fullmatch(name):
        raise ApiError("invalid_name")
    message = call.message(call.channel(member=True))
    reaction = next((found for found in message.reactions if found["name"] == name), None)
    if reaction is not None:
        raise ApiError("already_reacted")
    message.reactions.append({"name": name, "users": [call.state.bot_user], "count": 1})
    call.state.save_message(message)
    return {}


@api_method("reactions.remove", "reactions:write")
async def remove(call: ApiCall) -> JsonObject:
    name = call.required("name").strip(":")
    message = call.message(call.channel(member=True))
    others = [found for found in message.reactions if found["name"] != name]
    if len(others) == len(message.reactions):
        raise ApiError("no_reaction")
    message.reactions = others
    call.state.save_message(message)
    return {}


@api_method("reactions.get", "reactions:read")
async def get(call: ApiCall) -> JsonObject:
    channel = call.channel(member=True)
    message = call.state.message_json(call.message(channel))
    return {"type": "message", "channel": channel.id, "message": message}
