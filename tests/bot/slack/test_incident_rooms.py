"""An incident with a channel of its own: made, filled with people, pinned, bookmarked, and the thread where Slack refuses."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.slack import incident_rooms
from bot.store.records import RunStatus
from demo.workspace.records import Channel
from demo.workspace.webapi import ApiError
from tests.bot.desk import Desk, desk
from tests.bot.slack.test_live_messages import Slack

SETTINGS = {"incident_place": "channel"}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incident_rooms, "PASS_S", 0.1)
    monkeypatch.setattr(incident_rooms, "RETRY_S", 0.3)


def rooms_of(it: Desk) -> list[Channel]:
    """Return the channels that the bot has made."""
    return [c for c in it.workspace.state.channels.values() if c.name.startswith("inc-")]


async def until(check: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_an_incident_gets_a_channel_with_topic_people_pinned_status_and_the_report_as_a_bookmark(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path, scripts={"fallback": "hold:a"}, slack_changes=SETTINGS) as it:
        await it.say("/incident open toy the links are down")
        await it.hears("goes on in")
        (room,) = rooms_of(it)
        names = {it.workspace.state.people[m].name for m in room.members if m in it.workspace.state.people}
        assert names == {"oncall", "lead"}, "the people of the roles, and nobody else"
        assert room.topic.startswith("the links are down on toy: open")
        (pinned,) = [m for m in it.workspace.state.messages[room.id].values() if m.pinned]
        await it.say("/fallback start")
        run = await it.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
        assert (run.place.channel, run.place.thread_ts) == (room.id, None)
        await it.hears(f"<#{room.id}>")  # the person in #incidents is told where to follow it
        await it.hears("Fallback on toy: running", channel=room.name)
        it.release()
        await it.run("fallback")
        await it.say("/incident close", channel=room.name)
        async with asyncio.timeout(10):
            while not any(view.get("submit") for view in await it.people.modals("oncall")):
                await asyncio.sleep(0.02)
        assert await it.people.submit("oncall", {"cause": "a switch"}) == {}
        await it.hears("Closed by @oncall", channel=room.name)
        await until(lambda: room.bookmarks)
        assert room.bookmarks[0]["title"] == "Report"
        assert room.bookmarks[0]["link"].startswith(it.workspace.url)
        await until(lambda: "closed" in room.topic)
        assert "closed" in it.workspace.state.messages[room.id][pinned.ts].text


async def test_a_refused_channel_is_told_and_the_thread_is_used(tmp_path: Path) -> None:
    slack = Slack()
    slack.refuse["conversations.create"] = ApiError("restricted_action")
    async with desk(
        tmp_path, scripts={"fallback": "hold:a"}, middlewares=[slack], slack_changes=SETTINGS
    ) as it:
        await it.say("/incident open toy the links are down")
        root = await it.hears("INCIDENT: the links are down")
        told = await it.hears("conversations.create (restricted_action)")
        assert told.thread_ts == root.ts
        await it.say("/fallback start")
        run = await it.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
        assert run.place.thread_ts == root.ts
        it.release()
        await it.run("fallback")
        assert slack.calls["conversations.create"] == 1, "it is not asked for again and again"


async def test_each_part_that_slack_refuses_is_told_and_a_broken_try_leaves_one_channel(
    tmp_path: Path,
) -> None:
    slack = Slack()
    slack.refuse |= {
        "conversations.setTopic": ApiError("missing_scope", fields={"needed": "channels:manage"}),
        "conversations.invite": ApiError("ura_max_channels"),
        "pins.add": ApiError("internal_error", status=500),
    }
    async with desk(tmp_path, middlewares=[slack], slack_changes=SETTINGS) as it:
        await it.say("/incident open toy the links are down")
        await until(lambda: slack.calls["pins.add"] >= 2)
        slack.refuse["pins.add"] = ApiError("no_permission")
        told = await it.hears("goes on in")
        for problem in (
            "setTopic (missing_scope, needs channels:manage)",
            "invite (ura_max",
            "pins.add (no_perm",
        ):
            assert problem in told.text
        (room,) = rooms_of(it)
        assert slack.calls["conversations.create"] >= 2, "found again by its name"
        said = [m for m in it.workspace.state.messages[room.id].values() if "INCIDENT" in m.text]
        assert len(said) == 1
