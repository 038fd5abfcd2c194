"""Views against slack_sdk: what its models refuse the workspace refuses too; stacks, required fields, presses, the Home tab."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from slack_bolt.app.async_app import AsyncApp
from slack_sdk.errors import SlackObjectFormationError
from slack_sdk.models.views import View
from slack_sdk.web.async_client import AsyncWebClient

from demo.workspace import Workspace, WorkspaceClient
from demo.workspace.interactions import ActError
from demo.workspace.view_checks import ViewError, checked_view
from tests.demo.workspace.conftest import BoltStarter, until
from tests.demo.workspace.test_web_api import refused

JsonObject = dict[str, Any]


def text(value: str) -> JsonObject:
    return {"type": "plain_text", "text": value}


def field(block_id: str, **element: Any) -> JsonObject:
    body = {"type": "plain_text_input", "action_id": "f", **element}
    return {"type": "input", "block_id": block_id, "label": text("Field"), "element": body}


def modal(*blocks: JsonObject, **changes: Any) -> JsonObject:
    shown = list(blocks) or [{"type": "divider"}]
    return {"type": "modal", "title": text("Title"), "submit": text("Go"), "blocks": shown, **changes}


VIEWS: list[tuple[str, JsonObject, bool]] = [
    ("plain", modal(field("a")), True),
    ("no blocks", modal(blocks=[]), False),
    ("title of 24", modal(title=text("x" * 24)), True),
    ("title of 25", modal(title=text("x" * 25)), False),
    ("submit of 25", modal(submit=text("x" * 25)), False),
    ("close of 25", modal(close=text("x" * 25)), False),
    ("100 blocks", modal(*({"type": "divider"} for _ in range(100))), True),
    ("101 blocks", modal(*({"type": "divider"} for _ in range(101))), False),
    ("metadata of 3000", modal(private_metadata="x" * 3000), True),
    ("metadata of 3001", modal(private_metadata="x" * 3001), False),
    ("callback of 256", modal(callback_id="x" * 256), False),
]


@pytest.mark.parametrize(("view", "accepted"), [case[1:] for case in VIEWS], ids=[case[0] for case in VIEWS])
def test_slack_sdk_and_the_workspace_agree_on_a_view(view: JsonObject, accepted: bool) -> None:
    def passes(check: Callable[[], object], error: type[Exception]) -> bool:
        try:
            check()
        except error:
            return False
        return True

    assert passes(lambda: View(**view).validate_json(), SlackObjectFormationError) is accepted
    assert passes(lambda: checked_view(view, "modal"), ViewError) is accepted


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (modal({"type": "table", "rows": [[{"type": "raw_text", "text": "x"}]]}), "unsupported type: table"),
        ({"type": "modal", "title": text("x"), "blocks": [field("a")]}, "missing required field: submit"),
        (modal(field("a", max_length=3001)), "must be between 1 and 3000"),
        (
            modal({**field("a"), "element": {"type": "button", "text": text("x"), "action_id": "b"}}),
            "unsupported type: button",
        ),
        (modal(title=text("")), "must be more than 0 characters"),
    ],
)
def test_what_slack_refuses_beyond_slack_sdk(view: JsonObject, said: str) -> None:
    with pytest.raises(ViewError, match=said):
        checked_view(view, "modal")


async def test_modals_stack_up_to_three_and_required_fields_are_asked_for(
    workspace: Workspace,
    bolt_app: AsyncApp,
    start_bolt: BoltStarter,
    people: WorkspaceClient,
    api: AsyncWebClient,
) -> None:
    """One app plays open, push, update, a press inside, a submission and a close."""
    seen: list[str] = []

    @bolt_app.command("/form")
    async def form(ack: Any, body: JsonObject, client: AsyncWebClient) -> None:
        await ack()
        button = {"type": "button", "text": text("More"), "action_id": "more"}
        view = modal(
            field("a"), {"type": "actions", "elements": [button]}, callback_id="form", notify_on_close=True
        )
        await client.views_open(trigger_id=body["trigger_id"], view=view)

    @bolt_app.action("more")
    async def more(ack: Any, body: JsonObject, client: AsyncWebClient) -> None:
        await ack()
        seen.append(body["container"]["type"])
        seen.append(
            await refused(client.views_push(trigger_id=body["trigger_id"], view=modal(callback_id="top")))
        )

    @bolt_app.view("form")
    async def submitted(ack: Any, view: JsonObject) -> None:
        seen.append(view["state"]["values"]["a"]["f"]["value"])
        await ack()

    @bolt_app.view_closed("form")
    async def closed(ack: Any) -> None:
        await ack()
        seen.append("closed")

    await start_bolt(bolt_app)
    await people.say("oncall", "incidents", "/form")
    await until(lambda: workspace.state.modals("U0ONCALL"))
    (view,) = await people.modals("oncall")
    assert await people.modals("lead") == [], "a modal is its owner's alone"
    with pytest.raises(ActError, match="no open view"):
        await workspace.interactions.close_view(user="lead", view_id=view["id"])
    assert (await people.submit("oncall"))["errors"] == {"a": "Please complete this required field."}
    for opened in (2, 3):
        await people.press_view("oncall", "more", view["id"])
        await until(lambda wanted=opened: len(workspace.state.modals("U0ONCALL")) == wanted)  # type: ignore[misc]
    await people.press_view("oncall", "more", view["id"])
    await until(lambda: "push_limit_reached" in seen)
    for top in reversed((await people.modals("oncall"))[1:]):
        await workspace.interactions.close_view(user="oncall", view_id=top["id"])
    assert await people.submit("oncall", {"a": "done"}) == {}
    assert await people.modals("oncall") == []
    await people.say("oncall", "incidents", "/form")
    await until(lambda: workspace.state.modals("U0ONCALL"))
    await workspace.interactions.close_view(user="oncall", view_id=(await people.modals("oncall"))[0]["id"])
    await until(lambda: "closed" in seen)
    assert seen == ["view", "view", "view", "push_limit_reached", "done", "closed"]


async def test_a_direct_message_needs_the_scopes_of_direct_messages(
    api: AsyncWebClient, workspace: Workspace
) -> None:
    direct = (await api.conversations_open(users="U0LEAD"))["channel"]["id"]
    app = workspace.state.team.app
    scopes = tuple(scope for scope in app.scopes if scope != "im:history")
    workspace.state.team = replace(workspace.state.team, app=replace(app, scopes=scopes))
    assert await refused(api.conversations_history(channel=direct)) == "missing_scope"
    await api.conversations_history(channel="C0INCIDENTS")
