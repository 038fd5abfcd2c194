"""Summarise Chrome traces in a separate process: `python -m gpu_actions.trace FILE... [--top N]` prints JSON.

A trace of 3 MB unpacks to 54 MB and takes seconds to parse, so the bot never does it itself. With the memory limit a
hostile file ends this child, not the host.
"""

import argparse
import gzip
import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

from gpu_actions.trace.analysis import TraceSummary, find_straggler, summarise_rank

MEMORY_LIMIT_BYTES = 4 * 1024**3
UNPACKED_LIMIT_BYTES = 1024**3


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read a Chrome trace, plain or gzipped. Raises ValueError naming the file when it is not one or is too large."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            raw = file.read(UNPACKED_LIMIT_BYTES + 1)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path.name}: cannot be read: {error}") from None
    if len(raw) > UNPACKED_LIMIT_BYTES:
        raise ValueError(
            f"{path.name}: is over {UNPACKED_LIMIT_BYTES // 1024**2} MiB unpacked; trace fewer iterations"
        )
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"{path.name}: is not JSON: {error}") from None
    events = document.get("traceEvents") if isinstance(document, dict) else document
    if not isinstance(events, list):
        raise ValueError(f"{path.name}: has no traceEvents list")
    return [event for event in events if isinstance(event, dict)]


def rank_of(path: Path, position: int) -> int:
    """Return the rank in a trace file's name (`...rank1...`), else its position."""
    found = re.search(r"rank[-_]?(\d+)", path.name)
    return int(found.group(1)) if found else position


def main(argv: list[str] | None = None) -> int:
    """Print the TraceSummary as JSON. Exit 0; 2 when no file could be used."""
    parser = argparse.ArgumentParser(prog="python -m gpu_actions.trace", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--top", type=int, default=10)
    options = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    ranks, skipped = [], []
    for position, path in enumerate(options.files):
        try:
            ranks.append(summarise_rank(read_events(path), rank=rank_of(path, position), top=options.top))
        except (ValueError, MemoryError) as error:
            skipped.append(
                str(error) or f"{path.name}: too large for {MEMORY_LIMIT_BYTES // 1024**3} GiB of memory"
            )
    if not ranks:
        print("; ".join(skipped), file=sys.stderr)
        return 2
    ranks.sort(key=lambda rank: rank.rank)
    print(
        TraceSummary(
            ranks=tuple(ranks), straggler=find_straggler(ranks), skipped=tuple(skipped)
        ).model_dump_json()
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
