"""`files.*`: upload in Slack's three steps (URL, bytes, completion), look-up and deletion."""

from aiohttp import web

from demo.workspace.records import Channel, JsonObject, Message, StoredFile
from demo.workspace.state import State
from demo.workspace.webapi.call import ApiCall, ApiError, api_method

MAX_FILE_BYTES = 64 * 2**20
"""Slack accepts 1 GB; here 64 MiB are enough."""


@api_method("files.getUploadURLExternal", "files:write")
async def get_upload_url(call: ApiCall) -> JsonObject:
    """Step 1: return a URL for the bytes of one file."""
    name, length = call.required("filename"), call.number("length", 0)
    if length <= 0:
        raise ApiError("invalid_arguments", "length must be the file's size in bytes")
    if length > MAX_FILE_BYTES:
        raise ApiError("file_upload_size_restricted")
    file = StoredFile(
        id=call.state.new_id("F"),
        name=name.replace("\\", "/").split("/")[-1] or "file",
        size=length,
        user=call.state.bot_user,
        alt_text=call.text("alt_txt"),
    )
    call.state.save_file(file)
    return {"upload_url": f"{call.state.base_url}/upload/v1/{file.id}", "file_id": file.id}


async def receive_upload(state: State, request: web.Request) -> web.Response:
    """Step 2: receive the bytes, raw or as a form's file. Their number must be the announced one."""
    file = state.files.get(request.match_info["file_id"])
    if file is None or file.uploaded:
        return web.Response(status=404, text="no upload is expected here\n")
    if request.content_type == "multipart/form-data":
        form = await request.post()
        part = next((value for value in form.values() if isinstance(value, web.FileField)), None)
        data = part.file.read() if part is not None else b""
    else:
        data = await request.read()
    if len(data) != file.size:
        return web.Response(status=400, text=f"expected {file.size} bytes, got {len(data)}\n")
    file.uploaded = True
    state.save_file(file, data)
    return web.Response(text=f"OK - {len(data)}")


@api_method("files.completeUploadExternal", "files:write")
async def complete_upload(call: ApiCall) -> JsonObject:
    """Step 3: give the files their titles and show them in a channel or thread."""
    missing = ApiError("invalid_arguments", "missing required field: files")
    entries = call.objects("files", missing)
    if not entries:
        raise missing
    files = []
    for entry in entries:
        file = call.state.files.get(str(entry.get("id")))
        if file is None or not file.uploaded or file.completed:
            raise ApiError("file_not_found")
        files.append(file)
    channels, blocks = _targets(call), call.blocks()
    thread_ts = call.text("thread_ts") or None
    if thread_ts and any(call.state.message(channel.id, thread_ts) is None for channel in channels):
        raise ApiError("thread_not_found")
    for file, entry in zip(files, entries, strict=True):
        file.completed = True
        file.title = str(entry.get("title") or "")
        call.state.save_file(file)
    for channel in channels:
        _share(call, channel, files, thread_ts, blocks or [])
    return {"files": [file.as_slack(call.state.base_url) for file in files]}


def _targets(call: ApiCall) -> list[Channel]:
    names = call.names("channels") + call.names("channel_id")
    channels = [call.state.channels[name] for name in names if name in call.state.channels]
    if len(channels) != len(names):
        raise ApiError("channel_not_found")
    if any(call.state.bot_user not in channel.members for channel in channels):
        raise ApiError("not_in_channel")
    return channels


def _share(
    call: ApiCall, channel: Channel, files: list[StoredFile], thread_ts: str | None, blocks: list[JsonObject]
) -> None:
    message = Message(
        channel.id,
        call.state.new_ts(),
        call.state.bot_user,
        call.text("initial_comment"),
        blocks=blocks,
        thread_ts=thread_ts,
        from_app=True,
        files=[file.id for file in files],
    )
    for file in files:
        file.shares.append({"channel": channel.id, "ts": message.ts, "thread_ts": thread_ts})
        call.state.save_file(file)
    call.state.save_message(message)


def _file(call: ApiCall) -> StoredFile:
    file = call.state.files.get(call.required("file"))
    if file is None or not file.completed:
        raise ApiError("file_not_found")
    return file


@api_method("files.info", "files:read")
async def info(call: ApiCall) -> JsonObject:
    return {"file": _file(call).as_slack(call.state.base_url), "comments": []}


@api_method("files.delete", "files:write")
async def delete(call: ApiCall) -> JsonObject:
    """Delete a file; messages that show it lose it."""
    call.state.remove_file(_file(call).id)
    return {}
