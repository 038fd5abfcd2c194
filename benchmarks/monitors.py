"""Measure what the monitors cost a healthy host at their default periods, and how soon they report a hang.

Two hosts: 8 GPUs of the fake driver (200 us a call, as on a real H100) with an engine's metrics page, measured in this process
and its children; and the demonstration (a real two-rank tier under light traffic), measured in the bot process and its
children, where a rank is frozen at the end. Goals: the bot under 150 MB and 1 % of a core at rest, its checks little more; hang
to card under 30 s.
"""

import asyncio
import os
import resource
import tempfile
import time
from pathlib import Path

import psutil
from aiohttp import web

from benchmarks.triage_passive import REAL_CALL_US, fake_driver
from bot.settings.watch import MonitorSettings
from bot.store.store import Store
from bot.watch.monitor_kinds import MONITOR_KINDS
from bot.watch.monitor_memory import MonitorMemory
from bot.watch.monitors import Monitors
from bot.watch.scheduler import Schedule
from gpu_actions.config.host import HostConfig
from gpu_actions.host import build_host
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from tests.ports import free_port
from tests.scenarios.incident import Incident, incident

SETTLE_S = 25
WATCH_S = 120
PAGE = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:generation_tokens_total 9\n"


class CountedAlerts:
    """Counts alerts instead of delivering them. On a healthy host there must be none, or the figures mean something else."""

    def __init__(self) -> None:
        self.count = 0

    def report(self, alert: object) -> None:
        self.count += 1
        print("alert:", alert)

    def say(self, host: str, message: object) -> None:
        self.count += 1


def cpu_s(process: psutil.Process) -> tuple[float, float]:
    """Return the CPU seconds of a process, and of its children that have ended."""
    times = process.cpu_times()
    return times.user + times.system, times.children_user + times.children_system


async def demonstration_host(it: Incident) -> None:
    bot = psutil.Process(int((it.layout.state_dir / "bot.pid").read_text()))
    await asyncio.sleep(SETTLE_S)
    own, children = cpu_s(bot)
    await asyncio.sleep(WATCH_S)
    own_after, children_after = cpu_s(bot)
    print(
        f"demonstration, two ranks, visitors: bot {100 * (own_after - own) / WATCH_S:.2f} % of a core, its children "
        f"{100 * (children_after - children) / WATCH_S:.2f} %, {bot.memory_info().rss / 1e6:.0f} MB resident"
    )
    began = time.monotonic()
    await it.break_("frozen-rank")
    await it.says("ALERT: nccl_hang on demo", timeout_s=60)
    alerted = time.monotonic() - began
    await it.says("FALL BACK: nccl_hang on demo", timeout_s=60)
    print(
        f"frozen rank to alert {alerted:.1f} s, to verdict card {time.monotonic() - began:.1f} s (goal < 30 s)"
    )


async def eight_gpus(folder: Path) -> None:
    port = free_port()

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=PAGE)

    async def completions(_: web.Request) -> web.Response:
        event = (
            'data: {"choices": [{"text": "a", "finish_reason": "length"}], "usage": {"completion_tokens": 2}}'
        )
        return web.Response(text=f"{event}\n\ndata: [DONE]\n\n", content_type="text/event-stream")

    app = web.Application()

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/v1/completions", completions)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    log = folder / "kernel.log"
    log.write_text("[    1.0] Linux version\n" * 5000)
    fake_driver(folder, REAL_CALL_US)
    tier = {
        "engine": {"url": f"http://127.0.0.1:{port}", "model": "m"},
        "unit": {"driver": "process", "argv": ["sleep", "600"]},
    }
    config = HostConfig.model_validate(
        {
            "name": "gpus8",
            "gpus": 8,
            "kernel_log": log,
            "router": {"url": f"http://127.0.0.1:{free_port()}"},
            "tiers": {"tp": {**tier, "server": "tp"}, "fallback": {**tier, "server": "fallback"}},
        }
    )
    host = build_host(config, state_dir=folder / "state")
    await host.router.ensure_running()
    await host.tp.unit.start()
    store = Store(f"sqlite:///{folder}/rows.sqlite")
    store.create()
    settings, alerts = MonitorSettings(), CountedAlerts()
    monitors = Monitors(
        settings,
        store=store,
        hosts=lambda _: host,
        alerts=alerts,  # type: ignore[arg-type]
        memory=MonitorMemory(store, settings),
    )
    schedule = Schedule()
    monitors.schedule(schedule, [config])
    schedule.start()
    await asyncio.sleep(SETTLE_S)
    before, began = _used(), time.monotonic()
    await asyncio.sleep(WATCH_S)
    seconds = time.monotonic() - began
    after = _used()
    own, children = (100 * (b - a) / seconds for a, b in zip(before, after, strict=True))
    periods = ", ".join(f"{kind.name} {kind.period_s(settings):g} s" for kind in MONITOR_KINDS)
    print(f"8 fake GPUs ({periods}): checks {own:.2f} % of a core, their children {children:.2f} %")
    schedule.close()
    await host.tp.unit.stop(grace_s=1)
    assert isinstance(host.router, ManagedRouter)
    await host.router.stop()
    await runner.cleanup()
    if alerts.count:
        raise SystemExit(f"the host is healthy, but there were {alerts.count} alerts")
    os.environ.pop("LD_LIBRARY_PATH", None)


def _used() -> tuple[float, float]:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime


async def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        await eight_gpus(Path(name))
    with tempfile.TemporaryDirectory() as name:
        async with incident(Path(name), monitors=True) as it:
            await demonstration_host(it)
    return 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
