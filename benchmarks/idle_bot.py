"""Measure what the bot costs a healthy host: memory and CPU at rest of `gpu-oncall up`, its supervisor and both processes.

Measured on the demonstration's bot after it has run a triage, over a minute without work. Memory is the sum of the proportional
set sizes (PSS): a page that several processes share counts once. Goal: under 150 MB and 1 % of a core together.
"""

import asyncio
import re
import tempfile
from pathlib import Path

import psutil

from tests.scenarios.incident import incident

SETTLE_S = 25
"""DBOS's own queue is slowed down 15 s after the launch (bot/runs/dbos_config.py)."""
WATCH_S = 60
GOAL_MB = 150
GOAL_PERCENT = 1.0


def memory_mb(pid: int) -> tuple[float, float]:
    """Return the proportional and the resident set size of a process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pss, rss = (int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1]) for name in ("Pss", "Rss"))  # type: ignore[index]
    return pss * 1024 / 1e6, rss * 1024 / 1e6


def cpu_s(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


async def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with incident(Path(folder)) as it:
            await it.command("/triage")
            await it.ended("triage")
            await asyncio.sleep(SETTLE_S)
            supervisor = psutil.Process(int((it.layout.state_dir / "bot.pid").read_text()))
            processes = [supervisor, *supervisor.children(recursive=True)]
            before = {process.pid: cpu_s(process) for process in processes}
            await asyncio.sleep(WATCH_S)
            total_mb = total_percent = 0.0
            torch_loaded = False
            for process in processes:
                percent = 100 * (cpu_s(process) - before[process.pid]) / WATCH_S
                pss_mb, rss_mb = memory_mb(process.pid)
                total_mb, total_percent = total_mb + pss_mb, total_percent + percent
                torch_loaded = torch_loaded or "libtorch" in Path(f"/proc/{process.pid}/maps").read_text()
                print(
                    f"{Path(f'/proc/{process.pid}/comm').read_text().strip():16} {pss_mb:4.0f} MB proportional, "
                    f"{rss_mb:4.0f} MB resident, {process.num_threads():2} threads, {percent:.2f} % of a core"
                )
    print(f"memory {total_mb:.0f} MB (goal < {GOAL_MB})")
    print(f"CPU at rest {total_percent:.2f} % of a core over {WATCH_S} s (goal < {GOAL_PERCENT:g})")
    print(f"torch in the bot: {'YES' if torch_loaded else 'no'}")
    return 0 if total_mb < GOAL_MB and total_percent < GOAL_PERCENT and not torch_loaded else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
