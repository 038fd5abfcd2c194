"""A host's target is cached while its main process lives, and no longer: real supervised processes."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.watch.target_cache import TargetCache
from gpu_actions.host import Host, build_host
from gpu_actions.serving.units.process import ProcessUnit
from tests.bot.toys import toy_settings


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    config = toy_settings(tmp_path).hosts[0]
    unit = ProcessUnit(argv=("sleep", "300"), stop_grace_s=1)
    tiers = {name: tier.model_copy(update={"unit": unit}) for name, tier in config.tiers.items()}
    made = build_host(config.model_copy(update={"tiers": tiers}), state_dir=tmp_path / "hosts" / "toy")
    try:
        yield made
    finally:
        for tier in made.tiers.values():
            await tier.unit.stop(grace_s=1)


async def test_a_target_is_cached_while_its_main_process_lives_and_looked_up_again_for_a_new_process(
    host: Host,
) -> None:
    targets = TargetCache()
    await host.tp.unit.start()
    first = await targets.of(host)
    assert (first.tier, first.unit_active) == ("tp", True)
    assert await targets.of(host) is first
    os.kill(first.pids[0], signal.SIGKILL)
    async with asyncio.timeout(10):  # its supervisor starts it again
        while (again := await targets.of(host)).pids in ((), first.pids):
            await asyncio.sleep(0.05)
    assert again.unit_active


async def test_a_stopped_unit_is_never_cached_and_a_changed_host_is_looked_up_again(host: Host) -> None:
    targets = TargetCache()
    down = await targets.of(host)
    assert (down.pids, down.unit_active) == ((), False)
    await host.fallback.unit.start()
    serves = await targets.of(host)
    assert serves.tier == "fallback"
    await host.tp.unit.start()
    assert (await targets.of(host)).tier == "fallback", "cached"
    targets.forget(host.name)
    assert (await targets.of(host)).tier == "tp"
