"""Measure the headline figure: from "Start fallback" to the first token through the router, next to the engine's bare start-up.

Both are measured in one run on the demonstration host, the bare start-up before and after: the ratio is the figure. "Bare" is
the fallback unit started until it has generated a token, with nothing else running but an idle tier tp. While the tier hangs
and falls back, clients ask ten times a second: how long they were refused and how many requests were lost is printed too.
With GPU_ONCALL_VLLM naming the program of a vLLM for the CPU (`make test-vllm` installs one) the fallback tier is that.
"""

import asyncio
import contextlib
import json
import re
import statistics
import tempfile
import time
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from benchmarks.bare_start import READY_TIMEOUT_S, bare_start_s
from bot.settings.load import load_settings
from bot.store.records import RunRecord
from gpu_actions.host import Host, build_host
from gpu_actions.system.urls import port_of
from tests.scenarios.incident import Incident, incident
from tests.scenarios.vllm import VLLM, make_tiny_llama, vllm_argv, vllm_environment

BARE_STARTS = 2 if VLLM else 3
ASK_EVERY_S = 0.1
CLIENT_TIMEOUT_S = 200.0


@dataclass
class Seen:
    """Client-side results. Times are wall-clock times, like those of the run's rows."""

    ok: int = 0
    refused_at: list[float] = field(default_factory=list)
    lost_from: list[float] = field(default_factory=list)  # when each was sent

    @property
    def refused_s(self) -> float:
        """Seconds from the first refusal to the last."""
        return self.refused_at[-1] - self.refused_at[0] if self.refused_at else 0.0


@contextlib.asynccontextmanager
async def clients(url: str) -> AsyncIterator[Seen]:
    """Ask ten times a second until the block ends, without waiting for earlier answers; then wait for all of them."""
    seen, going = Seen(), True
    body = {"model": "demo", "prompt": "hello", "max_tokens": 4, "ignore_eos": True}

    async def ask(session: aiohttp.ClientSession) -> None:
        sent = time.time()
        try:
            async with session.post(f"{url}/v1/completions", json=body) as response:
                answer = await response.json()
                if response.status in (429, 503):
                    seen.refused_at.append(time.time())
                elif response.status == 200 and answer["usage"]["completion_tokens"] == 4:
                    seen.ok += 1
                else:
                    seen.lost_from.append(sent)
        except (aiohttp.ClientError, TimeoutError):
            seen.lost_from.append(sent)

    async def keep_asking(session: aiohttp.ClientSession) -> None:
        async with asyncio.TaskGroup() as group:
            while going:
                group.create_task(ask(session))
                await asyncio.sleep(ASK_EVERY_S)

    timeout = aiohttp.ClientTimeout(total=CLIENT_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        asking = asyncio.create_task(keep_asking(session))
        try:
            yield seen
        finally:
            going = False
            await asking


async def fall_back_to_vllm(it: Incident) -> None:
    """Make the demonstration's fallback tier a vLLM with a tiny model, and have the bot read its settings again."""
    folder = it.layout.state_dir
    model = folder / "tiny-llama"
    await asyncio.to_thread(make_tiny_llama, VLLM, model)
    text = it.layout.config_path.read_text()
    engine = tomllib.loads(text)["hosts"][0]["tiers"]["fallback"]["engine"]
    argv = vllm_argv(model, name="demo", port=port_of(engine["url"]), batch=16)
    env = vllm_environment(folder)
    head, tail = text.split("[hosts.tiers.fallback]", 1)
    tail = re.sub(r"ready_timeout_s = \d+", f"ready_timeout_s = {READY_TIMEOUT_S:g}", tail, count=1)
    tail = tail.replace('kind = "reference"', 'kind = "vllm"', 1)
    unit = f"argv = {json.dumps(argv)}\nenv = {{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in env.items())} }}\n"
    tail = re.sub(r"argv = \[.*?\]\n", lambda _: unit, tail, count=1, flags=re.DOTALL)
    it.layout.config_path.write_text(f"{head}[hosts.tiers.fallback]{tail}")
    it.kill_bot()
    await asyncio.sleep(5)


async def fall_back(it: Incident) -> RunRecord:
    """Break the tier, let triage find it, press the button."""
    await it.break_("frozen-rank")
    await asyncio.sleep(2)
    before = it.store.clock()
    await it.command("/triage")
    await it.ended("triage", after=before)
    await it.says("FALL BACK")
    await it.press("Start fallback")
    return await it.ended("fallback", timeout_s=READY_TIMEOUT_S + 180)


async def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with incident(Path(folder)) as it:
            if VLLM:
                await fall_back_to_vllm(it)
            settings = load_settings(it.layout.config_path, env_file=None)
            host = build_host(settings.default_host, state_dir=settings.host_dir("demo"))
            bare = [await bare_start_s(host) for _ in range(BARE_STARTS)]
            async with clients(it.layout.router_url) as seen:
                run = await fall_back(it)
            bare.append(await bare_start_s_after(it, host))
    route = next(step for step in run.steps if step.step_id == "route")
    assert route.ended_at is not None
    from_button_s = route.ended_at - run.created_at
    bare_s = statistics.median(bare)
    print(f"bare start-up to the first token: median {bare_s:.2f} s of {', '.join(f'{s:.2f}' for s in bare)}")
    print(f"from the button to the first token through the router: {from_button_s:.2f} s")
    print(f"ratio: {from_button_s / bare_s:.2f} (goal <= 1.15)")
    hung = sum(sent < run.created_at for sent in seen.lost_from)
    print(
        f"clients, ten requests a second: {seen.ok} answered, {len(seen.refused_at)} refused over {seen.refused_s:.1f} s, "
        f"{len(seen.lost_from)} lost, of which {hung} hung before the button was pressed"
    )
    for step in run.steps:
        if step.started_at is not None and step.ended_at is not None:
            start_s, seconds = step.started_at - run.created_at, step.ended_at - step.started_at
            print(
                f"  {step.step_id:<14} +{start_s:6.2f} s  {seconds:6.2f} s  {step.summary.splitlines()[0][:90]}"
            )
    return 0


async def bare_start_s_after(it: Incident, host: Host) -> float:
    """Measure one more bare start under the same load, after the fallback. The fallback tier is stopped first."""
    await it.break_("mend")
    await host.fallback.unit.stop(grace_s=5)
    return await bare_start_s(host)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
