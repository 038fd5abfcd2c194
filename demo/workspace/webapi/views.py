"""`views.*`: modals and the Home tab, checked as Slack checks them and shown by the page."""

import json

from demo.workspace.open_interactions import ReplyError
from demo.workspace.records import JsonObject
from demo.workspace.view_checks import checked_view, stored_view
from demo.workspace.webapi.call import ApiCall, ApiError, api_method

MAX_STACK = 3
"""Views that Slack stacks in one modal (docs.slack.dev/surfaces/modals)."""


def _checked_view(call: ApiCall, kind: str) -> JsonObject:
    view = call.parsed("view")
    if not isinstance(view, dict):
        raise ApiError("invalid_arguments", "missing required field: view")
    return checked_view(view, kind)


def _opened_modal(call: ApiCall, *, on_top: bool) -> JsonObject:
    view = _checked_view(call, "modal")
    try:
        user = call.interactions.use_trigger(call.required("trigger_id"))
    except ReplyError as error:
        raise ApiError(error.code) from error
    stack = call.state.modals(user)
    if on_top and not stack:
        raise ApiError("not_found")
    if on_top and len(stack) >= MAX_STACK:
        raise ApiError("push_limit_reached")
    for old in [] if on_top else stack:  # one modal at a time: the new one takes its place
        call.state.set_view(str(old["id"]), None, user)
    view_id = call.state.new_id("V")
    below = stack[-1] if on_top else None
    root = str(below["root_view_id"]) if below else view_id
    previous = str(below["id"]) if below else None
    return {"view": stored_view(call.state, view, user=user, view_id=view_id, root=root, previous=previous)}


@api_method("views.open")
async def open_(call: ApiCall) -> JsonObject:
    """Open a modal for the person behind a trigger id (valid for 3 s)."""
    return _opened_modal(call, on_top=False)


@api_method("views.push")
async def push(call: ApiCall) -> JsonObject:
    """Put another modal on top of the person's newest one."""
    return _opened_modal(call, on_top=True)


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
    view_id, root, previous = str(old["id"]), str(old["root_view_id"]), old["previous_view_id"]
    owner = call.state.view_owner[view_id]
    return {"view": stored_view(call.state, view, user=owner, view_id=view_id, root=root, previous=previous)}


@api_method("views.publish")
async def publish(call: ApiCall) -> JsonObject:
    """Publish the Home tab of one person."""
    user = call.required("user_id")
    if user not in call.state.people:
        raise ApiError("user_not_found")
    if not call.state.team.app.has_home_tab:
        raise ApiError("not_enabled")
    view = _checked_view(call, "home")
    view_id = f"VHOME{user}"
    old = call.state.views.get(view_id)
    if old is not None and call.text("hash") and call.text("hash") != old["hash"]:
        raise ApiError("hash_conflict", json.dumps({"current": old["hash"]}))
    return {"view": stored_view(call.state, view, user=user, view_id=view_id, root=view_id)}
