"""Small facts that a run keeps in its own folder, so that a step cut in the middle and run again still knows them.

The run engine repeats a step whose end it did not record; when it began and how many requests it cut must not be lost.
"""

import json
from pathlib import Path

from gpu_actions.clock import Moment
from gpu_actions.files import write_atomically
from gpu_actions.models import JsonObject

BEGAN = "began"


def keep(workdir: Path, name: str, value: JsonObject) -> JsonObject:
    """Write a note (whole or not at all) and give it back."""
    write_atomically(_path(workdir, name), json.dumps(value))
    return value


def recall(workdir: Path, name: str) -> JsonObject | None:
    """Give a note of this run, None when there is none."""
    try:
        text = _path(workdir, name).read_text(encoding="utf-8")
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
