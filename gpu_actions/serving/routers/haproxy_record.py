"""Count the managed router's record of requests into an account, and determine whether the record is complete."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import RequestsUnknown, ServedAnswer
from gpu_actions.serving.request_account import BEFORE_S, RequestAccount, RequestCounter
from gpu_actions.serving.routers.haproxy_log import (
    ADOPTED,
    END,
    LOST,
    STARTED,
    is_mark,
    moment_ms,
    read_back,
    request_end,
    served_answer,
)
from gpu_actions.system.clock import utc_clock
from gpu_actions.system.files import write_json

MARK_TIMEOUT_S = 3.0
"""A line is written within 0.1 s. If none appears for this long, the disk is full or the supervisor is gone."""

MARK_AGAIN_S = 0.5

READ_BEFORE_S = BEFORE_S + 120
"""How far before the window lines are read: the usual rate, and trouble that began before the run."""

CLOCK_SLACK_S = 0.005

_EVENTS = {
    STARTED: "the router was started at {}: what was open before is not counted",
    ADOPTED: "the writer of the record was replaced at {}: a line may be missing",
}


class DroppedLines(Frozen):
    """How many lines a router process (`started`: when, as it says) has dropped since its start."""

    started: str
    count: int


class RequestRecord:
    """The record of one managed router."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def wait_for_mark(self, mark: Callable[[], Awaitable[None]]) -> None:
        """Make a mark and wait until it is in the file. Raises RequestsUnknown if it does not come.

        A mark that finds the pipe full is dropped like any line, so it is made again.
        """
        since_ms = (time.time() - CLOCK_SLACK_S) * 1000
        deadline = time.monotonic() + MARK_TIMEOUT_S
        marked = float("-inf")
        try:
            while not await asyncio.to_thread(self._has_mark, since_ms):
                if time.monotonic() >= deadline:
                    raise RequestsUnknown(f"the record {self.path} is not being written: is the disk full?")
                if time.monotonic() >= marked + MARK_AGAIN_S:
                    await mark()
                    marked = time.monotonic()
                await asyncio.sleep(0.02)
        except OSError as error:
            raise RequestsUnknown(f"the record {self.path} cannot be read: {error.strerror}") from error

    def _has_mark(self, since_ms: float) -> bool:
        lines = read_back(self.path, since_ms)
        return any(line and is_mark(line) and line[END] >= since_ms for line in lines)

    def account(
        self, since_s: float, until_s: float, *, dropped: DroppedLines, open_now: int = 0
    ) -> RequestAccount:
        """Count the requests that ended in the window."""
        counter = RequestCounter(since_s, until_s)
        reasons: list[str] = []
        first_s: float | None = None
        lost = 0
        for line in read_back(self.path, (since_s - READ_BEFORE_S) * 1000):
            try:
                if line is None or LOST in line:
                    lost += 1 if line is None else line[LOST]
                    continue
                moment_s = (moment_ms(line) or 0) / 1000
                first_s = moment_s if first_s is None else first_s
                if moment_s < since_s:
                    lost = 0
                elif moment_s < until_s and END not in line:
                    reasons.append(
                        _EVENTS[STARTED if STARTED in line else ADOPTED].format(f"{utc_clock(moment_s)} UTC")
                    )
                if END in line and not is_mark(line):
                    counter.add(request_end(line))
            except (KeyError, TypeError, ValueError, IndexError):
                lost += 1
        if first_s is None or first_s > since_s:
            reasons.insert(
                0,
                "the record of requests begins later"
                if first_s is None
                else f"the record begins at {utc_clock(first_s)} UTC",
            )
        if lost:
            reasons.append(f"{lost} lines of the record could not be written")
        if self._dropped_since(since_s, dropped):
            reasons.append("the router dropped lines of its record")
        return counter.account(open_now=open_now, incomplete="; ".join(reasons))

    def answers(self, since_s: float, until_s: float) -> tuple[ServedAnswer, ...]:
        """Return the clients' requests that were answered in full and ended in this span. Unreadable lines are left out."""
        found = []
        for line in read_back(self.path, since_s * 1000):
            try:
                if line and since_s * 1000 <= line.get(END, -1) < until_s * 1000:
                    answer = served_answer(line)
                    if answer is not None:
                        found.append(answer)
            except (KeyError, TypeError, ValueError, IndexError):
                continue
        return tuple(found)

    def _dropped_since(self, since_s: float, dropped: DroppedLines) -> bool:
        """Return True if lines may have been dropped since then. Remembers when a count was first seen."""
        if dropped.count == 0:
            return False
        file = self.path.with_name("dropped_lines.json")
        known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        if known.get("dropped") != dropped.model_dump():
            write_json(file, {"dropped": dropped.model_dump(), "seen_s": time.time()})
            return True
        return bool(known["seen_s"] > since_s)
