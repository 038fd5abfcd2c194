"""Small facts that a run keeps in its own folder, so that a step cut in the middle and run again still knows them.

The run engine repeats a step whose end it did not record; when it began and how many requests it cut must not be lost.
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
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_remembered: dict[Path, JsonObject] = {}
"""Notes that found no room on the disk."""


def keep(workdir: Path, name: str, value: JsonObject) -> JsonObject:
    """Write a note (whole or not at all) and give it back. On a full disk this process remembers it: the host's traffic is
    worth more than what a kill at this moment would make the run forget."""
    path = _path(workdir, name)
    try:
        write_atomically(path, json.dumps(value))
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        logger.warning("%s is only remembered: %s", path, error)
        _remembered[path] = value
    else:
        _remembered.pop(path, None)
    return value


def recall(workdir: Path, name: str) -> JsonObject | None:
    """Give a note of this run, None when there is none."""
    path = _path(workdir, name)
    if path in _remembered:
        return _remembered[path]
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    note: JsonObject = json.loads(text)
    return note


def began(workdir: Path) -> Moment:
    """When this run's first step began; the first caller sets it."""
    return Moment.model_validate(recall(workdir, BEGAN) or keep(workdir, BEGAN, Moment.now().model_dump()))


def began_at_s(workdir: Path) -> float:
    """The same in Unix seconds, for people; durations are `began(...).seconds_ago()`."""
    return began(workdir).wall_s


def _path(workdir: Path, name: str) -> Path:
    return workdir / f".{name}.note.json"
