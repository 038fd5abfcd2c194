"""`bookmarks.*`: links at the top of a channel."""

import time

from demo.workspace.records import JsonObject
from demo.workspace.webapi.call import ApiCall, ApiError, api_method


@api_method("bookmarks.add", "bookmarks:write")
async def add(call: ApiCall) -> JsonObject:
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


@api_method("bookmarks.edit", "bookmarks:write")
async def edit(call: ApiCall) -> JsonObject:
    channel = call.channel("channel_id", member=True)
    bookmark = next((one for one in channel.bookmarks if one["id"] == call.required("bookmark_id")), None)
    if bookmark is None:
        raise ApiError("not_found")
    bookmark |= {name: call.text(name) for name in ("title", "link", "emoji") if call.text(name)}
    call.state.save_channel(channel)
    return {"bookmark": bookmark}


@api_method("bookmarks.list", "bookmarks:read")
async def list_(call: ApiCall) -> JsonObject:
    return {"bookmarks": call.channel("channel_id", member=True).bookmarks}


@api_method("bookmarks.remove", "bookmarks:write")
async def remove(call: ApiCall) -> JsonObject:
    channel = call.channel("channel_id", member=True)
    wanted = call.required("bookmark_id")
    others = [entry for entry in channel.bookmarks if entry["id"] != wanted]
    if len(others) == len(channel.bookmarks):
        raise ApiError("not_found")
    channel.bookmarks = others
    call.state.save_channel(channel)
    return {}
