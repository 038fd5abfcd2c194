"""Views (modals and the Home tab): what Slack refuses, and the fields that it adds to a stored one."""

import secrets

from demo.workspace.blocks import MAX_VIEW_BLOCKS, BlocksError, checked_blocks
from demo.workspace.records import JsonObject
from demo.workspace.state import State

MAX_TITLE_CHARACTERS = 24
MAX_PRIVATE_METADATA = 3000
MAX_ID_CHARACTERS = 255
MAX_VIEW_CHARACTERS = 250_000


class ViewError(Exception):
    """Raised for a view that Slack refuses: `code` is Slack's error code, `messages` say what is wrong and where."""

    def __init__(self, code: str, *messages: str) -> None:
        super().__init__(f"{code}: {'; '.join(messages)}")
        self.code = code
        self.messages = messages


def checked_view(view: JsonObject, kind: str) -> JsonObject:
    """Return a copy of a view that Slack would accept. Raises ViewError in Slack's words."""

    def text(name: str, *, required: bool) -> None:
        value = view.get(name)
        shown = value.get("text") if isinstance(value, dict) else None
        if (value is None and required) or (value is not None and not isinstance(shown, str)):
            raise ViewError(
                "invalid_arguments", f"missing required field: {name} [json-pointer:/view/{name}]"
            )
        if isinstance(shown, str) and not 0 < len(shown) <= MAX_TITLE_CHARACTERS:
            words = (
                f"must be less than {MAX_TITLE_CHARACTERS + 1} characters"
                if shown
                else "must be more than 0 characters"
            )
            raise ViewError("invalid_arguments", f"{words} [json-pointer:/view/{name}/text]")

    if view.get("type") != kind:
        raise ViewError("invalid_arguments", f"must be one of {kind} [json-pointer:/view/type]")
    try:
        blocks = checked_blocks(
            view.get("blocks", []), limit=MAX_VIEW_BLOCKS, total=MAX_VIEW_CHARACTERS, surface=kind
        )
    except BlocksError as error:
        if error.code == "msg_blocks_too_long":
            raise ViewError("view_too_large") from error
        raise ViewError("invalid_arguments", *error.messages) from error
    if not blocks:
        raise ViewError("invalid_arguments", "no less than 1 items allowed [json-pointer:/view/blocks]")
    if kind == "home" and (unknown := [name for name in ("title", "submit", "close") if name in view]):
        raise ViewError("invalid_arguments", f"unexpected field: {unknown[0]} [json-pointer:/view]")
    if kind == "modal":
        text("title", required=True)
        text("close", required=False)
        text("submit", required=any(block["type"] == "input" for block in blocks))
    for name, limit in (
        ("private_metadata", MAX_PRIVATE_METADATA),
        ("callback_id", MAX_ID_CHARACTERS),
        ("external_id", MAX_ID_CHARACTERS),
    ):
        if len(str(view.get(name) or "")) > limit:
            raise ViewError(
                "invalid_arguments", f"must be less than {limit + 1} characters [json-pointer:/view/{name}]"
            )
    return {**view, "blocks": blocks}


def stored_view(
    state: State, view: JsonObject, *, user: str, view_id: str, root: str, previous: str | None = None
) -> JsonObject:
    """Store a checked view with the fields that Slack adds, and return it."""
    team = state.team
    external = str(view.get("external_id") or "")
    if external and any(v["external_id"] == external and v["id"] != view_id for v in state.views.values()):
        raise ViewError("duplicate_external_id")
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
    state.set_view(view_id, stored, user)
    return stored
