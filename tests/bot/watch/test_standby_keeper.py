"""The standby is looked after by runs that anyone can see, and never during an incident. What a standby needs is read by
`gpu_actions.standby` and tested there."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bot.store.records import Place, RunStatus
from bot.watch import standby_keeper
from bot.watch.alerts import MONITOR
from bot.watch.standby_keeper import StandbyKeeper
from gpu_actions.tier.preflight import Facts, TierFacts
from tests.bot.desk import Desk, desk

ASLEEP = Facts(tp=TierFacts(), fallback=TierFacts(asleep_on="GPU-1"), free_disk_gib=1)


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Say what the standby needs."""
    said = {"why": "its process does not run"}

    async def facts(_host: Any) -> Facts:
        return ASLEEP

    monkeypatch.setattr(standby_keeper, "gather_facts", facts)
    monkeypatch.setattr(standby_keeper, "needs_care", lambda *_args, **_named: said["why"])
    yield said


def keeper_of(it: Desk, **monitors: Any) -> StandbyKeeper:
    settings = it.bot.settings.monitors.model_copy(update={"standby_test_hour": None, **monitors})
    bot = it.bot
    return StandbyKeeper(
        settings, bot.runs, bot.store, bot.services.incidents, bot.alerts, bot.runs.hosts.get
    )


async def test_a_standby_that_died_is_made_anew_once(tmp_path: Path, needs: dict[str, str]) -> None:
    async with desk(tmp_path) as it:
        keeper = keeper_of(it)
        await keeper.check("toy")
        await keeper.check("toy")
        (run,) = it.bot.runs.list(action="standby")
        assert run.requester.id == MONITOR.id
        await it.bot.runs.wait(run.id, until=lambda run: run.status.final)
        needs["why"] = ""
        await keeper.check("toy")
        assert len(it.bot.runs.list(action="standby")) == 1


async def test_a_standby_that_cannot_be_made_is_not_tried_every_minute(
    tmp_path: Path, needs: dict[str, str]
) -> None:
    async with desk(tmp_path, scripts={"standby": "fail:a"}) as it:
        keeper = keeper_of(it)
        await keeper.check("toy")
        (run,) = it.bot.runs.list(action="standby")
        ended = await it.bot.runs.wait(run.id, until=lambda run: run.status.final)
        assert ended.status is RunStatus.FAILED
        needs["why"] = "it is awake"
        await keeper.check("toy")
        assert len(it.bot.runs.list(action="standby")) == 1


async def test_an_incident_comes_first(tmp_path: Path, needs: dict[str, str]) -> None:
    async with desk(tmp_path) as it:
        it.bot.services.incidents.open(
            host="toy", title="a fault", place=Place(channel="C1"), by=MONITOR, cause="nccl_hang"
        )
        await keeper_of(it).check("toy")
        assert it.bot.runs.list(action="standby") == []


async def test_a_sleeping_standby_is_tested_once_in_its_hour(tmp_path: Path, needs: dict[str, str]) -> None:
    needs["why"] = ""
    async with desk(tmp_path) as it:
        hour = datetime.fromtimestamp(it.bot.store.clock()).astimezone().hour
        await keeper_of(it, standby_test_hour=(hour + 2) % 24).check("toy")
        assert it.bot.runs.list(action="standby") == []
        await keeper_of(it, standby_test_hour=hour).check("toy")
        (run,) = it.bot.runs.list(action="standby")
        await it.bot.runs.wait(run.id, until=lambda run: run.status.final)
        await keeper_of(it, standby_test_hour=hour).check("toy")
        assert len(it.bot.runs.list(action="standby")) == 1
