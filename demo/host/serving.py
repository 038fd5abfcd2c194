"""The serving host of the demonstration: start what served before, remember what serves, stop it at the end."""

import asyncio
import json
import time
from collections.abc import Iterable
from pathlib import Path

from gpu_actions.config.host import TierName
from gpu_actions.host import Host, Tier
from gpu_actions.serving.interfaces import EngineError, RouterError, UnitError
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from gpu_actions.system.files import write_atomically

REMEMBER_EVERY_S = 1.0
STOP_GRACE_S = 3.0
HUNG_TIER_TIMEOUT_S = 10.0
"""A tier that ran through the end of an earlier demonstration may hang; that is for triage to say."""


class ServingHost:
    """The tiers and the router. `serving.json` holds the names of the tiers that run, for the next start."""

    def __init__(self, host: Host, state_dir: Path) -> None:
        self.host = host
        self._file = state_dir / "serving.json"
        self._is_started = False

    async def start(self, *, fault: str | None, open_runs: Iterable[str]) -> str:
        """Start the router and the tiers that served last. Return what serves, in a few words.

        The first start serves with tp. A frozen tier stays down, and a run that has not ended starts and routes what it
        needs itself. `fault` is the fault that is still active: a tier that hangs because of it is not waited for. Raises
        UnitError, EngineError or RouterError.
        """
        remembered = self._remembered()
        await self.host.router.ensure_running()
        states = {tier.name: await tier.unit.state() for tier in self.host.tiers.values()}
        wanted = [
            tier
            for tier in self.host.tiers.values()
            if states[tier.name].active or (tier.name in (remembered or ()) and not states[tier.name].frozen)
        ]
        if not wanted and not open_runs:
            wanted = [self.host.fallback if states["tp"].frozen else self.host.tp]
        for tier in wanted:
            if states[tier.name].frozen:  # it is still running; the fallback that froze it will stop it
                continue
            await self._start_tier(tier, runs_already=states[tier.name].active, fault=fault)
        if not open_runs:
            await self._route(wanted, first_start=remembered is None)
        said = [
            f"{tier.name} serves" if await self._has_weight(tier) else f"{tier.name} runs" for tier in wanted
        ]
        said += [
            f"{name} is frozen ({state.frozen_reason})" for name, state in states.items() if state.frozen
        ]
        return ", ".join(said) or "no tier is running"

    async def _start_tier(self, tier: Tier, *, runs_already: bool, fault: str | None) -> None:
        began = time.monotonic()

        async def alive() -> bool:
            return (await tier.unit.state()).active

        await tier.unit.start()
        if runs_already and fault is not None and tier.name == "tp":
            return
        timeout_s = HUNG_TIER_TIMEOUT_S if runs_already else tier.config.engine.ready_timeout_s
        try:
            first = await tier.engine.wait_ready(timeout_s=timeout_s, still_starting=alive)
        except EngineError as error:
            if not runs_already:
                raise
            print(f"The tier {tier.name} runs but does not answer ({error}). Ask /triage.", flush=True)
            return
        took_s = time.monotonic() - began
        print(
            f"The tier {tier.name} is up after {took_s:.1f} s (first token in {first.ttft_ms:.0f} ms).",
            flush=True,
        )

    async def _route(self, running: list[Tier], *, first_start: bool) -> None:
        """Send the traffic to a running tier, unless the router's stored weights already do."""
        if not running or (not first_start and any([await self._has_weight(tier) for tier in running])):
            return
        chosen = running[-1]
        weights = {tier.config.server: 0 for tier in self.host.tiers.values()}
        await self.host.router.shift(weights | {chosen.config.server: chosen.config.weight})

    async def _has_weight(self, tier: Tier) -> bool:
        return (await self.host.router.server(tier.config.server)).weight > 0

    def _remembered(self) -> list[TierName] | None:
        """Return the tiers that served last, or None if none ever did."""
        try:
            names = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return []
        return [name for name in self.host.tiers if name in names] if isinstance(names, list) else []

    async def remember(self) -> None:
        """Record which tiers are running. After a failed start the last record stays."""
        if not self._is_started:
            return
        names = [tier.name for tier in self.host.tiers.values() if (await tier.unit.state()).active]
        if names != self._remembered():
            write_atomically(self._file, json.dumps(names))

    async def keep_remembering(self) -> None:
        """Keep the file up to date, so that a demonstration that is killed is remembered too."""
        while True:
            await self.remember()
            await asyncio.sleep(REMEMBER_EVERY_S)

    async def stop(self) -> list[str]:
        """Stop the tiers and the router. Return what could not be stopped."""
        problems = []
        for tier in self.host.every_tier:
            try:
                await tier.unit.stop(grace_s=STOP_GRACE_S)
            except UnitError as error:
                problems.append(str(error))
        if isinstance(self.host.router, ManagedRouter):
            try:
                await self.host.router.stop()
            except (UnitError, RouterError) as error:
                problems.append(str(error))
        return problems

    async def process_ids(self) -> set[int]:
        """Return the processes of the tiers and of the router."""
        units = [tier.unit for tier in self.host.every_tier]
        if isinstance(self.host.router, ManagedRouter):
            units.append(self.host.router.unit)
        return {pid for unit in units for pid in (await unit.state()).pids}
