"""`views.*`: modals and the Home tab. They are checked, stored and announced; the page does not show them yet."""

import json
import secrets

from demo.workspace.blocks import MAX_VIEW_BLOCKS, BlocksError, checked_blocks
from demo.workspace.open_interactions import ReplyError
from demo.workspace.records import JsonObject
from demo.workspace.webapi.call import ApiCall, ApiError, api_method

MAX_TITLE_CHARACTERS = 24
MAX_PRIVATE_METADATA = 3000


def _checked_view(call: ApiCall, kind: str) -> JsonObject:
    view = call.parsed("view")
    if not isinstance(view, dict):
        raise ApiError("invalid_arguments", "missing required field: view")
    if view.get("type") != kind:
        raise ApiError("invalid_arguments", f"must be one of {kind} [json-pointer:/view/type]")
    try:
        blocks = checked_blocks(view.get("blocks", []), limit=MAX_VIEW_BLOCKS)
    except BlocksError as error:
        if error.code == "msg_blocks_too_long":
            raise ApiError("view_too_large") from error
        raise ApiError("invalid_arguments", *error.messages) from error
    title = view.get("title")
    text = title.get("text") if isinstance(title, dict) else None
    if kind == "modal" and (not isinstance(text, str) or not 0 < len(text) <= MAX_TITLE_CHARACTERS):
        raise ApiError(
            "invalid_arguments", "title must have 1 to 24 characters [json-pointer:/view/title/text]"
        )
    if len(str(view.get("private_metadata") or "")) > MAX_PRIVATE_METADATA:
        raise ApiError(
            "invalid_arguments", "must be less than 3001 characters [json-pointer:/view/private_metadata]"
        )
    return {**view, "blocks": blocks}


def _stored(
    call: ApiCall, view: JsonObject, *, user: str, view_id: str, root: str, previous: str | None = None
) -> JsonObject:
    team = call.state.team
    stored = {
        "private_metadata": "",
        "callback_id": "",
        "external_id": "",
        **view,
        "id": view_id,
        "team_id": team.id,
        "app_id": team.app.app_id,
        "bot_id": team.app.bot_id,
        "hash": secrets.token_hex(8),
        "root_view_id": root,
        "previous_view_id": previous,
        "state": {"values": {}},
    }
    call.state.set_view(view_id, stored, user)
    return {"view": stored}


def _opened_modal(call: ApiCall, below: str | None) -> JsonObject:
    view = _checked_view(call, "modal")
    try:
        user = call.interactions.use_trigger(call.required("trigger_id"))
    except ReplyError as error:
        raise ApiError(error.code) from error
    view_id = call.state.new_id("V")
    root = str(call.state.views[below]["root_view_id"]) if below else view_id
    return _stored(call, view, user=user, view_id=view_id, root=root, previous=below)


@api_method("views.open")
async def open_(call: ApiCall) -> JsonObject:
    """Open a modal for the person behind a trigger id (valid for 3 s)."""
    return _opened_modal(call, None)


@api_method("views.push")
async def push(call: ApiCall) -> JsonObject:
    """Put another modal on top of the newest one."""
    return _opened_modal(call, next(reversed(call.state.views), None))


@api_method("views.update")
async def update(call: ApiCall) -> JsonObject:
    """Change an open modal by `view_id` or `external_id`; `hash` protects a newer version from being overwritten."""
    wanted, external = call.text("view_id"), call.text("external_id")
    views = call.state.views.values()
    old = next(
        (view for view in views if view["id"] == wanted or (external and view["external_id"] == external)),
        None,
    )
    if old is None:
        raise ApiError("not_found")
    if call.text("hash") and call.text("hash") != old["hash"]:
        raise ApiError("hash_conflict")
    view = _checked_view(call, str(old["type"]))
    root, previous = str(old["root_view_id"]), old["previous_view_id"]
    return _stored(call, view, user="", view_id=str(old["id"]), root=root, previous=previous)


@api_method("views.publish")
async def publish(call: ApiCall) -> JsonObject:
    """Publish the Home tab of one person."""
    user = call.required("user_id")
    if user not in call.state.people:
        raise ApiError("user_not_found")
    view = _checked_view(call, "home")
    view_id = f"VHOME{user}"
    old = call.state.views.get(view_id)
    if old is not None and call.text("hash") and call.text("hash") != old["hash"]:
        raise ApiError("hash_conflict", json.dumps({"current": old["hash"]}))
    return _stored(call, view, user=user, view_id=view_id, root=view_id)
