"""`pins.*`: messages pinned to their channel."""

from demo.workspace.records import JsonObject
from demo.workspace.webapi.call import ApiCall, ApiError, api_method


@api_method("pins.add", "pins:write")
async def add(call: ApiCall) -> JsonObject:
    return _set(call, pinned=True, error="already_pinned")


@api_method("pins.remove", "pins:write")
async def remove(call: ApiCall) -> JsonObject:
    return _set(call, pinned=False, error="no_pin")


def _set(call: ApiCall, *, pinned: bool, error: str) -> JsonObject:
    message = call.message(call.channel(member=True))
    if message.pinned == pinned:
        raise ApiError(error)
    message.pinned = pinned
    call.state.save_message(message)
    return {}


@api_method("pins.list", "pins:read")
async def list_(call: ApiCall) -> JsonObject:
    channel = call.channel(member=True)
    pinned = [entry for entry in call.state.messages[channel.id].values() if entry.pinned]
    place = {"type": "message", "channel": channel.id}
    return {"items": [place | {"message": call.state.message_json(entry)} for entry in pinned]}
