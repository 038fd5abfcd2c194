"""Run the whole runbook on a real host: a real hang under traffic, fallback, repair, restore. Record losses and step times.

Walked without Slack (`gpu_actions.walk`), with the same plans and steps as from Slack. On one GPU the tier `tp` is two ranks on
the CPU, so that one of them can hang; the fallback has the GPU. Before it, the bare start-up of the fallback is measured.
"""

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.bare_start import bare_start_s
from gpu_actions.action import ActionSpec, PlanRequest
from gpu_actions.config.host import HostConfig
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.fallback.action import SPEC as FALLBACK
from gpu_actions.host import Host, build_host
from gpu_actions.models import Verdict
from gpu_actions.restore.action import SPEC as RESTORE
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.target import target_of_host
from gpu_actions.triage.judge import judge
from gpu_actions.walk import WalkEnd, walk

ROUTER, TP, FB = 18000, 18111, 18112
BARE_STARTS = 4


@dataclass
class Seen:
    """Client-side results."""

    served: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    stamps: list[tuple[float, str]] = field(default_factory=list)

    def refused_s(self) -> float:
        """Return the seconds between the first and the last refusal; 0 without one."""
        times = [at for at, what in self.stamps if what == "refused"]
        return times[-1] - times[0] if times else 0.0


@contextlib.asynccontextmanager
async def clients(url: str, *, qps: float = 4) -> AsyncIterator[Seen]:
    """Send requests at a fixed rate until the block ends. Count each as served, refused (429, 503) or lost."""
    seen = Seen()

    async def one(session: aiohttp.ClientSession) -> None:
        body = {"model": "m", "prompt": "visitor", "max_tokens": 8, "ignore_eos": True}
        what = "served"
        try:
            async with session.post(f"{url}/v1/completions", json=body) as response:
                text = await response.text()
                if response.status in (429, 503):
                    what = "refused"
                elif response.status != 200:
                    what = f"lost: {response.status} {text[:80]}"
        except (aiohttp.ClientError, TimeoutError) as error:
            what = f"lost: {type(error).__name__}"
        seen.stamps.append((time.monotonic(), what))
        seen.served += what == "served"
        seen.refused += what == "refused"
        if what.startswith("lost"):
            seen.lost.append(what)

    async def send(session: aiohttp.ClientSession) -> None:
        async with asyncio.TaskGroup() as visitors:
            while True:
                visitors.create_task(one(session))
                await asyncio.sleep(1 / qps)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=90)) as session:
        task = asyncio.create_task(send(session))
        try:
            yield seen
        finally:
            await asyncio.sleep(1)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, BaseExceptionGroup):
                await task


def host_config(folder: Path, *, gpus: int, environment: dict[str, str]) -> HostConfig:
    """Return a host with the tier `tp` on all GPUs (with fewer than two: on the CPU) and the tier `fallback` on one."""
    tp_gpus = gpus if gpus > 1 else 0

    def tier(name: str, port: int, count: int, ranks: int, *flags: str) -> dict[str, Any]:
        argv = [
            "{python}", "-m", "demo.engine", "--port", str(port), "--model-name", "m",
            "--tensor-parallel-size", str(ranks), "--shutdown-timeout", "15",
            "--device", "cuda" if count else "cpu", *flags,
        ]  # fmt: skip
        return {
            "server": name,
            "gpus": count,
            "ranks": ranks,
            "memory_gib_per_gpu": 4 if count else None,
            "engine": {
                "kind": "reference",
                "url": f"http://127.0.0.1:{port}",
                "model": "m",
                "ready_timeout_s": 120,
            },
            "unit": {"driver": "process", "argv": argv, "env": environment, "stop_grace_s": 20},
        }

    return HostConfig.model_validate(
        {
            "name": "gpu-host",
            "gpus": gpus,
            "router": {"url": f"http://127.0.0.1:{ROUTER}"},
            "tiers": {
                "tp": tier("tp", TP, tp_gpus, max(2, gpus)),
                "fallback": tier("fallback", FB, min(1, gpus), 1, "--max-num-seqs", "16"),
            },
            "restore": {
                "hold_s": 5,
                "keep_fallback_warm_s": 3,
                "min_requests_per_stage": 2,
                "load": {"duration_s": 10},
            },
        }
    )


async def triage(host: Host) -> Verdict:
    """Return a verdict on the host's present state."""
    thresholds = TriageThresholds()
    return judge(await collect(await target_of_host(host), thresholds), thresholds)


async def act(
    spec: ActionSpec,
    host: Host,
    folder: Path,
    verdict: Verdict | None,
    *,
    verdict_age_s: float = math.inf,
    **options: Any,
) -> dict[str, Any]:
    """Plan and walk one action. Return its times and outcome."""
    began = time.monotonic()
    plan = await spec.plan(
        PlanRequest(
            host=host,
            arguments=spec.arguments(**options),
            verdict=verdict,
            verdict_age_s=verdict_age_s,
            baselines_dir=folder / "baselines",
            requester="validation",
        )
    )
    planned_s = time.monotonic() - began
    end = await walk(plan, host, run_id=f"{spec.prefix}-gpu", workdir=folder / spec.name)
    return {
        "title": plan.title,
        "losses": plan.losses,
        "planned_s": round(planned_s, 2),
        "total_s": round(time.monotonic() - began, 2),
        "ended": end.ended.status,
        "first_token_through_router_s": _first_token_s(end, planned_s),
        "steps": steps_of(end),
    }


def _first_token_s(end: WalkEnd, planned_s: float) -> float | None:
    """Return the seconds from the request to the first token through the router, the planning included."""
    after_s = [s.outcome.data.get("first_token_through_router_s") for s in end.steps]
    return next((round(planned_s + float(s), 2) for s in after_s if s is not None), None)


def steps_of(end: WalkEnd) -> list[str]:
    return [
        f"{s.outcome.step_id:<14} {s.outcome.status:<8} {s.seconds:7.2f} s  {s.outcome.summary.splitlines()[0][:180]}"
        for s in end.steps
    ]


async def whole_runbook(folder: Path, *, gpus: int, environment: dict[str, str]) -> dict[str, Any]:
    """Start, hang, diagnose, fall back, repair, restore. Raises whatever fails, after everything was stopped."""
    host = build_host(host_config(folder, gpus=gpus, environment=environment), state_dir=folder / "state")
    record: dict[str, Any] = {}
    try:
        await host.router.ensure_running()
        await host.tp.unit.start()
        await host.tp.engine.wait_ready(timeout_s=120)
        await host.router.shift({"tp": host.tp.config.weight, "fallback": 0})
        record["bare_start_s"] = [round(await bare_start_s(host), 2) for _ in range(BARE_STARTS)]
        async with clients(host.router.url) as seen:
            await asyncio.sleep(3)
            record["before"] = (await triage(host)).model_dump(
                mode="json", include={"verdict", "cause", "summary"}
            )
            await _freeze(host, record)
            injected = time.monotonic()
            while True:
                judged_at = time.monotonic()
                verdict = await triage(host)
                if verdict.verdict == "fall_back" or time.monotonic() - injected > 45:
                    break
            record["found"] = verdict.model_dump(
                mode="json", include={"verdict", "cause", "summary", "fallback_gpu"}
            )
            record["injection_to_verdict_s"] = round(time.monotonic() - injected, 2)
            record["fallback"] = await act(
                FALLBACK, host, folder, verdict, verdict_age_s=time.monotonic() - judged_at
            )
            record["first_served_after_injection_s"] = _first_served(seen, injected)
            record["lost_until_restore"] = len(seen.lost)
            record["restore"] = await act(
                RESTORE,
                host,
                folder,
                await triage(host),
                cause="validation: the rank was frozen by us",
                accept_no_baseline=True,
            )
        record["clients"] = {
            "served": seen.served, "refused": seen.refused, "refused_for_s": round(seen.refused_s(), 2),
            "lost": len(seen.lost), "kinds": sorted(set(seen.lost)),
        }  # fmt: skip
    finally:
        for tier in (host.tp, host.fallback):
            await tier.unit.stop(grace_s=3)
        if isinstance(host.router, ManagedRouter):
            await host.router.stop()
    return record


async def _freeze(host: Host, record: dict[str, Any]) -> None:
    """Send SIGSTOP to rank 1."""
    state = await host.tp.unit.state()
    ranks = [p for p in state.pids if b"--rank\0001" in Path(f"/proc/{p}/cmdline").read_bytes()]
    record["injection"] = f"SIGSTOP to rank 1 of {host.tp.config.ranks}"
    os.kill(ranks[0], signal.SIGSTOP)


def _first_served(seen: Seen, since: float) -> float | None:
    """Return the seconds from the injection to the first answer after the longest silence that followed it."""
    served = [at for at, what in seen.stamps if what == "served" and at > since]
    gaps = [(later - earlier, later) for earlier, later in zip([since, *served], served, strict=False)]
    return round(max(gaps)[1] - since, 2) if gaps else None
