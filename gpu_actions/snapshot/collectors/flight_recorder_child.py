"""The child that parses dumps of PyTorch's flight recorder: `python -m ... FILE...` prints one JSON object per file, with the
newest collective of each group; with `--whole` first, all that the dump says, with its newest entries.

A dump is a pickle, and a pickle can run any code. This unpickler refuses every class and function, so only plain data comes
out, in a process with limits of memory, time and files. It imports only the standard library.
"""

import io
import json
import pickle
import resource
import sys
from pathlib import Path
from typing import Any, NoReturn

MEMORY_BYTES = 1024**3
CPU_S = 10
MAX_GROUPS = 64
MAX_ENTRIES = 100
"""Entries of a rank that `whole` keeps. PyTorch records 2000 by default; what a hang waits for is among the last."""


class PlainData(pickle.Unpickler):
    """An unpickler without any global: dicts, lists, tuples, strings and numbers only."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"the dump names {module}.{name}, which plain data does not")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("the dump refers to data outside of it")


def last_entries(dump: Any) -> list[dict[str, Any]]:
    """Return the newest collective of each process group. Raises ValueError for anything but a dump."""
    entries = dump.get("entries") if isinstance(dump, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it has no list of entries")
    newest: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("is_p2p"):
            continue
        sequence = entry.get("collective_seq_id", entry.get("seq_id"))
        group = entry.get("process_group")
        label = (
            str(group[-1] or group[0])
            if isinstance(group, list | tuple) and group
            else str(entry.get("pg_id", 0))
        )
        if not isinstance(sequence, int):
            continue
        if label not in newest or sequence >= newest[label]["sequence"]:
            newest[label] = {
                "group": label[:64],
                "sequence": sequence,
                "operation": str(entry.get("profiling_name", "?"))[:64],
                "sizes": str(entry.get("input_sizes", ""))[:128],
                "state": str(entry.get("state", "?"))[:32],
            }
    return list(newest.values())[:MAX_GROUPS]


def whole(dump: Any) -> dict[str, Any]:
    """Return everything in a dump, with its newest entries. Raises ValueError for anything but a dump."""
    entries = dump.get("entries") if isinstance(dump, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it has no list of entries")
    kept = {str(name): value for name, value in dump.items() if name != "entries"}
    return {**kept, "entries_in_dump": len(entries), "entries": entries[-MAX_ENTRIES:]}


def main(argv: list[str]) -> int:
    """Print what each file says, or why it says nothing."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    says_all = argv[:1] == ["--whole"]
    for name in argv[says_all:]:
        try:
            dump = PlainData(io.BytesIO(Path(name).read_bytes())).load()
            found: dict[str, Any] = whole(dump) if says_all else {"entries": last_entries(dump)}
            text = json.dumps(found, default=str)
        except Exception as error:  # noqa: BLE001  (a broken dump may raise anything; it is named and the others are read)
            text = json.dumps({"entries": [], "problem": f"{type(error).__name__}: {error}"[:200]})
        print(text, flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
