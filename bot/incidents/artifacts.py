"""The artifact store: files of runs copied under run/step/name, checked against their sha256, and reached by a signed link.

A folder on this machine, or anything fsspec opens (`s3://bucket/prefix`). The link's signature is an HMAC over the path, with
a secret that is made once and kept in the state folder (mode 0600).
"""

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import quote

import sqlalchemy as sa
import structlog

from bot.settings.model import Settings
from bot.store.audit import append
from bot.store.records import ArtifactRecord, UserError
from bot.store.rows import artifact_record
from bot.store.schema import artifacts, runs
from bot.store.store import Store
from gpu_actions.models import Artifact
from gpu_actions.system.files import write_atomically

log = structlog.get_logger()

SECRET_FILE = "link-secret"  # noqa: S105  (the name of the file, not the secret)
SIGNATURE_CHARACTERS = 32
BLOCK_BYTES = 1024 * 1024
_SAFE_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}$")


class ArtifactRefused(Exception):
    """A file was not stored. The message says why."""


class ArtifactStore:
    """Copies files in, signs their links, opens them for the web, and sweeps old ones."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._max_bytes = settings.artifacts.max_mib * 1024 * 1024
        self._retention_s = settings.artifacts.retention_days * 86_400
        self._public_url = settings.public_url
        self._base = settings.artifacts.url or str(settings.state_dir / "artifacts")
        self._remote = "://" in self._base and not self._base.startswith("file://")
        self._secret = settings.web.link_secret.get_secret_value().encode() or _kept_secret(
            settings.state_dir / SECRET_FILE
        )

    async def store(self, run_id: str, step_id: str, artifact: Artifact) -> ArtifactRecord:
        """Copy one file in and keep its row; the same run, step and name again replaces both.

        A file that cannot be stored (too large, changed since it was described, unreadable) is listed without a link, with the
        reason in the timeline: a failed copy never fails the step that made the file.
        """
        url = ""
        reason = ""
        try:
            await asyncio.to_thread(self._copy, run_id, step_id, artifact)
            url = self.link(run_id, step_id, artifact.name)
        except (ArtifactRefused, OSError) as error:
            reason = str(error)
            log.error("artifact not stored", run=run_id, step=step_id, name=artifact.name, reason=reason)
        return await asyncio.to_thread(self._record, run_id, step_id, artifact, url, reason)

    def link(self, run_id: str, step_id: str, name: str) -> str:
        """The signed address of a stored file in the bot's own web."""
        path = _path(run_id, step_id, name)
        return f"{self._public_url}/artifacts/{quote(path)}?sig={self.signature(path)}"

    def signature(self, path: str) -> str:
        """The signature of `run/step/name`, as it stands in the link."""
        return hmac.new(self._secret, path.encode(), hashlib.sha256).hexdigest()[:SIGNATURE_CHARACTERS]

    def open(self, path: str, signature: str) -> tuple[ArtifactRecord, IO[bytes]]:
        """Open `run/step/name` for reading; the caller closes it. Raises UserError for a wrong link or a file that is gone."""
        if not hmac.compare_digest(self.signature(path).encode(), signature.encode()):
            raise UserError(
                "This link is not one of mine, or it was cut short: open it from the message again."
            )
        run_id, step_id, name = path.split("/", 2)
        query = artifacts.select().where(
            artifacts.c.run_id == run_id, artifacts.c.step_id == step_id, artifacts.c.name == name
        )
        with self._store.database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None or row.swept_at is not None:
            raise UserError(
                "This file was removed: it is older than artifacts.retention_days of the settings."
            )
        try:
            return artifact_record(row), self._open(path, "rb")
        except FileNotFoundError:
            raise UserError("This file is missing from the artifact store.") from None

    def sweep(self) -> int:
        """Remove the files that are older than the retention; their rows stay. Gives how many."""
        query = artifacts.select().where(
            artifacts.c.stored_at < self._store.clock() - self._retention_s,
            artifacts.c.swept_at.is_(None),
        )
        with self._store.database.read() as connection:
            old = connection.execute(query).all()
        for row in old:
            if row.url:
                self._remove(_path(row.run_id, row.step_id, row.name))
        with self._store.database.write() as connection:
            connection.execute(
                artifacts.update()
                .where(artifacts.c.id.in_([row.id for row in old]))
                .values(swept_at=self._store.clock())
            )
        return len(old)

    # -- inside --------------------------------------------------------------------------------------------------

    def _copy(self, run_id: str, step_id: str, artifact: Artifact) -> None:
        path = _path(run_id, step_id, artifact.name)
        if artifact.size_bytes > self._max_bytes:
            raise ArtifactRefused(
                f"{artifact.name} has {artifact.size_bytes / 2**20:.0f} MiB, over artifacts.max_mib "
                f"({self._max_bytes // 2**20}); it stays at {artifact.path}"
            )
        digest = hashlib.sha256()
        size = 0
        with artifact.path.open("rb") as source, self._open(f"{path}.part", "wb") as target:
            while block := source.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                target.write(block)
        if digest.hexdigest() != artifact.sha256 or size != artifact.size_bytes:
            self._remove(f"{path}.part")
            raise ArtifactRefused(
                f"{artifact.name} is not the file that was described: sha256 {digest.hexdigest()[:12]} "
                f"instead of {artifact.sha256[:12]}; it changed after the step had described it"
            )
        self._rename(f"{path}.part", path)

    def _record(self, run_id: str, step_id: str, artifact: Artifact, url: str, reason: str) -> ArtifactRecord:
        where = sa.and_(
            artifacts.c.run_id == run_id, artifacts.c.step_id == step_id, artifacts.c.name == artifact.name
        )
        values = {
            "artifact": artifact.model_dump(mode="json"),
            "url": url,
            "stored_at": self._store.clock(),
            "swept_at": None,
        }
        with self._store.change(run_id) as connection:
            if connection.execute(artifacts.update().where(where).values(**values)).rowcount == 0:
                connection.execute(
                    artifacts.insert().values(run_id=run_id, step_id=step_id, name=artifact.name, **values)
                )
            run = connection.execute(runs.select().where(runs.c.id == run_id)).one()
            append(
                connection,
                at=self._store.clock(),
                host=run.host,
                actor="bot",
                kind="artifact.stored" if url else "artifact.refused",
                text=reason or f"{artifact.title or artifact.name} ({artifact.size_bytes} bytes)",
                run_id=run_id,
                incident_id=run.incident_id,
                data={"step": step_id, "name": artifact.name, "sha256": artifact.sha256},
            )
            return artifact_record(connection.execute(artifacts.select().where(where)).one())

    def _local(self, path: str) -> Path:
        return Path(self._base.removeprefix("file://")) / path

    def _open(self, path: str, mode: str) -> IO[bytes]:
        if self._remote:
            import fsspec

            return cast(IO[bytes], fsspec.open(f"{self._base}/{path}", mode).open())
        local = self._local(path)
        if "w" in mode:
            local.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cast(IO[bytes], local.open(mode))

    def _filesystem(self, path: str) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        filesystem, place = url_to_fs(f"{self._base}/{path}")
        return filesystem, str(place)

    def _rename(self, old: str, new: str) -> None:
        if self._remote:
            filesystem, source = self._filesystem(old)
            filesystem.mv(source, self._filesystem(new)[1])
        else:
            self._local(old).replace(self._local(new))

    def _remove(self, path: str) -> None:
        if self._remote:
            filesystem, place = self._filesystem(path)
            if filesystem.exists(place):
                filesystem.rm(place)
            return
        local = self._local(path)
        local.unlink(missing_ok=True)
        for folder in (local.parent, local.parent.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def attempt_folder(step_id: str, attempt: int) -> str:
    """The step part of a path: later attempts have a folder of their own, so that no evidence is written over."""
    return step_id if attempt == 1 else f"{step_id}.{attempt}"


def _path(*parts: str) -> str:
    for part in _wrong(parts):
        raise ArtifactRefused(f"{part!r} is no plain file name; rename the artifact")
    return "/".join(parts)


def _wrong(parts: Iterable[str]) -> list[str]:
    return [part for part in parts if not _SAFE_NAME.match(part)]


def _kept_secret(path: Path) -> bytes:
    if not path.is_file():
        write_atomically(path, secrets.token_hex(32))
    return path.read_bytes().strip()
