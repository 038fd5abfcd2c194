"""Summarise traces in a separate process: `python -m gpu_actions.trace FILE... [--top N]` prints JSON.

A trace of 3 MB unpacks to 54 MB and takes seconds to parse, so the bot never does it itself. With the memory limit a
hostile file ends this child, not the host.
"""

import argparse
import re
import resource
import sys
from pathlib import Path

from gpu_actions.trace.analysis import summarise_columns
from gpu_actions.trace.columns import read_trace
from gpu_actions.trace.perfetto import write_perfetto
from gpu_actions.trace.summary import TraceSummary, find_straggler

MEMORY_LIMIT_BYTES = 4 * 1024**3


def rank_of(path: Path, position: int) -> int:
    """Return the rank in a trace file's name (`...rank1...`), else its position."""
    found = re.search(r"rank[-_]?(\d+)", path.name)
    return int(found.group(1)) if found else position


def main(argv: list[str] | None = None) -> int:
    """Print the TraceSummary as JSON. Exit 0; 2 when no file could be used."""
    parser = argparse.ArgumentParser(prog="python -m gpu_actions.trace", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--picture", type=Path, metavar="PNG", help="also draw the summary")
    parser.add_argument(
        "--perfetto", type=Path, metavar="FILE", help="write an export of nsys as a Chrome trace too"
    )
    options = parser.parse_args(argv)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    ranks, skipped = [], []
    for position, path in enumerate(options.files):
        try:
            for rank, columns in read_trace(path, rank=rank_of(path, position)).items():
                ranks.append(summarise_columns(columns, rank=rank, top=options.top))
        except (ValueError, MemoryError) as error:
            skipped.append(
                str(error) or f"{path.name}: too large for {MEMORY_LIMIT_BYTES // 1024**3} GiB of memory"
            )
    if not ranks:
        print("; ".join(skipped), file=sys.stderr)
        return 2
    ranks.sort(key=lambda rank: rank.rank)
    summary = TraceSummary(ranks=tuple(ranks), straggler=find_straggler(ranks), skipped=tuple(skipped))
    print(summary.model_dump_json())
    if options.picture is not None:
        from gpu_actions.trace.picture import draw

        draw(summary, options.picture)
    if options.perfetto is not None:
        write_perfetto(options.files[0], options.perfetto)
    return 0


if __name__ == "__main__":
    sys.exit(main())
