"""`local.jsonl` in the state folder: what `--local` did on this host without the bot's database, hash-chained line by line.

Each line has the hash of the one before it and of its own content, as in the audit trail (`bot.store.audit_chain`). Lines cut
off the end leave an intact chain: only the last hash, kept elsewhere, shows that.
"""

import fcntl
import getpass
import json
import os
import time
from pathlib import Path
from typing import Any

import structlog

from bot.store.audit_chain import GENESIS, chain_hash

log = structlog.get_logger()

NAME = "local.jsonl"


def append(state_dir: Path, **content: Any) -> None:
    """Append one line with the time and the user of the shell, and wait until the disk has it.

    A disk that takes no line is logged: it must not stop a fallback.
    """
    try:
        _append(state_dir, {"at": time.time(), "user": getpass.getuser(), **content})
    except OSError as error:
        log.warning("not recorded", file=str(state_dir / NAME), error=str(error), content=content)


def _append(state_dir: Path, entry: dict[str, Any]) -> None:
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (state_dir / NAME).open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        previous = GENESIS
        for line in file:
            previous = str(_parsed(line).get("hash") or previous)
        file.write(json.dumps({**entry, "hash": chain_hash(previous, entry)}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def verify(state_dir: Path) -> tuple[int, str, str]:
    """Return the number of chained lines, the last hash, and what is wrong; the last is empty if the chain is intact.

    Lines of a version that did not chain them yet may stand before the first chained one.
    """
    try:
        lines = (state_dir / NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return 0, "", ""
    chained, previous = 0, GENESIS
    for number, line in enumerate(lines, 1):
        content = _parsed(line)
        found = str(content.pop("hash", ""))
        if not found and not chained:
            continue
        if chain_hash(previous, content) != found:
            return chained, previous, f"line {number} of {NAME} was changed, or a line before it"
        chained, previous = chained + 1, found
    return chained, previous if chained else "", ""


def _parsed(line: str) -> dict[str, Any]:
    """Return a line's content with its hash, or nothing of a damaged line."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
