"""A serving host for tests: two tiers as real supervised processes, a real HAProxy, and clients that count their losses."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.traffic.account import Account
from demo.traffic.clients import Clients
from demo.traffic.schedule import Profile
from gpu_actions.action import ActionSpec, PlanRequest
from gpu_actions.config.host import HostConfig, TierName
from gpu_actions.fallback.action import SPEC as FALLBACK
from gpu_actions.host import Host, build_host
from gpu_actions.models import Verdict
from gpu_actions.plan import Plan
from gpu_actions.serving.engines.base import RefusedError
from gpu_actions.serving.interfaces import EngineError
from gpu_actions.serving.registry import build_engine
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from gpu_actions.walk import RunStep, WalkEnd, WalkReport, walk
from tests.ports import free_ports

TINY = Path(__file__).with_name("tiny_engine.py")


@dataclass
class Traffic:
    """Client-side results. `lost`: accepted and not answered in full; `refused`: asked at once to retry (429, 503)."""

    ok: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    last_ok: float = 0.0


def statuses(end: WalkEnd) -> list[tuple[str, str]]:
    return [(step.outcome.step_id, step.outcome.status) for step in end.steps]


def data_of(end: WalkEnd, step_id: str) -> dict[str, Any]:
    """Return the data of a step's last attempt."""
    return [step.outcome.data for step in end.steps if step.outcome.step_id == step_id][-1]


def summary_of(end: WalkEnd, step_id: str) -> str:
    return [step.outcome.summary for step in end.steps if step.outcome.step_id == step_id][-1]


class At(WalkReport):
    """Calls a function once, when a step has begun or a moment later."""

    def __init__(self, step_id: str, action: Callable[[], object], *, after_s: float = 0) -> None:
        def began(move: RunStep) -> None:
            if move.step.id == step_id and after_s:
                asyncio.get_running_loop().call_later(after_s, action)
            elif move.step.id == step_id:
                action()

        super().__init__(began=began)


class Site:
    """One host, and what tests do to it."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.runs = 0

    @property
    def through(self) -> Any:
        engine = self.host.tp.config.engine
        return build_engine(engine.model_copy(update={"url": self.host.router.url}))

    async def up(self) -> None:
        """Start tp and the router, and wait for a token through it."""
        await self.host.router.ensure_running()
        await self.host.tp.unit.start()
        await self.host.tp.engine.wait_ready(timeout_s=180)
        await self.through.complete("hello", max_tokens=2, timeout_s=10)

    async def down(self) -> None:
        for tier in self.host.every_tier:
            await tier.unit.stop(grace_s=0)
        if isinstance(self.host.router, ManagedRouter):
            await self.host.router.unit.stop(grace_s=0)

    async def rank_pids(self) -> list[int]:
        state = await self.host.tp.unit.state()
        return [pid for pid in state.pids if pid != state.main_pid]

    async def freeze_rank(self) -> None:
        os.kill((await self.rank_pids())[0], signal.SIGSTOP)

    async def plan(
        self,
        spec: ActionSpec = FALLBACK,
        *,
        verdict: Verdict | None = None,
        starts: bool = False,
        **arguments: Any,
    ) -> Plan:
        """Make a plan; with `starts` as for a run that will start."""
        make = spec.plan_start if starts and spec.plan_start is not None else spec.plan
        return await make(
            PlanRequest(
                host=self.host,
                arguments=spec.arguments(**arguments),
                verdict=verdict,
                baselines_dir=self.folder / "baselines",
            )
        )

    async def run(self, plan: Plan, **options: Any) -> WalkEnd:
        self.runs += 1
        run_id = options.pop("run_id", f"{plan.action[:2]}-t{self.runs}")
        return await walk(plan, self.host, run_id=run_id, workdir=self.folder / "runs" / run_id, **options)

    async def weights(self) -> dict[str, tuple[int, str]]:
        """Return the weight and administrative state of each tier's server."""
        return {
            name: (state.weight, state.admin_state)
            for name, tier in self.host.tiers.items()
            for state in [await self.host.router.server(tier.config.server)]
        }

    async def check_serving(self, name: TierName) -> None:
        """Check the whole defined state in which one tier serves: weights, units, freezes, limits, scope, and a token."""
        tier = self.host.tiers[name]
        other = self.host.fallback if name == "tp" else self.host.tp
        weights = await self.weights()
        assert weights[name] == (100, "ready")
        assert weights[other.name][0] == 0
        state, idle = await tier.unit.state(), await other.unit.state()
        assert (state.active, state.frozen) == (True, False)
        assert (idle.active, idle.pids) == (False, ())
        assert idle.frozen == (other.name == "tp")
        for rung in self.host.rungs.values():
            server = await self.host.router.server(rung.config.server)
            if rung is not tier:
                left = (rung.key, server.weight, (await rung.unit.state()).pids, await rung.unit.scope())
                assert left == (rung.key, 0, (), {})
        limited = self.host.router.limited()  # type: ignore[attr-defined]
        assert limited == ({tier.config.server} if name == "fallback" else set())
        if name == "tp":
            assert await self.host.fallback.unit.scope() == {}
        await self.through.complete("after", max_tokens=2, timeout_s=10)

    @asynccontextmanager
    async def traffic(
        self, *, clients: int = 3, tokens: int = 8, timeout_s: float = 20
    ) -> AsyncIterator[Traffic]:
        """Run clients that send one request after the other through the router until the block ends; the last ones finish."""
        seen, going = Traffic(), True
        engine = self.through

        async def client() -> None:
            while going:
                try:
                    await engine.complete("traffic", max_tokens=tokens, timeout_s=timeout_s)
                except RefusedError as error:
                    if error.status in (429, 503):
                        seen.refused += 1
                    else:
                        seen.lost.append(str(error))
                    await asyncio.sleep(0.05)
                except EngineError as error:
                    seen.lost.append(str(error))
                    await asyncio.sleep(0.05)
                else:
                    seen.ok += 1
                    seen.last_ok = time.monotonic()

        tasks = [asyncio.create_task(client()) for _ in range(clients)]
        try:
            yield seen
        finally:
            going = False
            await asyncio.gather(*tasks)

    @asynccontextmanager
    async def real_traffic(self, profile: Profile) -> AsyncIterator[Account]:
        """Run open-loop clients through the router until the block ends; the last ones finish."""
        async with Clients(self.host.router.url, profile, model="m").running() as account:
            yield account


def host_config(folder: Path, **changes: Any) -> HostConfig:
    """Return a host on free ports: tp with two ranks of the tiny engine, fallback with one. `tp=` and `fb=` are more flags;
    `ladder=` has by name of a rung the settings that differ, `flags` among them;
    `fallback=`, `restore=` and `router=` overlay the policies, `ready_timeout_s=` is both engines'."""
    ladder: dict[str, dict[str, Any]] = changes.get("ladder", {})
    tp_port, fallback_port, router_port, *rung_ports = free_ports(3 + len(ladder))

    def tier(name: str, port: int, ranks: int, flags: list[str]) -> dict[str, Any]:
        argv = [sys.executable, str(TINY), "--port", str(port), "--ranks", str(ranks), "--name", name]
        for kind in ("slow", "error", "mute", "wrong", "prefill", "wake"):
            argv += [f"--{kind}-file", str(folder / f"{kind}_{name}")]
        other = changes.get(f"{name}_engine")
        if other is not None:
            argv = [*other["argv"], "--port", str(port)]
        return {
            "engine": {
                "kind": "vllm" if other is None else other["kind"],
                "url": f"http://127.0.0.1:{port}",
                "model": "m",
                "ready_timeout_s": changes.get("ready_timeout_s", 30),
                "request_timeout_s": 5,
                "warmup_requests": 2,
            },
            "unit": {
                "driver": "process",
                "argv": [*argv, *flags],
                "stop_grace_s": 5,
                **changes.get("unit", {}),
            },
            "server": name,
            "ranks": ranks,
            "weight": 100,
            **changes.get(f"{name}_tier", {}),
        }

    def rung(name: str, port: int, *, flags: list[str] | None = None, **given: Any) -> dict[str, Any]:
        made = tier(name, port, 1, flags or [])
        return {**made, "name": name, **given, "engine": {**made["engine"], **given.get("engine", {})}}

    (folder / "kernel.log").touch()
    return HostConfig.model_validate(
        {
            "name": "test",
            "gpus": None
            if any(one.get("gpus") for one in (changes.get("fallback_tier", {}), *ladder.values()))
            else 0,
            "ras_address": None,
            "kernel_log": str(folder / "kernel.log"),
            "tiers": {
                "tp": tier("tp", tp_port, 2, changes.get("tp", [])),
                "fallback": tier("fallback", fallback_port, 1, changes.get("fb", [])),
                "ladder": [
                    rung(name, port, **given)
                    for (name, given), port in zip(ladder.items(), rung_ports, strict=True)
                ],
            },
            "router": {"url": f"http://127.0.0.1:{router_port}", **changes.get("router", {})},
            "fallback": {
                "capture_budget_s": 2,
                "drain_timeout_s": 10,
                "drain_stall_s": 1,
                "min_free_disk_gib": 0,
                "validate_load": {"duration_s": 2, "target_qps": 10},
                **changes.get("fallback", {}),
            },
            "restore": {
                "hold_s": 1.5,
                "min_requests_per_stage": 2,
                "keep_fallback_warm_s": 0.5,
                "inconclusive_wait_s": 5,
                "deep_triage": False,
                "load": {"duration_s": 2, "target_qps": 10},
                **changes.get("restore", {}),
            },
            "trace": {"in_plans": False, **changes.get("trace", {})},
        }
    )


def make_site(folder: Path, **changes: Any) -> Site:
    return Site(build_host(host_config(folder, **changes), state_dir=folder / "state"), folder)
