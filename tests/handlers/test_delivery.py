"""Requests that arrive twice, late, from an old message or from two people at once, and requests that meet a defect."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from slack_bolt.async_app import AsyncBoltRequest, AsyncRespond

from bot.presenter import private_answers
from bot.presenter.message import Message
from bot.settings.logs import configure_logging
from bot.store.records import RunStatus
from gpu_actions.models import JsonObject
from handlers import ARRIVED, COMMANDS
from handlers.call import ephemeral_answer, respond_answer
from tests.bot.desk import Desk, desk
from tests.bot.toys import effects
from tests.ports import free_port


@pytest.fixture
async def at_desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path, scripts={"triage": "verdict:look", "fallback": "hold:a"}) as it:
        yield it
        it.release()


@pytest.fixture
def envelopes(at_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, JsonObject, bool]]:
    """Record every envelope that the workspace sends to the bot, so that a test can send one again as Slack does."""
    sent: list[tuple[str, JsonObject, bool]] = []
    deliver = at_desk.workspace.socket_mode.deliver

    async def noted(kind: str, payload: JsonObject, *, accepts_response: bool) -> Any:
        sent.append((kind, payload, accepts_response))
        return await deliver(kind, payload, accepts_response=accepts_response)

    monkeypatch.setattr(at_desk.workspace.socket_mode, "deliver", noted)
    return sent


async def again(at_desk: Desk, envelope: tuple[str, JsonObject, bool]) -> None:
    kind, payload, accepts = envelope
    delivery = await at_desk.workspace.socket_mode.deliver(kind, payload, accepts_response=accepts)
    assert delivery.error is None, (
        "a repeated delivery is acknowledged too, or Slack would repeat it for ever"
    )


async def test_a_command_a_press_and_a_mention_that_arrive_twice_start_one_run_each(
    at_desk: Desk, envelopes: list[tuple[str, JsonObject, bool]]
) -> None:
    await at_desk.say("/triage")
    await at_desk.run("triage")
    await again(at_desk, envelopes[0])
    await at_desk.say("@gpu-oncall trace start")
    await at_desk.run("trace")
    mention = next(e for e in envelopes if e[1].get("event", {}).get("type") == "app_mention")
    await again(at_desk, mention)
    await at_desk.hears("FALL BACK: nccl_hang")
    await at_desk.press("Triage again")
    press = next(e for e in envelopes if e[0] == "interactive")
    await again(at_desk, press)
    while len(at_desk.bot.runs.list(action="triage")) < 2:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    assert len(at_desk.bot.runs.list(action="triage")) == 2
    assert len(at_desk.bot.runs.list(action="trace")) == 1
    assert not [text for text in await at_desk.texts() if "was started already" in text]


async def test_a_command_that_arrives_too_late_starts_nothing_and_says_so(
    at_desk: Desk, envelopes: list[tuple[str, JsonObject, bool]]
) -> None:
    await at_desk.answer("/fallback status")
    payload = {**envelopes[0][1], "text": "start", "trigger_id": "late.1"}
    request = AsyncBoltRequest(mode="socket_mode", body=payload, context={ARRIVED: time.monotonic() - 5})
    assert (await at_desk.bot.app.async_dispatch(request)).status == 200
    await at_desk.hears("reached me 5.0 s late, so I started nothing")
    assert at_desk.bot.runs.list() == []


async def test_a_mention_that_slack_delivers_20_minutes_late_starts_nothing_and_says_so(
    at_desk: Desk, envelopes: list[tuple[str, JsonObject, bool]]
) -> None:
    await at_desk.say("@gpu-oncall fallback status")
    await at_desk.hears("No fallback has run")
    kind, payload, accepts = next(e for e in envelopes if e[1].get("event", {}).get("type") == "app_mention")
    for age_s, event_id in ((1200.0, "EvLate"), (60.0, "EvInTime")):
        sent_at = f"{time.time() - age_s:.6f}"
        text = str(payload["event"]["text"]).replace("status", "start")
        event = {**payload["event"], "text": text, "ts": sent_at, "event_ts": sent_at}
        await again(at_desk, (kind, {**payload, "event_id": event_id, "event": event}, accepts))
        if event_id == "EvLate":
            await at_desk.hears("Your mention reached me 20 min late, so I started nothing")
            assert at_desk.bot.runs.list() == []
    await at_desk.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)


async def test_an_internal_error_is_answered_with_an_id_and_the_bot_keeps_working(
    at_desk: Desk, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("a defect")

    configure_logging(
        at_desk.bot.settings
    )  # structlog's default prints every local variable, which takes seconds
    with monkeypatch.context() as patch:
        patch.setattr(at_desk.bot.services.runs, "latest", broken)
        said = await at_desk.answer("/fallback status")
    assert "failed because of an error in the bot (`e-" in said
    structlog.reset_defaults()
    error_id = said.partition("bot (`")[2].partition("`")[0]
    captured = capfd.readouterr()
    assert error_id in captured.out + captured.err
    assert "ZeroDivisionError" in captured.out + captured.err
    assert "No fallback has run" in await at_desk.answer("/fallback status")


async def test_every_command_works_behind_the_umbrella_command(at_desk: Desk) -> None:
    for name in COMMANDS:
        words = "status" if name not in ("triage", "forensics") else "help"
        assert await at_desk.answer(f"/gpu {name} {words}"), name
    said = await at_desk.answer("/gpu /fallback status toy")
    assert "No fallback has run on toy" in said
    await at_desk.say("/gpu fallback start")
    run = await at_desk.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
    assert run.requester.id == "U0ONCALL"


async def test_two_people_who_start_the_fallback_at_once_get_one_run_and_the_second_is_told(
    at_desk: Desk,
) -> None:
    await at_desk.say("/triage")
    card = await at_desk.hears("FALL BACK: nccl_hang on toy")
    roles = ("oncall", "lead")
    await asyncio.gather(*(at_desk.people.press(user, "Start fallback", ts=card.ts) for user in roles))
    run = await at_desk.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
    await at_desk.hears("only one run may change a host at a time")
    at_desk.release()
    await at_desk.run("fallback")
    assert [found.id for found in at_desk.bot.runs.list(action="fallback")] == [run.id]
    assert len(effects(at_desk.state_dir, "a.done")) == 1


async def test_buttons_of_older_versions_and_of_unknown_runs_are_answered(at_desk: Desk) -> None:
    def message(action_id: str, value: str) -> list[JsonObject]:
        text = {"type": "plain_text", "text": f"Old {action_id}"}
        return [
            {
                "type": "actions",
                "elements": [{"type": "button", "text": text, "action_id": action_id, "value": value}],
            }
        ]

    for action_id, value, says in (
        ("restart_everything", "x", "This button belongs to an older version of the bot"),
        ("stop", "fb-zzzz", "I know no run 'fb-zzzz' any more"),
        ("approve", "rs-zzzz:abc", "I know no run `rs-zzzz`"),
        ("approve", "", "I know no run"),
        ("start_fallback", "", "I know no run"),
        ("hold", "fb-zzzz", "I know no run"),
    ):
        posted = await at_desk.bot.client.chat_postMessage(
            channel="C0INCIDENTS", text="old", blocks=message(action_id, value)
        )
        before = len([m for m in await at_desk.messages() if m.visible_to == "oncall"])
        assert (await at_desk.people.press("oncall", f"Old {action_id}", ts=posted["ts"])).ok
        async with asyncio.timeout(5):
            while len(mine := [m for m in await at_desk.messages() if m.visible_to == "oncall"]) <= before:
                await asyncio.sleep(0.02)
        assert says in mine[-1].text, (action_id, mine[-1].text)
    assert at_desk.bot.runs.list() == []


async def test_run_ids_are_accepted_as_people_paste_them(at_desk: Desk) -> None:
    """Messages show ids in code type, so a pasted id has back ticks around it."""
    await at_desk.say("/fallback start")
    run = await at_desk.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
    assert "running" in await at_desk.answer(f"/fallback status `{run.id}`")
    await at_desk.say(f"@gpu-oncall stop `{run.id}`, please")
    assert (await at_desk.run("fallback")).status is RunStatus.CANCELLED
    await at_desk.say("/restore start")
    waiting = await at_desk.run("restore", until=lambda run: run.status is RunStatus.WAITING)
    await at_desk.say(f"@gpu-oncall deny `{waiting.id}`: not now", user="lead")
    done = await at_desk.run("restore")
    assert (done.status, done.decisions[0].reason) == (RunStatus.DENIED, "not now")


@pytest.mark.parametrize("word", ["hold", "next", "abort"])
async def test_a_signal_by_mention_reaches_the_step_if_the_person_has_the_role(
    tmp_path: Path, word: str
) -> None:
    async with desk(tmp_path, scripts={"restore": "signal:s"}, access=OPEN) as it:
        await it.say("/restore start")
        run = await it.run("restore", until=lambda run: run.status is RunStatus.RUNNING and bool(run.steps))
        await it.say(f"@gpu-oncall {word} {run.id}", user="viewer")
        await it.hears(f"You may not {word} restore on toy")
        await it.say(f"@gpu-oncall {word}")
        await it.hears(f"Say which run: {word} RUN. Running now: {run.id}")
        await it.say(f"@gpu-oncall {word} toy")
        await it.hears("I know no run 'toy'")
        assert (await it.run("restore", until=lambda _: True)).status is RunStatus.RUNNING
        await it.say(f"@gpu-oncall {word} {run.id}")
        done = await it.run("restore")
        assert done.steps[0].summary == f"told {word}"
        await it.say(f"@gpu-oncall {word} {run.id}")
        await it.hears(f"{run.id} is over already (succeeded)")


OPEN = {
    "roles": {"responder": ("U0ONCALL",), "approver": ("U0LEAD",), "override": ("U0LEAD",)},
    "approvals": {},
}


async def test_an_answer_is_posted_if_its_response_url_is_used_up(at_desk: Desk) -> None:
    """A response_url expires after five answers or 30 minutes; the person still gets the answer."""
    asked: list[JsonObject] = []

    async def used_up(request: web.Request) -> web.Response:
        asked.append(json.loads(await request.text()))
        return web.Response(status=404, text='{"ok":false,"error":"used_url"}')

    application = web.Application()
    application.router.add_post("/", used_up)
    runner = web.AppRunner(application)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    otherwise = ephemeral_answer(at_desk.bot.client, "C0INCIDENTS", "U0ONCALL", None)
    try:
        respond = AsyncRespond(response_url=f"http://127.0.0.1:{port}/", proxy=None, ssl=None)
        await respond_answer(respond, None, otherwise)(private_answers.accepted("answered another way"))
    finally:
        await runner.cleanup()
    dead = AsyncRespond(response_url=f"http://127.0.0.1:{port}/", proxy=None, ssl=None)
    await respond_answer(dead, None, otherwise)(private_answers.accepted("answered though nothing listens"))
    assert len(asked) == 1
    assert (await at_desk.hears("answered another way")).visible_to == "oncall"
    assert (await at_desk.hears("answered though nothing listens")).visible_to == "oncall"


async def test_an_answer_whose_blocks_are_refused_is_sent_as_text(at_desk: Desk) -> None:
    answer = ephemeral_answer(at_desk.bot.client, "C0INCIDENTS", "U0ONCALL", None)
    await answer(Message("the text arrives", ({"type": "no such block"},)))
    assert (await at_desk.hears("the text arrives")).blocks == ()
