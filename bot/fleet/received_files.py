"""A file that a host reports, stored in the bot's artifact store. The host names no path here: it gets the run's own folder."""

import asyncio
import hashlib
import re
from pathlib import Path

from pydantic import Field, ValidationError

from bot.fleet.postbox import Report
from bot.incidents.artifacts import ArtifactStore
from bot.store.store import Store
from gpu_actions.models import Artifact, Frozen

_PLAIN_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}$")


class ReportedFile(Frozen):
    """Which file it is."""

    run_id: str = Field(max_length=32)
    step_id: str = Field(max_length=128)
    artifact: Artifact


async def receive_file(
    store: Store, artifacts: ArtifactStore, folder: Path, report: Report, content: bytes
) -> str:
    """Store a file of a run that the bot started on this host. Return why it was not stored, or an empty string."""
    try:
        file = ReportedFile.model_validate(report.body, extra="ignore")
        row = await asyncio.to_thread(store.row, file.run_id)
    except (ValidationError, LookupError) as error:
        return f"no file of a run that the bot started ({type(error).__name__})"
    if row.host != report.host:
        return f"the run is on {row.host}"
    if not all(_PLAIN_NAME.match(part) for part in (file.run_id, file.step_id, file.artifact.name)):
        return "its name is not a plain file name"
    if hashlib.sha256(content).hexdigest() != file.artifact.sha256:
        return "its sha256 is another one"
    path = folder / row.host / "runs" / file.run_id / file.step_id / file.artifact.name
    await asyncio.to_thread(_write, path, content)
    await artifacts.store(file.run_id, file.step_id, file.artifact.model_copy(update={"path": path}))
    return ""


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(content)
