"""`views.*`: modals and the Home tab. They are checked, kept and told to the page; the page shows them later."""

import json
import secrets

from demo.workspace.blocks import MAX_VIEW_BLOCKS, BlocksError, checked_blocks
from demo.workspace.grants import GrantError
from demo.workspace.webapi.call import ApiCall, ApiError, Handler
from gpu_actions.models import JsonObject

MAX_TITLE_CHARACTERS = 24
MAX_PRIVATE_METADATA = 3000


def _checked_view(call: ApiCall, kinds: tuple[str, ...]) -> JsonObject:
    view = call.parsed("view")
    if not isinstance(view, dict):
        raise ApiError("invalid_arguments", "missing required field: view")
    if view.get("type") not in kinds:
        raise ApiError("invalid_arguments", f"must be one of {', '.join(kinds)} [json-pointer:/view/type]")
    try:
        blocks = checked_blocks(view.get("blocks", []), limit=MAX_VIEW_BLOCKS)
    except BlocksError as error:
        if error.code == "msg_blocks_too_long":
            raise ApiError("view_too_large") from error
        raise ApiError("invalid_arguments", *error.messages) from error
    if view["type"] == "modal":
        title = view.get("title")
        text = title.get("text") if isinstance(title, dict) else None
        if not isinstance(text, str) or not 0 < len(text) <= MAX_TITLE_CHARACTERS:
            raise ApiError(
                "invalid_arguments", "title must have 1 to 24 characters [json-pointer:/view/title/text]"
            )
    if len(str(view.get("private_metadata") or "")) > MAX_PRIVATE_METADATA:
        raise ApiError(
            "invalid_arguments", "must be less than 3001 characters [json-pointer:/view/private_metadata]"
        )
    return {**view, "blocks": blocks}


def _kept(
    call: ApiCall, view: JsonObject, *, user: str, view_id: str, root: str, previous: str | None
) -> JsonObject:
    seed = call.state.seed
    stored = {
        "private_metadata": "",
        "callback_id": "",
        "external_id": "",
        **view,
        "id": view_id,
        "team_id": seed.team_id,
        "app_id": seed.app.app_id,
        "bot_id": seed.app.bot_id,
        "hash": secrets.token_hex(8),
        "root_view_id": root,
        "previous_view_id": previous,
        "state": {"values": {}},
    }
    call.state.views[view_id] = stored
    call.state.announce({"type": "view", "user": user, "view": stored})
    return {"view": stored}


def _user_of_trigger(call: ApiCall) -> str:
    try:
        return call.grants.use_trigger(call.required("trigger_id"))
    except GrantError as error:
        raise ApiError(error.code) from error


async def open_(call: ApiCall) -> JsonObject:
    """Open a modal for the person behind a trigger id (3 s)."""
    view = _checked_view(call, ("modal",))
    user = _user_of_trigger(call)
    view_id = call.state.new_id("V")
    return _kept(call, view, user=user, view_id=view_id, root=view_id, previous=None)


async def push(call: ApiCall) -> JsonObject:
    """Put another modal on top."""
    view = _checked_view(call, ("modal",))
    user = _user_of_trigger(call)
    below = next(reversed(call.state.views), None)
    view_id = call.state.new_id("V")
    root = str(call.state.views[below]["root_view_id"]) if below else view_id
    return _kept(call, view, user=user, view_id=view_id, root=root, previous=below)


async def update(call: ApiCall) -> JsonObject:
    """Change an open modal, by `view_id` or `external_id`; `hash` guards against overwriting a newer one."""
    wanted, external = call.text("view_id"), call.text("external_id")
    old = next(
        (
            view
            for view in call.state.views.values()
            if view["id"] == wanted or (external and view["external_id"] == external)
        ),
        None,
    )
    if old is None:
        raise ApiError("not_found")
    if call.text("hash") and call.text("hash") != old["hash"]:
        raise ApiError("hash_conflict")
    view = _checked_view(call, (str(old["type"]),))
    return _kept(
        call,
        view,
        user="",
        view_id=str(old["id"]),
        root=str(old["root_view_id"]),
        previous=old["previous_view_id"],
    )


async def publish(call: ApiCall) -> JsonObject:
    """The Home tab of one person."""
    user = call.required("user_id")
    if user not in call.state.people:
        raise ApiError("user_not_found")
    view = _checked_view(call, ("home",))
    view_id = f"VHOME{user}"
    old = call.state.views.get(view_id)
    if old is not None and call.text("hash") and call.text("hash") != old["hash"]:
        raise ApiError("hash_conflict", json.dumps({"current": old["hash"]}))
    return _kept(call, view, user=user, view_id=view_id, root=view_id, previous=None)


METHODS: dict[str, Handler] = {
    "views.open": open_,
    "views.push": push,
    "views.update": update,
    "views.publish": publish,
}
