"""Two bots over one PostgreSQL, as processes of the product: the second takes over when the first is killed."""

from pathlib import Path

import psycopg
import pytest

from demo.workspace import Workspace, WorkspaceClient
from tests.scenarios.test_fleet import Fleet, admin, until, workspace
from tests.scenarios.test_procfile import hears

__all__ = ["admin", "workspace"]


@pytest.mark.heavy
@pytest.mark.timeout(240)
async def test_the_second_bot_takes_over_from_a_killed_one_and_nothing_is_posted_twice(
    tmp_path: Path, admin: str, workspace: Workspace
) -> None:
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bots")
    url = admin.replace("/postgres?", "/bots?").replace("postgresql://", "postgresql+psycopg://")
    fleet = Fleet(tmp_path, admin, workspace, database_url=url)
    try:
        await fleet.start("bot", "a", "b")
        fleet.spawn("bot2")
        await until(lambda: "this one stands by" in fleet.log("bot2"))
        async with WorkspaceClient(workspace.url) as people:
            assert (await people.say("oncall", "incidents", "/forensics a bug_report=true")).ok
            await until(lambda: fleet.began("a") == 1)
            assert " is up" not in fleet.log("bot2")

            # the first is killed in the middle of a run; the host goes on, and the second reads what it did
            fleet.kill("bot")
            await until(lambda: "the bot is up" in fleet.log("bot2"))
            (fleet.folder / "a" / "go").touch()
            await hears(people, "Forensics on a: done")
            assert (await people.say("oncall", "incidents", "/gpu hosts")).ok
            await hears(people, "2 hosts, every worker is alive")
            assert len(fleet.runs("a")) == 1

            # the first comes back: now it is the one that stands by
            fleet.spawn("bot")
            await until(lambda: "this one stands by" in fleet.log("bot"))
            cards = [one for one in await people.read("incidents") if "Forensics on a" in one.text]
            assert len(cards) == 1
            assert [fleet.end(name) for name in ("bot", "bot2", "a", "b")] == [0, 0, 0, 0]
    finally:
        for name in tuple(fleet.running):
            fleet.kill(name)
