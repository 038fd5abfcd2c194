"""The artifact store: files of runs, copied to `run/step/name`, checked against their sha256, and reached by a signed link.

A link carries the time until which it works, and an HMAC over that and the path. Its key is created once and kept in the state
folder (mode 0600), unless the settings provide one.
"""

import asyncio
import contextlib
import errno
import hashlib
import hmac
import re
import secrets
import shutil
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import sqlalchemy as sa
import structlog

from bot.incidents.artifact_backends import backend_for
from bot.incidents.artifact_outbox import Outbox
from bot.settings.model import Settings
from bot.store.records import ArtifactRecord, IncidentStatus, RunRecord, UserError
from bot.store.row_to_record import artifact_record
from bot.store.schema import artifacts, incidents, runs
from bot.store.store import Store
from gpu_actions.models import Artifact
from gpu_actions.system.files import write_atomically

log = structlog.get_logger()

SECRET_FILE = "link-secret"  # noqa: S105  (the name of the file, not the secret)
SIGNATURE_CHARACTERS = 32
BLOCK_BYTES = 1024 * 1024
ROWS_AT_ONCE = 500
REFUSED_KEPT_S = 7 * 86_400.0
SPARE_BYTES = 64 * 2**20
"""A full disk is left this much when what it refused is stored at last."""
_SAFE_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}$")


class ArtifactRefused(Exception):
    """An artifact was not stored. The message says why."""


class ArtifactStore:
    """Copies files in, signs their links, opens them for the web server, and removes old ones."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._max_bytes = settings.artifacts.max_mib * 1024 * 1024
        self._retention_s = settings.artifacts.retention_days * 86_400
        self._max_total_bytes = settings.artifacts.max_total_gib * 2**30
        self._link_s = settings.web.link_days * 86_400
        self._public_url = settings.public_url
        url = settings.artifacts.url or str(settings.state_dir / "artifacts")
        self._backend = backend_for(url, endpoint=settings.artifacts.endpoint)
        self.outbox = (
            Outbox(settings.state_dir / "outbox", self._backend) if self._backend.is_remote else None
        )
        self._inbox = self.outbox.folder if self.outbox is not None else self._backend
        self._given_up: set[int] = set()
        configured = settings.web.link_secret.get_secret_value().encode()
        self._secret = configured or _stored_secret(settings.state_dir / SECRET_FILE)

    async def store(self, run_id: str, step_id: str, artifact: Artifact) -> ArtifactRecord:
        """Copy a file in and store its row; the same run, step and name again replaces both.

        A file that cannot be stored (too large, unreadable, changed since it was described) is listed without a link, and
        the timeline says why: a failed copy never fails the step that made the file.
        """
        url = problem = ""
        try:
            await asyncio.to_thread(self._copy, run_id, step_id, artifact)
            url = self.link(run_id, step_id, artifact.name)
        except (ArtifactRefused, OSError) as error:
            problem = str(error)
            log.error("artifact not stored", run=run_id, step=step_id, name=artifact.name, reason=problem)
        return await asyncio.to_thread(self._record, run_id, step_id, artifact, url, problem)

    def link(self, run_id: str, step_id: str, name: str) -> str:
        """Return the signed URL of a stored file, which works for `web.link_days` from now."""
        path = _path(run_id, step_id, name)
        until = str(int(self._store.clock() + self._link_s))
        return f"{self._public_url}/artifacts/{quote(path)}?until={until}&sig={self.signature(path, until)}"

    def fresh_links(self, run: RunRecord) -> list[tuple[ArtifactRecord, str]]:
        """Return the run's stored files, each with a new link."""
        return [
            (record, self.link(run.id, record.step_id, record.artifact.name))
            for record in run.artifacts
            if record.url
        ]

    def signature(self, path: str, until: str = "") -> str:
        """Return the signature of `run/step/name` until a Unix time; links of earlier versions have no time."""
        signed = f"{path}?{until}" if until else path
        return hmac.new(self._secret, signed.encode(), hashlib.sha256).hexdigest()[:SIGNATURE_CHARACTERS]

    def open(self, path: str, signature: str, until: str = "") -> tuple[ArtifactRecord, IO[bytes]]:
        """Open `run/step/name`; the caller closes it. Raise UserError for a wrong or expired link, or a file that is gone."""
        if not hmac.compare_digest(self.signature(path, until).encode(), signature.encode()):
            raise UserError(
                "This link is not one of mine, or it was cut off: open it from the message again."
            )
        run_id, step_id, name = path.split("/", 2)
        query = artifacts.select().where(_is(run_id, step_id, name))
        with self._store.database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None or row.swept_at is not None:
            raise UserError(
                "This file was removed: it is older than artifacts.retention_days in the settings, or made room for newer ones."
            )
        if self._store.clock() > (float(until) if until else row.stored_at + self._link_s):
            raise UserError(
                f"This link has expired: links work for {self._link_s / 86_400:g} days. The file is still stored; "
                f"`gpu-oncall links {run_id}` on the bot's host prints new links."
            )
        try:
            return artifact_record(row), self._open(path)
        except FileNotFoundError:
            raise UserError(
                "This file is missing from the artifact store, or its host has not uploaded it yet."
            ) from None
        except OSError as error:
            raise UserError(f"The artifact store does not answer: {error}. Try again in a minute.") from error

    def read(self, record: ArtifactRecord) -> bytes:
        """Return the content of a stored file, or nothing if it is gone."""
        try:
            with self._open(_path(record.run_id, record.step_id, record.artifact.name)) as file:
                return file.read()
        except (OSError, ArtifactRefused):
            return b""

    def sweep(self) -> int:
        """Remove the files that are older than the retention, and the oldest ones above `artifacts.max_total_gib`.

        Their rows stay. Files of an open incident are never removed. Return how many were removed.
        """
        now = self._store.clock()
        with self._store.database.read() as connection:
            rows = connection.execute(_removable()).all()
            stored = artifacts.select().where(artifacts.c.swept_at.is_(None), artifacts.c.url != "")
            excess = sum(_size(row) for row in connection.execute(stored)) - self._max_total_bytes
        removed = []
        for row in rows:
            if row.stored_at >= now - self._retention_s and excess <= 0:
                continue
            if row.url:
                path = _path(row.run_id, row.step_id, row.name)
                try:
                    self._inbox.remove(path)
                    self._backend.remove(path)
                except OSError as error:
                    log.warning(
                        "an old artifact could not be removed; tried again later", path=path, error=str(error)
                    )
                    continue
                excess -= _size(row)
            removed.append(row.id)
        with self._store.database.write() as connection:
            for first in range(0, len(removed), ROWS_AT_ONCE):
                these = artifacts.c.id.in_(removed[first : first + ROWS_AT_ONCE])
                connection.execute(artifacts.update().where(these).values(swept_at=now))
        return len(removed)

    def deliver(self) -> int:
        """Upload what waits, and store what could not be stored before. Return how many files arrived.

        A file that does not arrive stays on this machine and is tried again; the run's timeline says so once, and says when
        it has arrived.
        """
        arrived = self._store_refused()
        for path, problem, is_news in self.outbox.upload() if self.outbox is not None else ():
            run_id, step_id, name = path.split("/", 2)
            if problem and is_news:
                text = f"{name} is not in the artifact store yet: {problem}; kept on this machine and tried again"
                self._note(run_id, "artifact.waiting", text, step=step_id, name=name)
            elif not problem:
                arrived += 1
                if is_news:
                    self._note(
                        run_id,
                        "artifact.uploaded",
                        f"{name} is in the artifact store now",
                        step=step_id,
                        name=name,
                    )
        return arrived

    def _store_refused(self) -> int:
        """Store the files that were refused, such as those of a full disk, if they are still as their step described them."""
        since = self._store.clock() - REFUSED_KEPT_S
        query = artifacts.select().where(
            artifacts.c.url == "", artifacts.c.swept_at.is_(None), artifacts.c.stored_at > since
        )
        with self._store.database.read() as connection:
            rows = connection.execute(query).all()
        stored = 0
        for record in map(artifact_record, rows):
            path = record.artifact.path
            if (
                record.id in self._given_up
                or record.artifact.size_bytes > self._max_bytes
                or not path.is_file()
            ):
                continue
            if shutil.disk_usage(path.parent).free < record.artifact.size_bytes + SPARE_BYTES:
                continue
            try:
                self._copy(record.run_id, record.step_id, record.artifact)
            except ArtifactRefused:
                self._given_up.add(record.id)  # it has changed since
                continue
            except OSError:
                continue
            url = self.link(record.run_id, record.step_id, record.artifact.name)
            self._record(record.run_id, record.step_id, record.artifact, url, "")
            stored += 1
        return stored

    def _note(self, run_id: str, kind: str, text: str, **data: str) -> None:
        with self._store.change(run_id) as change:
            change.record(kind, text, data=data)

    def _open(self, path: str) -> IO[bytes]:
        """Open a stored file, from this machine if it waits there for its upload."""
        try:
            return self._inbox.open(path, "rb")
        except FileNotFoundError:
            if self._inbox is self._backend:
                raise
            return self._backend.open(path, "rb")

    def _copy(self, run_id: str, step_id: str, artifact: Artifact) -> None:
        path = _path(run_id, step_id, artifact.name)
        if artifact.size_bytes > self._max_bytes:
            raise ArtifactRefused(
                f"{artifact.name} has {artifact.size_bytes / 2**20:.0f} MiB, over artifacts.max_mib "
                f"({self._max_bytes // 2**20}); it stays at {artifact.path}"
            )
        digest = hashlib.sha256()
        size = 0
        try:
            with artifact.path.open("rb") as source, self._inbox.open(f"{path}.part", "wb") as target:
                while block := source.read(BLOCK_BYTES):
                    digest.update(block)
                    size += len(block)
                    target.write(block)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._inbox.remove(f"{path}.part")
            if error.errno == errno.ENOSPC:
                raise ArtifactRefused(
                    f"{artifact.name} is not stored, because the disk is full; it stays at {artifact.path} and is stored "
                    "once there is space: free some"
                ) from error
            raise
        if digest.hexdigest() != artifact.sha256 or size != artifact.size_bytes:
            self._inbox.remove(f"{path}.part")
            raise ArtifactRefused(
                f"{artifact.name} is not the file that the step described: its sha256 is {digest.hexdigest()[:12]} "
                f"instead of {artifact.sha256[:12]}, so it has changed since"
            )
        self._inbox.rename(f"{path}.part", path)

    def _record(
        self, run_id: str, step_id: str, artifact: Artifact, url: str, problem: str
    ) -> ArtifactRecord:
        this = _is(run_id, step_id, artifact.name)
        with self._store.change(run_id) as change:
            values = {
                "artifact": artifact.model_dump(mode="json"),
                "url": url,
                "stored_at": change.at,
                "swept_at": None,
            }
            if change.connection.execute(artifacts.update().where(this).values(**values)).rowcount == 0:
                change.connection.execute(
                    artifacts.insert().values(run_id=run_id, step_id=step_id, name=artifact.name, **values)
                )
            change.record(
                "artifact.stored" if url else "artifact.refused",
                problem or f"{artifact.title or artifact.name} ({artifact.size_bytes} bytes)",
                data={"step": step_id, "name": artifact.name, "sha256": artifact.sha256},
            )
            return artifact_record(change.connection.execute(artifacts.select().where(this)).one())


def _removable() -> sa.Select[Any]:
    """Select the stored artifacts that belong to no open incident, oldest first."""
    is_open = incidents.c.status == IncidentStatus.OPEN.value
    of_open_incidents = (
        sa.select(runs.c.id).join(incidents, incidents.c.id == runs.c.incident_id).where(is_open)
    )
    return (
        artifacts.select()
        .where(artifacts.c.swept_at.is_(None), artifacts.c.run_id.not_in(of_open_incidents))
        .order_by(artifacts.c.stored_at, artifacts.c.id)
    )


def _size(row: Any) -> int:
    return int(row.artifact.get("size_bytes", 0))


def attempt_folder(step_id: str, attempt: int) -> str:
    """Return the step part of a path. Later attempts have their own folder, so that no evidence is overwritten."""
    return step_id if attempt == 1 else f"{step_id}.{attempt}"


def _is(run_id: str, step_id: str, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(artifacts.c.run_id == run_id, artifacts.c.step_id == step_id, artifacts.c.name == name)


def _path(*parts: str) -> str:
    for part in parts:
        if not _SAFE_NAME.match(part):
            raise ArtifactRefused(f"{part!r} is not a plain file name; rename the artifact")
    return "/".join(parts)


def _stored_secret(path: Path) -> bytes:
    if not path.is_file():
        write_atomically(path, secrets.token_hex(32))
    return path.read_bytes().strip()
