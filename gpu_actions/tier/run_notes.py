"""Small facts that a run keeps in its own folder, so that a step that is interrupted and run again still knows them.

The run engine repeats a step whose end it did not record. The moment it began and the requests it aborted must not be lost.
"""

import errno
import json
import logging
from pathlib import Path

from gpu_actions.models import JsonObject
from gpu_actions.system.clock import Moment
from gpu_actions.system.files import write_atomically

logger = logging.getLogger(__name__)

BEGAN = "began"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_in_memory: dict[Path, JsonObject] = {}
"""Notes that could not be written because the disk is full."""


def keep(workdir: Path, name: str, value: JsonObject) -> JsonObject:
    """Write a note atomically and return it.

    On a full disk it is kept in this process only: moving the traffic matters more than a note that a kill would lose.
    """
    path = _path(workdir, name)
    try:
        write_atomically(path, json.dumps(value))
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        logger.warning("%s is kept in memory only: %s", path, error)
        _in_memory[path] = value
    else:
        _in_memory.pop(path, None)
    return value


def recall(workdir: Path, name: str) -> JsonObject | None:
    """Return a note of this run, or None if there is none."""
    path = _path(workdir, name)
    if path in _in_memory:
        return _in_memory[path]
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    note: JsonObject = json.loads(text)
    return note


def began(workdir: Path) -> Moment:
    """Return when this run's first step began. The first call sets it."""
    return Moment.model_validate(recall(workdir, BEGAN) or keep(workdir, BEGAN, Moment.now().model_dump()))


def began_at_s(workdir: Path) -> float:
    """Return when this run's first step began in Unix seconds, for people. Durations are `began(...).seconds_ago()`."""
    return began(workdir).wall_s


def _path(workdir: Path, name: str) -> Path:
    return workdir / f".{name}.note.json"
