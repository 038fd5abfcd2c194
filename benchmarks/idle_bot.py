"""Measure what the bot costs a healthy host: resident memory and CPU at rest. Check that it never loads torch.

Measured on the demonstration's bot after it has run a triage, over a minute without work. Goal: under 150 MB and 1 % of a core.
"""

import asyncio
import tempfile
from pathlib import Path

import psutil

from tests.scenarios.incident import incident

SETTLE_S = 25
"""DBOS's own queue is slowed down 15 s after the launch (bot/runs/runs.py)."""
WATCH_S = 60
GOAL_MB = 150
GOAL_PERCENT = 1.0


async def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with incident(Path(folder)) as it:
            await it.command("/triage")
            await it.ended("triage")
            await asyncio.sleep(SETTLE_S)
            bot = psutil.Process(int((it.layout.state_dir / "bot.pid").read_text()))
            before = sum(bot.cpu_times()[:2])
            await asyncio.sleep(WATCH_S)
            percent = 100 * (sum(bot.cpu_times()[:2]) - before) / WATCH_S
            resident_mb = bot.memory_info().rss / 1e6
            threads = bot.num_threads()
            children = bot.children(recursive=True)
            torch_loaded = "libtorch" in Path(f"/proc/{bot.pid}/maps").read_text()
    print(f"resident {resident_mb:.0f} MB (goal < {GOAL_MB}), {threads} threads, {len(children)} children")
    print(f"CPU at rest {percent:.2f} % of a core over {WATCH_S} s (goal < {GOAL_PERCENT:g})")
    print(f"torch in the bot: {'YES' if torch_loaded else 'no'}")
    return 0 if resident_mb < GOAL_MB and percent < GOAL_PERCENT and not torch_loaded else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
