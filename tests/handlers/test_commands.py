"""Slash commands as people type them, through the real app and socket: parsed, allowed or refused, and always answered."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.settings.load import SettingsError
from bot.settings.model import SlackSettings
from bot.store.records import RunStatus
from handlers import COMMANDS, check_command_names
from tests.bot.desk import Desk, desk
from tests.bot.toys import effects


@pytest.fixture
async def at_desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path, scripts={"triage": "verdict:look", "fallback": "hold:a"}) as it:
        yield it
        it.release()


async def test_every_command_and_its_help_are_answered_and_start_nothing(at_desk: Desk) -> None:
    for command in (
        "triage help", "fallback", "fallback help", "loadtest help", "trace", "forensics help", "restore help",
        "incident", "gpu", "gpu help", "gpu status", "gpu fallback help", "fallback status", "restore status toy",
        "loadtest status", "loadtest baseline", "incident status", "trace status",
    ):  # fmt: skip
        assert await at_desk.answer(f"/{command}"), command
    assert at_desk.bot.runs.list() == []


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("/fallback strat", "Did you mean 'start'?"),
        ("/fallback toy", "first say what to do with it, for example /fallback plan toy"),
        ("/fallback start tou", "I know no host 'tou'. Did you mean 'toy'?"),
        ("/fallback start scirpt=x", "unknown option 'scirpt'; did you mean script?"),
        ("/fallback start tries=none", "tries=none"),
        ("/fallback start tries=99", "it must be at most 5"),
        ("/fallback start tries", "I know no host 'tries'"),
        ("/fallback start script=", "script has no value"),
        ("/fallback start tries=1 tries=2", "given twice"),
        ("/fallback stop", "No fallback is running on toy"),
        ("/fallback stop fb-none", "I know no run 'fb-none'"),
        ("/triage dep", "Did you mean 'deep'?"),
        ("/gpu tirage", "Did you mean 'triage'?"),
        ("/loadtest baseline shwo", "Did you mean 'show'?"),
        ("/loadtest baseline show none", "there is no baseline 'none'"),
        ("/loadtest compare", "No load test of toy has finished yet"),
        ("/loadtest compare a b c", "you named 3"),
        ("/incident note", "Say what to note"),
        ("/incident note it is loud", "No incident is open on toy"),
        ("/incident close", "No incident is open on toy"),
    ],
)
async def test_words_that_are_not_understood_are_answered_with_what_would_be(
    at_desk: Desk, typed: str, says: str
) -> None:
    assert says in await at_desk.answer(typed)
    assert at_desk.bot.runs.list() == []


async def test_the_typography_of_a_phone_keyboard_is_understood(at_desk: Desk) -> None:
    await at_desk.say("/fallback Start —script=“count:x”")
    run = await at_desk.run("fallback")
    assert run.status is RunStatus.SUCCEEDED
    assert effects(at_desk.state_dir, "x") == [""]


async def test_a_person_without_the_role_is_told_whom_to_ask_and_may_still_read(at_desk: Desk) -> None:
    refused = await at_desk.answer("/fallback start", user="viewer")
    assert "You may not start fallback on toy" in refused
    assert "@oncall-engineers" in refused
    assert at_desk.bot.runs.list() == []
    assert "No fallback has run" in await at_desk.answer("/fallback status", user="viewer")
    await at_desk.say("/triage", user="viewer")
    assert (await at_desk.run("triage")).requester.name == "viewer"


async def test_only_one_run_changes_a_host_at_a_time_and_the_refusal_names_it(at_desk: Desk) -> None:
    await at_desk.say("/fallback start")
    first = await at_desk.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
    said = await at_desk.answer("/restore start", user="lead")
    assert first.id in said
    assert "only one run may change a host at a time" in said
    at_desk.release()
    assert (await at_desk.run("fallback")).status is RunStatus.SUCCEEDED


async def test_the_button_of_a_card_starts_the_fallback_in_its_thread(
    at_desk: Desk,
) -> None:
    await at_desk.say("/triage")
    card = await at_desk.hears("FALL BACK: nccl_hang on toy")
    assert card.text.splitlines()[0].endswith("FALL BACK: nccl_hang on toy")
    await at_desk.press("Start fallback")
    run = await at_desk.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
    assert run.place.thread_ts == card.ts
    at_desk.release()
    await at_desk.run("fallback")


async def test_the_button_of_a_card_starts_nothing_if_a_newer_triage_disagrees(at_desk: Desk) -> None:
    await at_desk.say("/triage")
    await at_desk.hears("FALL BACK: nccl_hang on toy")
    first = await at_desk.run("triage")
    await at_desk.bot.runs.start(
        action="triage",
        host="toy",
        options={"script": "calm:look"},
        requester=first.requester,
        place=first.place,
        dedupe_key="newer",
    )
    await at_desk.hears("HEALTHY: toy")
    await at_desk.press("Start fallback", run=first.id)
    await at_desk.hears("says HEALTHY: toy, so this button started nothing")
    assert at_desk.bot.runs.list(action="fallback") == []


async def test_the_stop_button_ends_the_run_and_a_second_press_is_answered(at_desk: Desk) -> None:
    await at_desk.say("/fallback start")
    run = await at_desk.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
    await asyncio.gather(at_desk.press("Stop", run=run.id), at_desk.press("Stop", user="lead", run=run.id))
    assert (await at_desk.run("fallback")).status is RunStatus.CANCELLED
    assert "is over" in await at_desk.answer(f"/fallback stop {run.id}")


async def test_a_mention_in_a_thread_does_what_a_command_does(at_desk: Desk) -> None:
    await at_desk.say("/triage")
    card = await at_desk.hears("FALL BACK")
    await at_desk.say("@gpu-oncall fallback start", thread=card.ts)
    run = await at_desk.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
    assert run.place.thread_ts == card.ts
    await at_desk.say(f"@gpu-oncall stop {run.id}", thread=card.ts)
    assert (await at_desk.run("fallback")).status is RunStatus.CANCELLED
    await at_desk.say("@gpu-oncall falback status", thread=card.ts)
    await at_desk.hears("Did you mean 'fallback'?")


async def test_an_incident_is_opened_noted_and_closed(at_desk: Desk) -> None:
    await at_desk.say("/incident open toy the links are down")
    root = await at_desk.hears("INCIDENT: the links are down (toy)")
    await at_desk.answer("/incident note switch 3 was replaced")
    assert "switch 3 was replaced" in await at_desk.answer("/incident timeline")
    await at_desk.say("/fallback start")
    run = await at_desk.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
    assert run.place.thread_ts == root.ts
    assert f"stays open: {run.id}" in await at_desk.answer("/incident close")
    at_desk.release()
    await at_desk.run("fallback")
    await at_desk.say("/incident close")
    async with asyncio.timeout(10):
        while not any(view.get("submit") for view in await at_desk.people.modals("oncall")):
            await asyncio.sleep(0.02)
    assert await at_desk.people.submit("oncall", {"cause": "a dead switch", "repair": "replaced it"}) == {}
    closed = await at_desk.hears("Closed by @oncall")
    assert "*Repair:* replaced it" in closed.text
    assert closed.thread_ts == root.ts
    assert "No incident is open" in await at_desk.answer("/incident status")


async def test_the_options_of_a_load_test_are_filled_in_on_a_form_that_names_the_wrong_field(
    at_desk: Desk,
) -> None:
    await at_desk.say("/loadtest form")
    async with asyncio.timeout(10):
        while not any(view.get("submit") for view in await at_desk.people.modals("oncall")):
            await asyncio.sleep(0.02)
    refused = await at_desk.people.submit("oncall", {"option:window": "soon"})
    assert refused["response_action"] == "errors"
    assert "write a number" in refused["errors"]["option:window"]
    assert await at_desk.people.submit("oncall", {"option:window": "4.5", "option:deep": "true"}) == {}
    run = await at_desk.run("loadtest", until=lambda run: True)
    assert (run.options["window"], run.options["deep"]) == ("4.5", "true")
    await at_desk.say("@gpu-oncall loadtest form")
    await at_desk.hears("A form opens from a slash command only")


async def test_a_press_of_details_shows_every_step_in_a_modal(at_desk: Desk) -> None:
    await at_desk.say("/fallback start")
    run = await at_desk.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
    await at_desk.press("Details", user="viewer", run=run.id)
    async with asyncio.timeout(10):
        while run.id not in str(await at_desk.people.modals("viewer")):
            await asyncio.sleep(0.02)
    (view,) = await at_desk.people.modals("viewer")
    assert "submit" not in view
    at_desk.release()


def test_a_renamed_command_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    check_command_names(SlackSettings(commands={"triage": "gpu-triage", "incident": "inc"}))
    with pytest.raises(SettingsError, match=r"'traige' is not a command\. Did you mean 'triage'"):
        check_command_names(SlackSettings(commands={"traige": "gpu-triage"}))


async def test_help_and_hints_use_the_new_names_of_renamed_commands(tmp_path: Path) -> None:
    names = {name: f"x-{name}" for name in (*COMMANDS, "gpu")}
    async with desk(tmp_path, slack_changes={"commands": names}) as it:
        for typed, says in (
            ("/x-fallback toy", "for example /x-fallback plan toy"),
            ("/x-fallback strat", "/x-fallback has no subcommand 'strat'. Did you mean 'start'?"),
            ("/x-fallback help", "/x-fallback plan [host]"),
            ("/x-fallback status", "/x-fallback start toy"),
            ("/x-fallback start there", "see /x-fallback help"),
            ("/x-loadtest baseline shwo", "/x-loadtest baseline has no subcommand 'shwo'"),
            ("/x-incident close", "/x-incident open toy"),
            ("/x-gpu help", "/x-gpu COMMAND"),
            ("/x-gpu zzzzzz", "I know: x-triage, "),
            ("/x-gpu x-triaje", "Did you mean 'x-triage'?"),
        ):
            said = await it.answer(typed)
            assert says in said.replace("`", ""), typed
            assert not re.search(r"(?<![\w-])/(?!x-)[a-z]+ ", said), said


async def test_load_tests_and_traces_need_the_role_that_changes_need(at_desk: Desk) -> None:
    for command in ("loadtest start", "trace start", "loadtest baseline record b"):
        said = await at_desk.answer(f"/{command}", user="viewer")
        assert f"You may not start {command.split()[0]} on toy" in said
    await at_desk.say("@gpu-oncall loadtest start", user="viewer")
    await asyncio.sleep(0.3)
    assert at_desk.bot.runs.list() == []
    assert await at_desk.answer("/loadtest plan", user="viewer")
