"""The drill tier: a host of its own beside the production one, with its own ports, router and folder."""

import asyncio
import contextlib
import random
import socket
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

from gpu_actions.config.host import HostConfig
from gpu_actions.host import Host, build_host
from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import EngineError, RouterError, UnitError
from gpu_actions.serving.registry import build_engine

TEMPLATE = Path(__file__).with_name("host.toml")
PORT_RANGE = range(20_000, 26_000)
"""Below the kernel's range for outgoing connections, which could take a port between two steps."""
LOAD_STREAMS = 2
STOP_GRACE_S = 3.0
LONGEST_NAME = 63


class DrillPorts(Frozen):
    """The loopback ports of one drill."""

    router: int
    tp: int
    fallback: int


def free_ports() -> DrillPorts:
    """Return three ports that nothing listens on."""
    found: list[int] = []
    for port in random.sample(PORT_RANGE, len(PORT_RANGE)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == len(DrillPorts.model_fields):
            break
    return DrillPorts(router=found[0], tp=found[1], fallback=found[2])


def drill_host(production: Host, ports: DrillPorts) -> Host:
    """Build the drill's host. It shares nothing with the production host but the machine. Starts nothing."""
    name = f"{production.name[: LONGEST_NAME - 6]}-drill"
    text = TEMPLATE.read_text(encoding="utf-8").format(
        name=name, beside=production.name, **ports.model_dump()
    )
    config = HostConfig.model_validate(tomllib.loads(text))
    return build_host(
        config, state_dir=production.state_dir / "drill", thresholds=production.thresholds, baselines_dir=None
    )


async def serve_with_tp(host: Host) -> None:
    """Bring the drill tier to the state in which a drill begins: tp serves, the fallback is stopped.

    Also after a drill that was killed. Raises UnitError, EngineError or RouterError.
    """
    await host.router.ensure_running()
    await host.fallback.unit.stop(grace_s=STOP_GRACE_S)
    await host.tp.unit.stop(grace_s=STOP_GRACE_S)
    await host.tp.unit.unfreeze()
    await host.tp.unit.start()

    async def alive() -> bool:
        return (await host.tp.unit.state()).active

    await host.tp.engine.wait_ready(timeout_s=host.tp.config.engine.ready_timeout_s, still_starting=alive)
    await host.router.undrain(host.tp.config.server)
    await host.router.shift({host.tp.config.server: host.tp.config.weight, host.fallback.config.server: 0})


async def clear(host: Host) -> list[str]:
    """Stop everything of the drill tier. Return what could not be stopped."""
    problems = []
    for tier in host.tiers.values():
        try:
            await tier.unit.stop(grace_s=STOP_GRACE_S)
        except UnitError as error:
            problems.append(str(error))
    stop = getattr(host.router, "stop", None)  # only a router that we run ourselves can be stopped
    if stop is not None:
        try:
            await stop()
        except (UnitError, RouterError) as error:
            problems.append(str(error))
    return problems


@contextlib.asynccontextmanager
async def clients(host: Host) -> AsyncIterator[None]:
    """Send a few requests through the drill's router during the block: a fault without requests is not seen."""
    engine = build_engine(host.tp.config.engine.model_copy(update={"url": host.router.url}))

    async def stream(number: int) -> None:
        while True:
            try:
                await engine.complete(f"drill {number}", max_tokens=12, timeout_s=15)
            except EngineError:
                await asyncio.sleep(0.3)

    tasks = [asyncio.create_task(stream(number)) for number in range(LOAD_STREAMS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
