"""Periodic jobs: a failing job runs again and delays no other, a slow one never runs twice at a time."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from bot.watch.scheduler import Schedule


@pytest.fixture
async def schedule() -> AsyncIterator[Schedule]:
    made = Schedule()
    yield made
    made.close()


async def test_a_failing_job_is_counted_and_runs_again_beside_the_others(schedule: Schedule) -> None:
    ran = {"breaks": 0, "works": 0}

    async def breaks() -> None:
        ran["breaks"] += 1
        raise ZeroDivisionError

    async def works() -> None:
        ran["works"] += 1

    schedule.every(0.05, "breaks", breaks, first_after_s=0)
    schedule.every(0.05, "works", works, first_after_s=0)
    schedule.start()
    async with asyncio.timeout(10):
        while min(ran.values()) < 3:
            await asyncio.sleep(0.01)
    assert schedule.failures["breaks"] >= 3
    assert schedule.failures["works"] == 0
    assert "works" in schedule.last_end_s
    assert "breaks" not in schedule.last_end_s
    registry = CollectorRegistry()
    registry.register(schedule)
    assert (registry.get_sample_value("gpu_oncall_job_failures_total", {"job": "breaks"}) or 0) >= 3
    assert registry.get_sample_value("gpu_oncall_job_failures_total", {"job": "works"}) == 0
    assert registry.get_sample_value("gpu_oncall_job_last_end_seconds", {"job": "works"}) is not None


async def test_a_slow_job_never_runs_twice_at_a_time_and_missed_runs_are_merged(schedule: Schedule) -> None:
    at_once, most, ends = 0, 0, 0

    async def slow() -> None:
        nonlocal at_once, most, ends
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.3)
        at_once -= 1
        ends += 1

    schedule.every(0.02, "slow", slow, first_after_s=0)
    schedule.start()
    await asyncio.sleep(1.1)
    assert most == 1
    assert 2 <= ends <= 4


async def test_a_period_of_zero_means_never(schedule: Schedule) -> None:
    schedule.every(0, "off", lambda: asyncio.sleep(0))
    assert schedule.names == ()
