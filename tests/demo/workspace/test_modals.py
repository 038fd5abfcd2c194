"""The Web API's modals and response addresses: triggers expire, submissions are answered, limits hold."""

from typing import Any

import aiohttp
import pytest
from slack_bolt.app.async_app import AsyncApp
from slack_sdk.web.async_client import AsyncWebClient

from demo.workspace import Workspace, WorkspaceClient, open_interactions
from tests.demo.workspace.conftest import BoltStarter, until
from tests.demo.workspace.test_web_api import refused

HERE = "C0INCIDENTS"


VIEW = {
    "type": "modal",
    "callback_id": "note",
    "title": {"type": "plain_text", "text": "Add a note"},
    "submit": {"type": "plain_text", "text": "Add"},
    "blocks": [
        {
            "type": "input",
            "block_id": "note",
            "label": {"type": "plain_text", "text": "Note"},
            "element": {"type": "plain_text_input", "action_id": "text"},
            "optional": True,
        }
    ],
}


async def test_a_trigger_id_opens_one_modal_and_its_submission_is_answered(
    workspace: Workspace,
    bolt_app: AsyncApp,
    start_bolt: BoltStarter,
    people: WorkspaceClient,
) -> None:
    opened: list[dict[str, Any]] = []
    errors: list[str] = []

    @bolt_app.command("/incident")
    async def incident(ack: Any, body: dict[str, Any], client: AsyncWebClient) -> None:
        await ack()
        answer = await client.views_open(trigger_id=body["trigger_id"], view=VIEW)
        opened.append(answer["view"])
        errors.append(await refused(client.views_open(trigger_id=body["trigger_id"], view=VIEW)))

    @bolt_app.view("note")
    async def note(ack: Any, view: dict[str, Any]) -> None:
        text = view["state"]["values"]["note"]["text"]["value"]
        if text:
            await ack()
        else:
            await ack(response_action="errors", errors={"note": "write something"})

    await start_bolt(bolt_app)
    await people.say("oncall", "incidents", "/incident note")
    await until(lambda: errors)
    assert errors == ["exchanged_trigger_id"]
    view_id = opened[0]["id"]

    async def submit(value: str) -> dict[str, Any]:
        values = {"note": {"text": {"type": "plain_text_input", "value": value}}}
        return await workspace.interactions.submit_view(user="oncall", view_id=view_id, values=values)

    assert await submit("") == {"response_action": "errors", "errors": {"note": "write something"}}
    assert view_id in workspace.state.views
    await submit("rank 1 was frozen")
    assert view_id not in workspace.state.views


async def test_an_expired_trigger_id_opens_nothing(
    api: AsyncWebClient, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await refused(api.views_open(trigger_id="1.2.x", view=VIEW)) == "invalid_trigger_id"
    monkeypatch.setattr(open_interactions, "TRIGGER_LIFE_S", -1.0)
    trigger = workspace.open_interactions.begin(workspace.state.people["U0LEAD"]).trigger_id
    assert await refused(api.views_open(trigger_id=trigger, view=VIEW)) == "expired_trigger_id"
    long = {**VIEW, "title": {"type": "plain_text", "text": "x" * 25}}
    assert await refused(api.views_open(trigger_id="1", view=long)) == "invalid_arguments"


async def test_a_response_url_takes_five_answers_within_its_time(
    workspace: Workspace, people: WorkspaceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = workspace.state
    interaction = workspace.open_interactions.begin(state.people["U0LEAD"], state.channels[HERE])
    async with aiohttp.ClientSession() as session:

        async def answer() -> tuple[int, str]:
            async with session.post(interaction.response_url, json={"text": "an answer"}) as response:
                return response.status, str((await response.json()).get("error", ""))

        assert [await answer() for _ in range(6)] == [(200, "")] * 5 + [(404, "used_url")]
        interaction = workspace.open_interactions.begin(state.people["U0LEAD"], state.channels[HERE])
        monkeypatch.setattr(open_interactions, "RESPONSE_URL_LIFE_S", -1.0)
        assert await answer() == (404, "expired_url")
    assert len(await people.read("incidents", user="lead")) == 5
    assert await people.read("incidents", user="viewer") == (), "answers are private"
