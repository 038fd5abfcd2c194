"""A person's message with the reaction of choice belongs to the incident's record, once, with its author."""

import asyncio
from pathlib import Path

from tests.bot.desk import Desk, desk


async def recorded(it: Desk, incident_id: str, count: int) -> list[tuple[str, str]]:
    """Wait for so many recorded messages and return their authors and texts."""
    async with asyncio.timeout(10):
        while True:
            entries = it.bot.services.incidents.timeline(incident_id)
            found = [(one.actor, one.text) for one in entries if one.kind == "message"]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.02)


async def opened(it: Desk) -> str:
    """Wait until the incident is in the record, which follows its first message, and return its id."""
    async with asyncio.timeout(10):
        while not (found := it.bot.services.incidents.newest()):
            await asyncio.sleep(0.02)
    return found[0].id


async def test_a_chosen_message_is_recorded_once_with_its_author_and_without_secrets(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        await it.say("/incident open it is slow")
        root = await it.hears("INCIDENT")
        incident_id = await opened(it)
        said = await it.say("rack 7 lost its fan; password=hunter2-and-more", user="lead", thread=root.ts)
        other = await it.say("lunch?", user="lead", thread=root.ts)
        for user, ts, name in (
            ("oncall", other.ts, "eyes"), ("oncall", said.ts, "memo"), ("viewer", said.ts, "memo"),
        ):  # fmt: skip
            assert (await it.people.react(user, "incidents", str(ts), name)).ok
        await it.hears("Recorded in")
        above = await it.say("the fan was replaced", user="oncall")
        await it.people.react("lead", "incidents", str(above.ts), "memo")
        first, second = await recorded(it, incident_id, 2)
        assert first[1].startswith("rack 7 lost its fan") and "hunter2" not in first[1]
        assert second[1] == "the fan was replaced" and first[0] != second[0]
        assert "rack 7 lost its fan" in await it.answer("/incident timeline")
        entry = next(one for one in it.bot.services.incidents.timeline(incident_id) if one.kind == "message")
        assert entry.data["ts"] == said.ts and entry.data["chosen_by"] != entry.actor
        assert len(await recorded(it, incident_id, 2)) == 2


async def test_what_cannot_be_recorded_is_answered(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        said = await it.say("nothing is wrong")
        await it.people.react("lead", "incidents", str(said.ts), "memo")
        await it.hears("No incident is open in this channel")
        await it.say("/incident open it is slow")
        root = await it.hears("INCIDENT")
        await opened(it)
        await it.people.react("lead", "incidents", root.ts, "memo")
        await it.hears("my own messages are in the record already")


async def test_without_the_setting_no_reaction_records(tmp_path: Path) -> None:
    async with desk(tmp_path, slack_changes={"record_reaction": ""}) as it:
        await it.say("/incident open it is slow")
        await opened(it)
        said = await it.say("rack 7 lost its fan")
        await it.people.react("lead", "incidents", str(said.ts), "memo")
        assert "rack 7" not in await it.answer("/incident timeline")
