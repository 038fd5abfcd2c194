"""The managed router's record of requests: one JSON line each, without prompts, headers and addresses of clients.

Lines are in the order in which requests ended. The termination codes are those of HAProxy's configuration manual, section 8.5,
tried with 2.6: `--` ended well, `C` or `c` first: the client left or did not read, any other letter first and `D` second: the
answer broke off (`K`: ended over the admin socket, `S`: by the server).
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from gpu_actions.serving.interfaces import ServedAnswer
from gpu_actions.serving.request_account import Ending, RequestEnd
from gpu_actions.system.output_file import older

LOG_NAME = "requests.log"

LOG_FORMAT = (
    '{"end_ms":%[date(0,ms)],"status":%ST,"end":"%tsc","server":"%s","retries":"%rc","wait_ms":%Tw,'
    '"first_byte_ms":%Tr,"data_ms":%Td,"total_ms":%Ta,"up":%U,"down":%B,"own":"%[var(txn.own)]",'
    '"answer":"%[var(txn.answer)]"}'
)

OWN_AGENT = "gpu-oncall"
"""How the User-Agent of our own probes and load tests begins."""

MARK_PATH = "/_router/mark"
MARK_STATUS = 204
"""Of the requests to the router's own paths only a mark has a line. Lines of requests that ended earlier precede it."""

END, STARTED, ADOPTED, LOST = "end_ms", "started_ms", "adopted_ms", "lost_lines"
"""A line has one of these: a request, or what the supervisor adds (`system/output_file.py`)."""

BLOCK_BYTES = 1 << 20
NO_SERVER = "<NOSRV>"
CLIENT_LEFT_STATUS = 499
"""Of a request whose client left while it was held; nobody receives it. The number is nginx's."""
REFUSALS = (429, 503)
ANSWERED = 200
FAULTS = frozenset({"error", "aborted", "unended", "empty"})
"""What `haproxy_answers.lua` finds wrong with an answer of status 200."""


def read_back(path: Path, since_ms: float) -> Iterator[dict[str, Any] | None]:
    """Yield the lines that ended since a moment, oldest first; None for one that cannot be read.

    If the files reach further back, the first line yielded is older than that moment: nothing is missing at the beginning.
    """
    with ExitStack() as stack:
        for stream in _open_both(path, stack):
            yield from _lines_since(stream, since_ms)


def _open_both(path: Path, stack: ExitStack) -> list[BinaryIO]:
    """Open the older file and the newer one as they are at one moment, although they may be renamed meanwhile."""
    while True:
        opened = [_opened(file, stack) for file in (older(path), path)]
        again = _opened(older(path), stack)
        if _inode(again) == _inode(opened[0]):
            return [stream for stream in opened if stream is not None]


def _opened(path: Path, stack: ExitStack) -> BinaryIO | None:
    try:
        return stack.enter_context(path.open("rb"))
    except FileNotFoundError:
        return None


def _inode(stream: BinaryIO | None) -> int:
    return 0 if stream is None else os.fstat(stream.fileno()).st_ino


def _lines_since(stream: BinaryIO, since_ms: float) -> Iterator[dict[str, Any] | None]:
    """Yield a file's lines from the last block that begins before `since_ms`."""
    begin = stream.seek(0, os.SEEK_END)
    while begin > 0:
        begin = max(0, begin - BLOCK_BYTES)
        if _first_end_ms(stream, begin) < since_ms:
            break
    stream.seek(begin)
    if begin:
        stream.readline()
    last: dict[str, Any] | None = None
    for raw in stream:
        line = _parsed(raw)
        moment = moment_ms(line) if line else None
        if moment is not None and moment < since_ms:
            last = line
            continue
        if last is not None:
            yield last
            last = None
        yield line
    if last is not None:
        yield last


def _first_end_ms(stream: BinaryIO, offset: int) -> float:
    """Return the moment of the first line after `offset` that has one; infinite if there is none."""
    stream.seek(offset)
    if offset:
        stream.readline()
    for _ in range(100):
        line = _parsed(stream.readline())
        moment = moment_ms(line) if line else None
        if moment is not None:
            return moment
    return float("inf")


def moment_ms(line: dict[str, Any]) -> float | None:
    """Return when the request of a line ended, or its event happened; None for a line without a moment."""
    return next((line[name] for name in (END, STARTED, ADOPTED) if name in line), None)


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def is_mark(line: dict[str, Any]) -> bool:
    return line.get("status") == MARK_STATUS and line.get("server") == NO_SERVER


def request_end(line: dict[str, Any]) -> RequestEnd:
    """Return the request of a line. Raises KeyError, TypeError or ValueError for a line of another shape."""
    ended_s = line[END] / 1000
    began_answer = line["first_byte_ms"] >= 0
    return RequestEnd(
        arrived_s=ended_s - max(0, line["total_ms"]) / 1000,
        ended_s=ended_s,
        ending=_ending(line["status"], line["end"], line.get("answer", "")),
        first_byte_s=ended_s - max(0, line["data_ms"]) / 1000 if began_answer else None,
        server="" if line["server"] == NO_SERVER else line["server"],
        resent=str(line["retries"]).startswith("+"),
        own=line["own"] == "1",
        ended_by_us=line["end"].startswith("K"),
    )


def served_answer(line: dict[str, Any]) -> ServedAnswer | None:
    """Return a client's request that was answered with 200 to its end, or None for any other line. Raises as `request_end`."""
    finished = line["status"] == ANSWERED and _ending(ANSWERED, line["end"]) is Ending.FINISHED
    fault = line.get("answer", "")
    if not finished or line["own"] == "1" or line["first_byte_ms"] < 0 or line["server"] == NO_SERVER:
        return None
    return ServedAnswer(
        server=line["server"],
        ended_s=line[END] / 1000,
        first_byte_s=line["first_byte_ms"] / 1000,
        seconds=(line["first_byte_ms"] + max(0, line["data_ms"])) / 1000,
        size=line["down"],
        fault=fault if fault in FAULTS else "",
        judged=fault not in ("", "-"),
    )


def _ending(status: int, end: str, answer: str = "") -> Ending:
    if end[0] in "Cc" or status == CLIENT_LEFT_STATUS:
        return Ending.CLIENT_LEFT
    if status in REFUSALS:
        return Ending.REFUSED
    if status <= 0 or status >= 500:
        return Ending.FAILED
    if end[1] in "DL" and end[0] not in "-L":
        return Ending.ABORTED
    return Ending.FAILED if answer in FAULTS else Ending.FINISHED
