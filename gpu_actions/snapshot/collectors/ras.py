"""NCCL RAS over TCP, polled twice: operation counts by rank, and ranks that do not answer.

The protocol has line commands and an answer without a length, which is read to its end with a deadline and a cap. JSON exists
since NCCL 2.28.7; an older server answers with a text report that names only what differs.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from pydantic import Field, ValidationError

from gpu_actions.models import Frozen
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped, Source

MAX_ANSWER_BYTES = 4 * 1024 * 1024
ASK_STATUS = b"VERBOSE STATUS\n"
ASK_SHORT_WAIT = b"TIMEOUT 1\n"
"""RAS itself waits 1 s for silent ranks (its default is 5 s, longer than the window)."""

NO_ERROR = (0, 7)
"""ncclSuccess and ncclInProgress, of ncclResult_t in nccl.h."""

MAX_RANKS = 4096
_COMMUNICATOR = re.compile(r"^#\d+-\d+ \(([0-9a-fA-F]{1,32})\) (MISMATCH|INCOMPLETE|ERROR)")
_OPERATION = re.compile(r"Rank (\d{1,6}) has launched up to operation (\d{1,20})(?:.*?process (\d{1,10}))?")
_OPERATIONS = re.compile(r"(\d{1,6}) ranks have launched up to operation (\d{1,20})")
_RANK = re.compile(r"Rank (\d{1,6}) -- (?:GPU .*?process (\d{1,10}))?")
_MISSING = re.compile(r"Missing communicator data from (\d{1,6}) rank")
_DIFFERENT = re.compile(r"different (\w+)(?: operation)? counts|different (\w+) operation")
_TIMEOUTS = re.compile(r"Encountered (\d{1,6}) communication timeout")
_VERSION = re.compile(r"NCCL version (\S{1,40})")


class RasRank(Frozen):
    """A rank that answered RAS, with its operation counts by collective."""

    rank: int
    pid: int | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    async_error: int = 0


class RasMissingRank(Frozen):
    """A rank that RAS knows and that did not answer."""

    rank: int
    pid: int | None = None
    unresponsive: bool = True
    dead: bool = False


class RasCommunicator(Frozen):
    """One communicator in one poll. `mismatch` is RAS's own status (text protocol) or differing counts (JSON)."""

    id: str
    size: int | None = None
    ranks: tuple[RasRank, ...] = ()
    missing: tuple[RasMissingRank, ...] = ()
    missing_count: int = 0
    mismatch: bool = False
    has_error: bool = Field(default=False, description="RAS reports an asynchronous error of a rank")

    @property
    def is_suspect(self) -> bool:
        """True if it shows something that means a hang if it lasts."""
        return bool(self.mismatch or self.has_error or self.missing or self.missing_count)


class RasPoll(Frozen):
    """One answer of RAS, or why there was none."""

    at_s: float = Field(description="seconds after the snapshot began")
    outcome: Literal["ok", "refused", "silent", "garbage"]
    protocol: Literal["json", "text"] | None = None
    nccl_version: str = ""
    communicators: tuple[RasCommunicator, ...] = ()
    timeouts: int = 0
    detail: str = ""


class RasReading(Frozen):
    """Two polls of NCCL RAS, a window apart."""

    address: str
    polls: tuple[RasPoll, ...]

    @property
    def answered(self) -> bool:
        """True if at least one poll was answered."""
        return any(poll.outcome == "ok" for poll in self.polls)


async def collect_ras(source: Source) -> RasReading:
    """Poll RAS now and at the end of the window. Raises CollectorSkipped without an address, CollectorFailed for a bad one."""
    address = source.target.ras
    if not address:
        raise CollectorSkipped("no RAS address is configured")
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536 or not host:
        raise CollectorFailed(f"{address!r} is not HOST:PORT")
    first = await poll_ras(address, source)
    if first.outcome == "ok" and not any(one.is_suspect for one in first.communicators):
        source.window.needs_no_more("ras")
    elif first.outcome == "refused":
        source.window.needs_no_more("ras")
    await source.window_end(first.at_s)
    return RasReading(address=address, polls=(first, await poll_ras(address, source)))


@asynccontextmanager
async def connect_ras(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection to RAS at HOST:PORT. Raises OSError."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def poll_ras(address: str, source: Source) -> RasPoll:
    """Poll once. A missing or broken answer is an outcome: refused, silent or garbage."""
    at_s, timeout_s = source.at_s, source.limits.ras_timeout_s

    def no_report(outcome: Literal["refused", "silent", "garbage"], detail: str) -> RasPoll:
        return RasPoll(at_s=at_s, outcome=outcome, detail=detail)

    got = bytearray()
    try:
        async with asyncio.timeout(timeout_s), connect_ras(address) as (reader, writer):
            as_json = await _greet(reader, writer)
            writer.write(ASK_STATUS)
            await writer.drain()
            while chunk := await reader.read(65536):
                got += chunk
                if len(got) > MAX_ANSWER_BYTES:
                    return no_report("garbage", f"more than {MAX_ANSWER_BYTES} bytes")
    except TimeoutError:
        if not got:
            return no_report("silent", f"no answer within {timeout_s:g} s")
        return no_report("garbage", f"the answer broke off after {len(got)} bytes")
    except _NotRasError as error:
        return no_report("garbage", str(error))
    except (ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError) as error:
        return no_report("silent", f"it closed the connection: {type(error).__name__}")
    except OSError as error:
        return no_report("refused", error.strerror or str(error))
    text = got.decode(errors="replace")
    return parse_json_answer(text, at_s=at_s) if as_json else parse_text_answer(text, at_s=at_s)


class _NotRasError(Exception):
    """Raised if something other than RAS listens at the address."""


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Agree on protocol, time-out and format. Return True if the answer will be JSON."""
    writer.write(b"CLIENT PROTOCOL 2\n")
    answer = await _line(reader)
    if not answer.upper().startswith("SERVER PROTOCOL"):
        raise _NotRasError(f"it greets with {answer[:60]!r}, not with SERVER PROTOCOL")
    writer.write(ASK_SHORT_WAIT)
    await _line(reader)
    writer.write(b"SET FORMAT json\n")
    return (await _line(reader)).strip().upper() == "OK"


async def _line(reader: asyncio.StreamReader) -> str:
    try:
        raw = await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise _NotRasError("it sends a line without an end") from None
    return raw.decode(errors="replace").strip()


def parse_json_answer(text: str, *, at_s: float) -> RasPoll:
    """Parse the JSON report; anything else is garbage."""
    try:
        document: Any = json.loads(text)
        return RasPoll(
            at_s=at_s,
            outcome="ok",
            protocol="json",
            nccl_version=str(document.get("nccl_version", ""))[:40],
            communicators=tuple(_communicator(row) for row in document["communicators"]),
            timeouts=int((document.get("ras") or {}).get("timeouts_count", 0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
        return RasPoll(
            at_s=at_s,
            outcome="garbage",
            detail=f"not a RAS report: {type(error).__name__}: {str(error)[:120]}",
        )


def _communicator(row: dict[str, Any]) -> RasCommunicator:
    ranks = tuple(
        RasRank(
            rank=rank["rank"],
            pid=rank.get("pid"),
            counts={str(name): int(value) for name, value in rank["collective_counts"].items()},
            async_error=int((rank.get("status") or {}).get("async_error", 0)),
        )
        for rank in row["ranks"][:MAX_RANKS]
    )
    missing = tuple(
        RasMissingRank(
            rank=rank["rank"],
            pid=rank.get("pid"),
            unresponsive=bool((rank.get("status") or {}).get("unresponsive", True)),
            dead=bool((rank.get("status") or {}).get("considered_dead", False)),
        )
        for rank in row.get("missing_ranks", ())[:MAX_RANKS]
    )
    return RasCommunicator(
        id=str(row["hash"])[:64],
        size=row.get("size"),
        ranks=ranks,
        missing=missing,
        missing_count=max(len(missing), int(row.get("missing_ranks_count", 0))),
        mismatch=counts_differ(ranks),
        has_error=any(rank.async_error not in NO_ERROR for rank in ranks),
    )


def counts_differ(ranks: tuple[RasRank, ...]) -> bool:
    """Return True if one rank launched some operation more often than another."""
    names = {name for rank in ranks for name in rank.counts}
    return any(len({rank.counts.get(name, 0) for rank in ranks}) > 1 for name in names)


def parse_text_answer(text: str, *, at_s: float) -> RasPoll:
    """Parse the text report of NCCL 2.24 to 2.28.6. Groups of unnamed ranks become rank -1, -2, ..."""
    version = _VERSION.search(text)
    if version is None:
        return RasPoll(at_s=at_s, outcome="garbage", detail=f"not a RAS report: {text[:60]!r}")
    found: dict[str, dict[str, Any]] = {}
    current: dict[str, Any] | None = None
    operation = "operation"
    for line in text.splitlines():
        if match := _COMMUNICATOR.match(line):
            current = found.setdefault(
                match.group(1),
                {"id": match.group(1), "ranks": [], "missing": [], "missing_count": 0, "kinds": set()},
            )
            current["kinds"].add(match.group(2))
        elif not line.strip():
            current = None
        elif current is not None:
            if match := _DIFFERENT.search(line):
                operation = match.group(1) or match.group(2) or operation
            _text_line(line, current, operation)
    timeouts = _TIMEOUTS.search(text)
    return RasPoll(
        at_s=at_s,
        outcome="ok",
        protocol="text",
        nccl_version=version.group(1),
        communicators=tuple(
            RasCommunicator(
                id=row["id"],
                ranks=tuple(row["ranks"]),
                missing=tuple(row["missing"]),
                missing_count=max(row["missing_count"], len(row["missing"])),
                mismatch="MISMATCH" in row["kinds"] and bool(row["ranks"]),
                has_error="ERROR" in row["kinds"],
            )
            for row in found.values()
        ),
        timeouts=int(timeouts.group(1)) if timeouts else 0,
    )


def _text_line(line: str, into: dict[str, Any], operation: str) -> None:
    if match := _OPERATION.search(line):
        pid = int(match.group(3)) if match.group(3) else None
        into["ranks"].append(
            RasRank(rank=int(match.group(1)), pid=pid, counts={operation: int(match.group(2))})
        )
    elif match := _OPERATIONS.search(line):
        into["ranks"].append(RasRank(rank=-1 - len(into["ranks"]), counts={operation: int(match.group(2))}))
    elif match := _MISSING.search(line):
        into["missing_count"] = int(match.group(1))
    elif (match := _RANK.search(line)) and "INCOMPLETE" in into["kinds"] and "MISMATCH" not in into["kinds"]:
        pid = int(match.group(2)) if match.group(2) else None
        into["missing"].append(RasMissingRank(rank=int(match.group(1)), pid=pid))


RAS = Collector(
    collect=collect_ras,
    deadline_s=lambda source: source.window_s + 2 * source.limits.ras_timeout_s + 1,
    observes=True,
)
