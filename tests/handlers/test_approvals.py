"""Approvals in the thread, by button and by mention: who may approve, once, the plan that is shown; the emergency override."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.store.records import RunRecord, RunStatus
from tests.bot.desk import Desk, desk
from tests.bot.toys import effects


@pytest.fixture
async def at_desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path) as it:
        yield it


async def waiting(at_desk: Desk, user: str = "oncall") -> RunRecord:
    await at_desk.say("/restore start", user=user)
    return await at_desk.run("restore", until=lambda run: run.status is RunStatus.WAITING)


async def test_the_requester_cannot_approve_and_a_lead_can_by_button(at_desk: Desk) -> None:
    run = await waiting(at_desk, user="lead")
    await at_desk.press("Approve", user="lead", run=run.id)
    await at_desk.hears(f"You asked for {run.id} yourself, so another person must approve it")
    assert (await at_desk.run("restore", until=lambda _: True)).status is RunStatus.WAITING
    await at_desk.press("Approve", user="oncall", run=run.id)
    await at_desk.hears("approver")
    assert effects(at_desk.state_dir, "a") == []
    await at_desk.say(f"/restore stop {run.id}", user="lead")
    await at_desk.run("restore")  # it is over before the next one is asked for
    run = await waiting(at_desk, user="oncall")
    await at_desk.press("Approve", user="lead", run=run.id)
    done = await at_desk.run("restore")
    assert done.status is RunStatus.SUCCEEDED
    assert [(d.user.name, d.decision, d.plan_hash) for d in done.decisions] == [
        ("lead", "approve", run.plan_hash)
    ]
    assert effects(at_desk.state_dir, "a") == [""]
    await at_desk.hears("Approved by @lead")
    assert len(await at_desk.message_of(run.id)) == 1


async def test_if_two_people_press_at_once_only_one_decision_counts(tmp_path: Path) -> None:
    roles = {"responder": ("U0ONCALL",), "approver": ("U0LEAD", "U0VIEWER"), "override": ()}
    async with desk(tmp_path, access={"roles": roles}) as at_desk:
        run = await waiting(at_desk)
        while not any(b.text == "Approve" for m in await at_desk.messages() for b in m.buttons):
            await asyncio.sleep(0.02)
        await at_desk.people.press("viewer", "Deny", run=run.id)
        async with asyncio.timeout(10):
            while not any(view.get("submit") for view in await at_desk.people.modals("viewer")):
                await asyncio.sleep(0.02)
        await asyncio.gather(
            at_desk.people.press("lead", "Approve", run=run.id), at_desk.people.submit("viewer")
        )
        done = await at_desk.run("restore")
        assert len(done.decisions) == 1
        won = done.decisions[0]
        assert done.status is (RunStatus.SUCCEEDED if won.decision == "approve" else RunStatus.DENIED)
        assert len(effects(at_desk.state_dir, "a")) == (1 if won.decision == "approve" else 0)
        loser = "viewer" if won.user.name == "lead" else "lead"
        async with asyncio.timeout(10):  # the second person is told
            while not [m for m in await at_desk.messages() if m.visible_to == loser]:
                await asyncio.sleep(0.02)


async def test_a_denial_by_mention_is_recorded_with_its_reason(at_desk: Desk) -> None:
    run = await waiting(at_desk)
    asked = await at_desk.hears("approve *restore* on toy?")
    await at_desk.say(
        f"@gpu-oncall deny {run.id} the switch is not replaced yet", user="lead", thread=asked.thread_ts
    )
    done = await at_desk.run("restore")
    assert (done.status, done.decisions[0].reason) == (RunStatus.DENIED, "the switch is not replaced yet")
    message = await at_desk.hears("Denied by @lead")
    assert "the switch is not replaced yet" in message.text


async def test_a_decision_on_a_decided_run_is_answered_with_who_decided(at_desk: Desk) -> None:
    run = await waiting(at_desk)
    while not any(b.text == "Approve" for m in await at_desk.messages() for b in m.buttons):
        await asyncio.sleep(0.02)
    card = next(m for m in await at_desk.messages() if any(b.text == "Approve" for b in m.buttons))
    button = next(b for b in card.buttons if b.text == "Approve")
    await at_desk.say(f"@gpu-oncall approve {run.id}", user="lead", thread=card.ts)
    await at_desk.run("restore")
    await at_desk.say(f"@gpu-oncall approve {run.id}", user="lead", thread=card.ts)
    await at_desk.hears("It was decided by @lead (approve")
    assert button.value == f"{run.id}:{run.plan_hash}"
    assert len((await at_desk.run("restore")).decisions) == 1


async def test_a_changed_plan_voids_the_button_of_the_old_plan(at_desk: Desk) -> None:
    run = await waiting(at_desk)
    while not any(b.text == "Approve" for m in await at_desk.messages() for b in m.buttons):
        await asyncio.sleep(0.02)
    host = at_desk.bot.runs.hosts.get("toy")
    (host.state_dir / "plan-marker").write_text("43 requests")
    old = run.plan_hash
    fresh = await at_desk.bot.runs.replan(run.id, by=run.requester)
    assert fresh.plan_hash != old
    # the press still carries the old hash: the message is edited only after an interval
    answer = await at_desk.bot.services.approvals.decide(
        run_id=run.id, user=run.requester.model_copy(update={"id": "U0LEAD"}), decision="approve", plan_hash=old, reason=""
    )  # fmt: skip
    assert not answer.accepted
    assert "plan" in answer.message
    wanted = f"{run.id}:{fresh.plan_hash}"  # a note tells the hash before the message has its new button
    async with asyncio.timeout(30):
        while not any(b.value == wanted for m in await at_desk.messages() for b in m.buttons):
            await asyncio.sleep(0.02)
    await at_desk.press("Approve", user="lead", run=run.id)
    assert (await at_desk.run("restore")).status is RunStatus.SUCCEEDED


async def test_an_override_needs_its_role_a_reason_and_a_second_person_and_is_announced(
    at_desk: Desk,
) -> None:
    run = await waiting(at_desk, user="lead")
    await at_desk.say(f"@gpu-oncall override {run.id} no second lead is awake", user="oncall")
    await at_desk.hears("You may not override restore on toy")
    await at_desk.say(f"@gpu-oncall override {run.id} no second lead is awake", user="lead")
    await at_desk.hears(f"You asked for {run.id} yourself, so another person must override it")
    assert (await at_desk.run("restore", until=lambda _: True)).status is RunStatus.WAITING
    await at_desk.say(f"/restore stop {run.id}", user="lead")
    await at_desk.run("restore")
    run = await waiting(at_desk, user="oncall")
    await at_desk.say(f"@gpu-oncall override {run.id}", user="lead")
    await at_desk.hears("An override needs a reason")
    await at_desk.say(f"@gpu-oncall override {run.id} no second approver is awake", user="lead")
    done = await at_desk.run("restore")
    assert done.status is RunStatus.SUCCEEDED
    shout = await at_desk.hears("EMERGENCY OVERRIDE by @lead on")
    assert shout.thread_ts is None, "in the channel, not only in the thread"
    assert "no second approver is awake" in shout.text
    trail = [(entry.kind, entry.text) for entry in at_desk.bot.store.audit.of_run(run.id)]
    assert any("no second approver is awake" in text for _, text in trail), trail


async def test_a_button_without_a_plan_hash_or_from_another_channel_decides_nothing(at_desk: Desk) -> None:
    run = await waiting(at_desk)
    client = at_desk.bot.services.access._client

    def request(value: str) -> list[dict[str, object]]:
        button = {
            "type": "button",
            "text": {"type": "plain_text", "text": "Approve"},
            "action_id": "approve",
            "value": value,
        }
        return [{"type": "actions", "elements": [button]}]

    for channel, value, said in (
        ("C0INCIDENTS", run.id, "names no plan, so it decides nothing"),
        ("C0INCIDENTS", f"{run.id}:000000000000", f"The plan of {run.id} has changed"),
        ("C0GENERAL", f"{run.id}:{run.plan_hash}", f"Decide on {run.id} where its request is"),
    ):
        answer = await client.chat_postMessage(channel=channel, text="forged", blocks=request(value))
        await at_desk.people.press("lead", "Approve", ts=str(answer["ts"]))
        await at_desk.hears(said, channel=channel)
    assert (await at_desk.run("restore", until=lambda _: True)).status is RunStatus.WAITING


async def test_the_plan_is_shown_in_a_modal_where_an_approver_can_approve_with_a_reason(
    at_desk: Desk,
) -> None:
    run = await waiting(at_desk)
    await at_desk.press("Show plan", user="oncall", run=run.id)
    await opens(at_desk, "oncall", "toy restore")
    assert not any("submit" in view for view in await at_desk.people.modals("oncall")), (
        "the requester only reads it"
    )
    await at_desk.press("Show plan", user="lead", run=run.id)
    await opens(at_desk, "lead", "toy restore")
    assert await at_desk.people.submit("lead", {"reason": "the switch is replaced"}) == {}
    done = await at_desk.run("restore")
    assert (done.status, done.decisions[0].reason) == (RunStatus.SUCCEEDED, "the switch is replaced")
    await at_desk.hears("The switch is replaced")
    async with asyncio.timeout(10):  # a decided request has no buttons
        while any(b.action_id in ("approve", "deny") for m in await at_desk.messages() for b in m.buttons):
            await asyncio.sleep(0.02)


async def opens(at_desk: Desk, user: str, text: str) -> None:
    async with asyncio.timeout(10):
        while not any(text in str(view["blocks"]) for view in await at_desk.people.modals(user)):
            await asyncio.sleep(0.02)


async def test_a_decision_on_an_unknown_run_is_answered_with_the_waiting_runs(at_desk: Desk) -> None:
    run = await waiting(at_desk)
    await at_desk.say("@gpu-oncall approve rs-zzzz", user="lead")
    await at_desk.hears("I know no run `rs-zzzz`")
    await at_desk.say("@gpu-oncall approve", user="lead")
    await at_desk.hears(f"Waiting for approval now: {run.id}")
