"""Write an SQLite export of nsys as a Chrome trace, which Perfetto opens: a process per GPU, a track per stream."""

import gzip
import json
import sqlite3
from pathlib import Path

from gpu_actions.trace.columns import nsys_rows


def write_perfetto(export: Path, target: Path) -> None:
    """Write the GPU events of an export, row by row. Raises sqlite3.Error and OSError."""
    connection = sqlite3.connect(f"file:{export}?mode=ro", uri=True)
    try:
        with gzip.open(target, "wt", compresslevel=3) as file:
            file.write('{"displayTimeUnit": "ms", "traceEvents": [')
            separator = "\n"
            for row in nsys_rows(connection):
                event = {
                    "ph": "X", "cat": "kernel", "name": row.name, "pid": f"GPU {row.device}", "tid": f"stream {row.stream}",
                    "ts": row.start_ns / 1e3, "dur": (row.end_ns - row.start_ns) / 1e3,
                }  # fmt: skip
                file.write(separator + json.dumps(event))
                separator = ",\n"
            file.write("\n]}\n")
    finally:
        connection.close()
