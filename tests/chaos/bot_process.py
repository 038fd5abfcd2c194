"""A bot process for tests to kill: it launches the run engine with toy actions and starts the runs of `--start`.

It prints one JSON object per line (`{"launched": true}`, `{"run": ID}`) and works until SIGTERM. With `--die` it kills
itself with SIGKILL at an exact point: after a row, before a row, or between a run's row and its workflow.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import structlog

import bot.runs.dbos_config
import bot.runs.run_engine
import bot.runs.stranded_runs
from bot.runs.process_lock import AlreadyRunning
from bot.store.step_rows import StepRows
from bot.store.store import Store
from tests.bot.toys import build, start


def die() -> None:
    """End at once, without running any handler or finally block."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Make the bot kill itself at a point: `after-row:STEP`, `before-row:STEP`, `after-insert`."""
    where, _, step_id = point.partition(":")
    if where in ("after-row", "before-row"):
        write = StepRows.end

        def end(self: StepRows, run_id: str, ended: Any) -> None:
            if where == "before-row" and ended.outcome.step_id == step_id:
                die()
            write(self, run_id, ended)
            if ended.outcome.step_id == step_id:
                die()

        StepRows.end = end  # type: ignore[method-assign]
    elif where == "after-insert":
        insert = Store.insert_run

        def insert_run(self: Store, *args: Any, **kwargs: Any) -> Any:
            insert(self, *args, **kwargs)
            die()

        Store.insert_run = insert_run  # type: ignore[method-assign]
    else:
        raise ValueError(point)


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def change_code() -> None:
    """Register one more workflow, which changes the version that DBOS computes from the sources."""
    from dbos import DBOS

    @DBOS.workflow(name="added_in_a_later_version")
    async def added() -> None:
        return None


async def main(given: argparse.Namespace) -> int:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if given.die:
        arm(given.die)
    bot.runs.run_engine.WATCH_PERIOD_S = given.watch_s
    bot.runs.run_engine.RECOVERY_S = given.watch_s
    if given.engine_version:
        bot.runs.dbos_config.ENGINE_VERSION = bot.runs.stranded_runs.ENGINE_VERSION = given.engine_version
    _, store, runs = build(given.state_dir, role=given.role, expires_s=given.expires_s)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if given.changed_code:
        change_code()
    try:
        await runs.engine.launch()
    except AlreadyRunning as error:
        print(error, file=sys.stderr)
        return 2
    tell(launched=True)
    for word in given.start:
        action, _, options = word.partition("?")
        run = await start(
            runs, action, key=given.key, **dict(part.split("=", 1) for part in options.split("&") if part)
        )
        tell(run=run.id)
    await stop.wait()
    await runs.engine.close()
    store.close()
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("--start", nargs="*", default=[])
    parser.add_argument("--key", default="")
    parser.add_argument("--die", default="")
    parser.add_argument("--engine-version", default="")
    parser.add_argument("--changed-code", action="store_true")
    parser.add_argument("--role", default="all")
    parser.add_argument("--watch-s", type=float, default=60)
    parser.add_argument("--expires-s", type=float, default=600)
    sys.exit(asyncio.run(main(parser.parse_args())))
