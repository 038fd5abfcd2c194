"""Guests, people of other organisations and deactivated ones at a real bot; whoami, Home tab, messages to the bot alone."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.store.records import RunStatus
from demo.workspace.client import WorkspaceError
from demo.workspace.payloads import message_event
from tests.bot.desk import Desk, desk

ROLES = {"responder": ("#incidents",), "approver": ("@incident-leads",), "override": ("@incident-leads",)}


@pytest.fixture
async def at_desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path, access={"roles": ROLES}, scripts={"triage": "verdict:fall_back"}) as it:
        yield it


async def test_a_person_of_another_organisation_starts_nothing_by_mention_or_button(at_desk: Desk) -> None:
    await at_desk.say("@gpu-oncall loadtest start", user="partner")
    await at_desk.hears("you belong to another organisation (T0PARTNER)")
    await at_desk.say("@gpu-oncall triage", user="partner")
    assert at_desk.bot.runs.list() == []
    await at_desk.say("/triage")
    run = await at_desk.run("triage")
    await at_desk.press("Triage again", user="partner", run=run.id)
    async with asyncio.timeout(10):
        while len([m for m in await at_desk.messages() if m.visible_to == "partner"]) < 3:
            await asyncio.sleep(0.02)
    assert len(at_desk.bot.runs.list()) == 1
    refused = await at_desk.people.say("partner", "incidents", "/triage")
    assert refused.error == "unknown_command", "Slack offers commands to members of their workspace only"


async def test_a_guest_reads_and_changes_nothing_and_a_deactivated_person_cannot_act(at_desk: Desk) -> None:
    assert "you are a guest here" in await at_desk.answer("/fallback start", user="guest")
    assert "No fallback has run" in await at_desk.answer("/fallback status", user="guest")
    assert at_desk.bot.runs.list() == []
    await at_desk.say("/triage", user="guest")
    assert (await at_desk.run("triage")).requester.name == "guest", "a triage only reads"
    with pytest.raises(WorkspaceError, match="deactivated"):
        await at_desk.people.say("former", "incidents", "/triage")


@pytest.mark.parametrize("event", ["app_mention", "message"])
async def test_an_app_gives_no_orders_and_the_attempt_is_logged(
    at_desk: Desk, capfd: pytest.CaptureFixture[str], event: str
) -> None:
    state = at_desk.workspace.state
    message = state.post("C0INCIDENTS", "U0ONCALL", "<@U0GPUONCALL> triage")
    payload = message_event(state, event, state.channels["C0INCIDENTS"], message)
    payload["event"]["bot_id"] = "B0OTHERAPP"
    if event == "message":  # as an incoming webhook writes to the bot alone
        payload["event"] |= {"subtype": "bot_message", "channel_type": "im"}
        del payload["event"]["user"]
    at_desk.workspace.socket_mode.deliver_event(payload)
    printed = ""
    async with asyncio.timeout(10):
        while "an app wrote to the bot" not in printed:
            await asyncio.sleep(0.02)
            printed += "".join(capfd.readouterr())
    assert "B0OTHERAPP" in printed
    said = '"actor": "B0OTHERAPP"'
    assert any(said in line and "triage" in line for line in at_desk.bot.store.audit.json_lines(since=0))
    assert at_desk.bot.runs.list() == []
    assert len(await at_desk.messages()) == 1, "two bots that answer each other never end"


async def test_whoami_says_what_i_may_do_and_why(at_desk: Desk) -> None:
    said = await at_desk.answer("/gpu whoami", user="lead")
    assert "You are @lead, a full member" in said
    assert "approve and deny restore (approver, as a member of @incident-leads)" in said
    said = await at_desk.answer("/gpu whoami", user="viewer")
    assert "and keep incidents (responder, as a member of #incidents)" in said
    assert "[stop] approve and deny restore: You may not act as approver" in said
    assert "a guest" in await at_desk.answer("/gpu whoami", user="guest")
    await at_desk.say("@gpu-oncall whoami", user="partner")
    await at_desk.hears(
        "[stop] start a triage: You may not start a triage: you belong to another organisation"
    )


async def test_an_option_that_overrules_a_check_needs_the_role_override(at_desk: Desk) -> None:
    specs = at_desk.bot.services.actions
    assert specs["restore"].overrides == {"override_reason"}
    said = await at_desk.answer('/restore start override_reason="it looks fine"', user="oncall")
    assert "You may not start restore on toy with override_reason" in said
    assert at_desk.bot.runs.list() == []


async def test_messages_to_the_bot_alone_are_commands_but_change_nothing_there(at_desk: Desk) -> None:
    await at_desk.say("triage", channel="@gpu-oncall")
    run = await at_desk.run("triage")
    assert run.place.channel == "D0ONCALL"
    await at_desk.hears("FALL BACK", channel="D0ONCALL")
    await at_desk.say("fallback start", channel="@gpu-oncall")
    await at_desk.hears("Ask for fallback in #incidents", channel="D0ONCALL")
    await at_desk.say("triaje", channel="@gpu-oncall")
    await at_desk.hears("Did you mean 'triage'?", channel="D0ONCALL")
    assert at_desk.bot.runs.list(action="fallback") == []
    # Slack sends the bot its own messages there too; they are no orders of an app.
    assert not any("an app gives no orders" in line for line in at_desk.bot.store.audit.json_lines(since=0))


async def test_the_home_tab_shows_what_waits_for_me_and_what_i_may_do(at_desk: Desk) -> None:
    await at_desk.say("/incident open toy the links are down")
    await at_desk.hears("INCIDENT")
    await at_desk.say("/restore start")
    run = await at_desk.run("restore", until=lambda run: run.status is RunStatus.WAITING)

    async def home(user: str) -> str:
        async with asyncio.timeout(10):
            while "What you may do" not in str(view := await at_desk.people.home(user)):
                await asyncio.sleep(0.05)
            return str(view)

    lead = await home("lead")
    assert "Waiting for your decision" in lead
    assert run.id in lead
    assert "the links are down" in lead
    assert "/archives/C0INCIDENTS/" in lead, "a link to its message"
    assert "Waiting for your decision" not in await home("oncall"), "the requester decides nothing"
