"""Measure what people see of 20 runs at work: edits a minute against Slack's limit, and the time from a step's end to its edit.

The bot has toy actions and a local workspace that enforces Slack's rates; the settings of edits are the product's own.
Goal: never more edits in a minute than the settings allow, none refused, and the end of every run shown.
"""

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

from bot.settings.model import SlackSettings
from bot.store.records import Person, Place
from demo.workspace import Workspace
from demo.workspace.rates import RateLimits
from demo.workspace.webapi import ApiCall, ApiError, Handler
from gpu_actions.action import StepContext, StepResult, step
from gpu_actions.models import JsonObject
from tests.bot.desk import Desk, sitting_down

RUNS = 20
STEPS = 24
STEP_S = 5.0
SETTLE_S = 180


@step("toy.rest")
async def rest(context: StepContext) -> StepResult:
    """Take a while."""
    await asyncio.sleep(STEP_S)
    return StepResult(summary="rested")


class Watch:
    """Counts the edits that Slack takes and refuses."""

    def __init__(self) -> None:
        self.edits: list[tuple[float, str]] = []
        self.refused: Counter[str] = Counter()

    async def __call__(self, call: ApiCall, handler: Handler) -> JsonObject:
        try:
            answer = await handler(call)
        except ApiError as error:
            self.refused[f"{call.method}: {error}"] += 1
            raise
        if call.method == "chat.update":
            self.edits.append((time.time(), str(answer["ts"])))
        return answer

    def most_in_a_minute(self) -> int:
        times = [at for at, _ in self.edits]
        return max((sum(1 for other in times if at <= other < at + 60) for at in times), default=0)


async def play(it: Desk, watch: Watch, runs: int) -> tuple[list[float], int]:
    """Run so many at once. Return the seconds from each step's end to the next edit, and how many ends were not shown."""
    channel = await it.bot.alerts.channel_id()
    script = " ".join(f"rest:s{number}" for number in range(STEPS))
    ids = []
    for number in range(runs):
        started = await it.bot.runs.start(
            action="forensics",
            host=None,
            options={"script": script},
            requester=Person(id="U1"),
            place=Place(channel=channel),
            dedupe_key=f"edits:{runs}:{number}",
        )
        ids.append(started.run.id)
    for run_id in ids:
        await it.bot.runs.wait(run_id, until=lambda run: run.status.final)
    seen = it.bot.store.deliveries.seen
    deadline = time.monotonic() + SETTLE_S
    while left := [one for one in ids if not seen(f"shown:{one}:succeeded")]:
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    delays = []
    for run_id in ids:
        run = it.bot.runs.get(run_id)
        assert run is not None
        edits = [at for at, ts in watch.edits if ts == run.message_ts]
        for one in run.steps:
            after = [at - one.ended_at for at in edits if one.ended_at is not None and at >= one.ended_at]
            delays += [min(after)] if after else []
    return delays, len(left)


async def main() -> int:
    watch, good = Watch(), True
    usual = SlackSettings()
    changes = {"edit_interval_s": usual.edit_interval_s, "edits_per_minute": usual.edits_per_minute}
    with tempfile.TemporaryDirectory() as folder:
        async with (
            Workspace(port=0, api_middlewares=[watch, RateLimits()]) as workspace,
            sitting_down(Path(folder), workspace, slack_changes=changes) as it,
        ):
            for runs in (1, RUNS):
                watch.edits.clear()
                delays, left = await play(it, watch, runs)
                most = watch.most_in_a_minute()
                ranked = sorted(delays)
                print(
                    f"{runs:2} runs at once, {STEPS} steps of {STEP_S:g} s: at most {most} edits in a minute "
                    f"(limit {usual.edits_per_minute}), {len(watch.edits)} in all; from a step's end to the edit p50 "
                    f"{statistics.median(ranked):.1f} s, p99 {ranked[int(0.99 * (len(ranked) - 1))]:.1f} s; "
                    f"ends not shown: {left}"
                )
                good = good and most <= usual.edits_per_minute and not left
    print(f"refused by Slack: {dict(watch.refused)}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
