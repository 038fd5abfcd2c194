"""Hang a real engine under load again and again, and time the monitor until it names the rank that the others wait for.

    python -m benchmarks.hangs --out FILE [--count N] [--stretches N] [--ranks 2 4] [--device cpu|cuda] [--seconds S]
    python -m benchmarks.hangs --out FILE --count 0 --stretches 0 --add FILE ...   # the figures of several campaigns

The reference engine serves streams through HAProxy while the monitor's own checks (the collectors, window, period and
confirmation of `bot/watch`) run without a pause. A hang is injected at a random moment into a random rank; the first check that
names a rank counts, right or wrong. Between the injections, and in stretches of odd but healthy behaviour, every alert is a
false alarm. Goals: named within 10 s (p90), precision >= 0.95, recall >= 0.9, no false alarm.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from benchmarks.hang_faults import FAULTS, Fault, Rig
from benchmarks.hang_stretches import STRETCHES
from bot.settings.watch import MonitorSettings
from bot.watch.monitor_kinds import MONITOR_KINDS
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Verdict
from gpu_actions.snapshot.collect import collect
from gpu_actions.triage.judge import judge
from gpu_actions.triage.monitor_state import MonitorPolicy, MonitorState

GIVE_UP_S = 30.0
HEALTHY_S = 12.0
"""At least two checks of the monitor fit into a healthy stretch of this length."""
WINDOW_SHARE = 0.6
"""As in bot/watch/monitors.py."""
GOALS = {"named_p90_s": 10.0, "precision": 0.95, "recall": 0.9, "false_alarms": 0}
Record = dict[str, Any]


def named_ranks(verdict: Verdict) -> dict[int, str]:
    """Return the ranks that a verdict names as culprits, with their kinds."""
    return {
        row["rank"]: row["kind"]
        for finding in verdict.findings
        for row in finding.evidence.get("culprits", ())
    }


class Watcher:
    """The monitor: checks at its period, forever. What it concludes is kept with the time since the start."""

    def __init__(self, rig: Rig, kind: str = "hang") -> None:
        self._rig = rig
        self._kind = next(one for one in MONITOR_KINDS if one.name == kind)
        self._settings = MonitorSettings()
        self._state = MonitorState(host="h")
        self.checks: list[tuple[float, float, Verdict]] = []
        self.alerts: list[tuple[float, str, str]] = []
        self.checked = asyncio.Event()

    async def run(self) -> None:
        """Check until cancelled."""
        limits = TriageThresholds()
        period_s = self._settings.hang_period_s
        window_s = min(self._kind.window_s, WINDOW_SHARE * period_s)
        while True:
            began = time.monotonic()
            snapshot = await collect(
                await self._rig.target(),
                limits,
                window_s=window_s,
                only=self._kind.collectors | self._kind.in_doubt,
                in_doubt=self._kind.in_doubt,
            )
            verdict = judge(snapshot, limits)
            now = time.monotonic()
            self.checks.append((began, now, verdict))
            self._state, signals = self._state.observe(verdict, now_s=now, policy=MonitorPolicy())
            self.alerts += [
                (now, signal.cause, verdict.summary) for signal in signals if signal.kind in ("open", "join")
            ]
            self.checked.set()
            await asyncio.sleep(max(0.0, began + period_s - time.monotonic()))

    async def next_check(self, before: float) -> None:
        """Wait for the end of a check, or for a moment."""
        self.checked.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.01, before - time.monotonic())):
                await self.checked.wait()


@contextlib.asynccontextmanager
async def watching(rig: Rig, kind: str) -> AsyncIterator[Watcher]:
    watcher = Watcher(rig, kind)
    task = asyncio.create_task(watcher.run())
    try:
        yield watcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def one_hang(rig: Rig, name: str, fault: Fault, draw: random.Random) -> Record:
    """Inject one hang and wait until a rank is named and the alert is confirmed, or give up."""
    rank = draw.choice(fault.ranks(rig.ranks))
    async with watching(rig, fault.monitor) as watcher:
        await asyncio.sleep(draw.uniform(2, 7))
        false = list(watcher.alerts)
        before = len(watcher.checks)
        injected = time.monotonic()
        async with fault.injected(rig, rank):
            named: Record = {}
            alert_s = seen_s = None
            while time.monotonic() < injected + GIVE_UP_S:
                await watcher.next_check(injected + GIVE_UP_S)
                for began, ended, verdict in watcher.checks[before:]:
                    if seen_s is None and verdict.cause != "none":
                        seen_s = round(ended - injected, 2)
                    if not named and (found := named_ranks(verdict)):
                        named = {
                            "named_s": round(ended - injected, 2),
                            "ranks": sorted(found),
                            "kinds": sorted(set(found.values())),
                            "summary": verdict.summary,
                            "check_s": round(ended - began, 2),
                        }
                alerts = [alert for alert in watcher.alerts if alert[0] > injected]
                alert_s = round(alerts[0][0] - injected, 2) if alerts else None
                if named and alerts:
                    break
            last = watcher.checks[-1][2] if watcher.checks else None
    return {
        "fault": name,
        "of_ranks": rig.ranks,
        "rank": rank,
        "verdict_s": seen_s,
        "alert_s": alert_s,
        **named,
        "right": named.get("ranks") == [rank],
        "kind_right": bool(named) and named["kinds"] == [fault.expected],
        "false_alarms": [text for _, _, text in false],
        **({} if named else {"last": f"{last.cause}: {last.summary}" if last else "no check"}),
    }


async def one_stretch(rig: Rig, name: str, seconds: float) -> Record:
    """Let the engine be odd but healthy, and count the alerts."""
    async with STRETCHES[name](rig), watching(rig, "hang") as watcher:
        await asyncio.sleep(seconds)
        while len(watcher.checks) < 2:
            await watcher.next_check(time.monotonic() + 5)
        verdicts = [f"{verdict.cause}: {verdict.summary}" for _, _, verdict in watcher.checks]
        return {
            "stretch": name,
            "of_ranks": rig.ranks,
            "checks": len(watcher.checks),
            "seconds": round(seconds, 1),
            "named": [
                sorted(named_ranks(verdict)) for _, _, verdict in watcher.checks if named_ranks(verdict)
            ],
            "false_alarms": [f"{cause}: {text}" for _, cause, text in watcher.alerts],
            "odd": [text for text in verdicts if not text.startswith("none")],
        }


def percentile(values: list[float], share: float) -> float | None:
    """Return the value below which this share lies, of those that were measured."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def summary_of(hangs: list[Record], stretches: list[Record]) -> Record:
    """Return the figures of each kind and of all, and whether the goals are met."""

    def figures(rows: list[Record]) -> Record:
        named = [row for row in rows if "named_s" in row]
        right = [row for row in rows if row["right"]]
        # A hang that nobody named took at least as long as the campaign waited.
        times = [row.get("named_s", GIVE_UP_S) for row in rows]
        alerts = [row["alert_s"] if row["alert_s"] is not None else GIVE_UP_S for row in rows]
        return {
            "hangs": len(rows),
            "named_p50_s": percentile(times, 0.5),
            "named_p90_s": percentile(times, 0.9),
            "alert_p50_s": percentile(alerts, 0.5),
            "alert_p90_s": percentile(alerts, 0.9),
            "precision": round(len(right) / len(named), 3) if named else None,
            "recall": round(len(right) / len(rows), 3) if rows else None,
            "kind_right": round(sum(row["kind_right"] for row in rows) / len(rows), 3) if rows else None,
        }

    by_kind: dict[str, list[Record]] = defaultdict(list)
    for row in hangs:
        by_kind[row["fault"]].append(row)
    healthy: dict[str, Record] = {}
    for name in STRETCHES:
        if rows := [row for row in stretches if row["stretch"] == name]:
            healthy[name] = {
                "stretches": len(rows),
                "checks": sum(row["checks"] for row in rows),
                "false_alarms": sum(bool(row["false_alarms"] or row["named"]) for row in rows),
            }
    false = sum(len(row["false_alarms"]) for row in hangs)
    false += sum(row["false_alarms"] for row in healthy.values())
    total = figures(hangs) if hangs else {}
    return {
        "all": total,
        "kinds": {k: figures(v) for k, v in by_kind.items()},
        "healthy": healthy,
        "false_alarms": false,
    }


def table_of(summary: Record) -> str:
    """Return the figures as two Markdown tables."""
    lines = [
        "| hang | injected | named p50 / p90 | alert p50 / p90 | precision | recall | kind right |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in [*summary["kinds"].items(), ("**all**", summary["all"])]:
        if row:
            lines.append(
                f"| {name} | {row['hangs']} | {row['named_p50_s']} / {row['named_p90_s']} s | {row['alert_p50_s']} / "
                f"{row['alert_p90_s']} s | {row['precision']} | {row['recall']} | {row['kind_right']} |"
            )
    lines += ["", "| healthy stretch | stretches | checks | false alarms |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['stretches']} | {row['checks']} | {row['false_alarms']} |"
        for name, row in summary["healthy"].items()
    ]
    return "\n".join(lines)


class Campaign:
    """All injections and stretches, in random order, until the counts or the time are used up."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._draw = random.Random(options.seed)
        self._ends = time.monotonic() + options.seconds
        earlier = [json.loads(path.read_text(encoding="utf-8")) for path in options.add]
        self.hangs: list[Record] = [row for one in earlier for row in one["hangs"]]
        self.stretches: list[Record] = [row for one in earlier for row in one["stretches"]]

    def plan(self) -> list[tuple[str, str, int]]:
        """Return rounds that hold each kind once, so that a campaign cut short has all kinds alike."""
        rounds = []
        for number in range(max(self._options.count, self._options.stretches)):
            size = self._options.ranks[number % len(self._options.ranks)]
            jobs = []
            if number < self._options.count:
                kinds = [name for name in self._options.kinds if FAULTS[name].at_least <= size]
                jobs += [("hang", name, size) for name in kinds]
            if number < self._options.stretches:
                jobs += [("stretch", name, size) for name in self._options.healthy]
            self._draw.shuffle(jobs)
            rounds += jobs
        return rounds

    async def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="hangs-") as work:
            rig: Rig | None = None
            try:
                for what, name, size in self.plan():
                    if time.monotonic() > self._ends:
                        break
                    if rig is None or rig.ranks != size or not await rig.is_well():
                        if rig is not None:
                            await rig.stop()
                        rig = Rig(Path(work), size, self._options.device)
                        await rig.start()
                    await self._one(rig, what, name)
                    self.save()
            finally:
                if rig is not None:
                    await rig.stop()

    async def _one(self, rig: Rig, what: str, name: str) -> None:
        if what == "hang":
            record = await one_hang(rig, name, FAULTS[name], self._draw)
            self.hangs.append(record)
        else:
            record = await one_stretch(rig, name, HEALTHY_S)
            self.stretches.append(record)
        print(json.dumps(record), flush=True)

    def save(self) -> Record:
        """Write the figures so far."""
        summary = summary_of(self.hangs, self.stretches)
        document = {
            "device": self._options.device,
            "ranks": self._options.ranks,
            "goals": GOALS,
            "summary": summary,
            "hangs": self.hangs,
            "stretches": self.stretches,
        }
        self._options.out.write_text(json.dumps(document, indent=1))
        return summary


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=120, help="hangs of each kind")
    parser.add_argument("--stretches", type=int, default=24, help="healthy stretches of each kind")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--kinds", nargs="*", choices=FAULTS, default=None)
    parser.add_argument("--healthy", nargs="*", choices=STRETCHES, default=list(STRETCHES))
    parser.add_argument("--seconds", type=float, default=8 * 3600, help="no new one is begun after this time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--add", type=Path, nargs="*", default=[], help="results of earlier campaigns, counted in"
    )
    options = parser.parse_args()
    if options.kinds is None:
        options.kinds = [name for name, fault in FAULTS.items() if options.device in fault.devices]
    if shutil.which("haproxy") is None:
        print("without HAProxy: the engine is asked directly, and no router is read", file=sys.stderr)
    campaign = Campaign(options)
    asyncio.run(campaign.run())
    summary = campaign.save()
    print(table_of(summary))
    met = summary["false_alarms"] == 0 and (
        not summary["all"]
        or (
            summary["all"]["named_p90_s"] <= GOALS["named_p90_s"]
            and (summary["all"]["precision"] or 0) >= GOALS["precision"]
            and summary["all"]["recall"] >= GOALS["recall"]
        )
    )
    print("goals met" if met else "goals missed", GOALS)
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
