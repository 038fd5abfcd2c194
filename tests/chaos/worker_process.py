"""A worker of the real product that kills itself with SIGKILL once at every step of a run: `FOLDER MODE`.

MODE says where: `inside` a step, `before-row`, `after-row` (the step's row is written, the workflow's record is not), or
`none`; `inside:route,stop` means only these steps. The file `kills` lists the steps where that has happened, so the next worker
dies at the next step.
"""

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import bot.runs.dbos_config
from bot.store.step_rows import StepRows
from bot.worker import serve_worker
from tests.chaos.real_host import settings_of

INSIDE_AFTER_S = 0.08


def arm(mode: str, kills: Path) -> None:
    """Make the worker kill itself at the given points."""
    begin, end = StepRows.begin, StepRows.end
    mode, _, names = mode.partition(":")
    only = set(filter(None, names.split(",")))

    def die_once(step_id: str) -> None:
        survived = kills.read_text().split() if kills.exists() else []
        if step_id not in survived and (not only or step_id in only):
            with kills.open("a") as file:
                file.write(f"{step_id}\n")
                file.flush()
                os.fsync(file.fileno())
            os.kill(os.getpid(), signal.SIGKILL)

    def began(self: StepRows, run_id: str, move: Any) -> Any:
        given = begin(self, run_id, move)
        if mode == "inside":
            threading.Timer(INSIDE_AFTER_S, die_once, (move.step.id,)).start()
        return given

    def ended(self: StepRows, run_id: str, outcome: Any) -> None:
        if mode == "before-row":
            die_once(outcome.outcome.step_id)
        end(self, run_id, outcome)
        if mode == "after-row":
            die_once(outcome.outcome.step_id)

    StepRows.begin, StepRows.end = began, ended  # type: ignore[method-assign]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    arm(sys.argv[2], folder / "kills")
    bot.runs.dbos_config.NOTIFICATION_POLL_S = 0.02
    sys.exit(asyncio.run(serve_worker(settings_of(folder))))
