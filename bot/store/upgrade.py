"""Bring a database to this version's schema, or refuse it with a sentence if a newer version has written it.

Before an upgrade of a SQLite database its file is copied beside it, so that one can go back to the version before.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
import structlog

from bot.store.schema import SCHEMA_VERSION, metadata

if TYPE_CHECKING:
    from alembic.config import Config

log = structlog.get_logger()

FIRST_VERSION = "0001"
LOCK_KEY = 7_310_001
"""Key of the PostgreSQL advisory lock: two processes that start at once upgrade one after the other."""

_versions = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""The table in which Alembic keeps the version."""


class DatabaseTooNew(Exception):
    """The database was written by a newer version of gpu-oncall. The message says what to do."""


def upgrade(engine: sa.Engine) -> None:
    """Create the tables of an empty database, or run the missing migrations. Raise DatabaseTooNew."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK_KEY)))
        version = _version(connection)
        if version == SCHEMA_VERSION:
            return
        if version is not None and version > SCHEMA_VERSION:
            raise DatabaseTooNew(_refusal(engine, version))
        if version is None:
            metadata.create_all(connection)
            _stamp(connection)
            return
        _keep_copy(engine, version)
        _migrate(connection, version)
        log.info("the database was upgraded", before=version, now=SCHEMA_VERSION)


def _version(connection: sa.Connection) -> str | None:
    """Return the version of the schema, or None for an empty database."""
    inspector = sa.inspect(connection)
    if inspector.has_table("alembic_version"):
        return str(connection.execute(sa.select(_versions.c.version_num)).scalar_one())
    return FIRST_VERSION if inspector.has_table("runs") else None


def _stamp(connection: sa.Connection) -> None:
    """Record the newest version as Alembic does, which takes 10 MB and is imported only to migrate."""
    _versions.create(connection)
    connection.execute(_versions.insert().values(version_num=SCHEMA_VERSION))


def _migrate(connection: sa.Connection, version: str) -> None:
    from alembic import command

    config = _config(connection)
    if not sa.inspect(connection).has_table("alembic_version"):
        command.stamp(config, version)
    command.upgrade(config, "head")


def _config(connection: sa.Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    return config


def _keep_copy(engine: sa.Engine, version: str) -> None:
    """Copy a SQLite database to `NAME.schema-VERSION`, private and complete."""
    if engine.dialect.name != "sqlite":
        return
    path = Path(str(engine.url.database))
    copy = copy_of(path, version)
    copy.unlink(missing_ok=True)
    copy.touch(mode=0o600)
    source, target = sqlite3.connect(path), sqlite3.connect(copy)
    try:
        source.backup(target)
    finally:
        target.close()
        source.close()


def copy_of(path: Path, version: str) -> Path:
    """Return where the copy from before an upgrade is kept."""
    return path.with_name(f"{path.name}.schema-{version}")


def _refusal(engine: sa.Engine, version: str) -> str:
    database = engine.url.database if engine.dialect.name == "sqlite" else "the database"
    text = (
        f"{database} has schema {version} of a newer gpu-oncall; this version knows schemas up to {SCHEMA_VERSION} and "
        "changes nothing. Install the newer version again"
    )
    copy = copy_of(Path(str(database)), SCHEMA_VERSION)
    if engine.dialect.name == "sqlite" and copy.exists():
        text += f", or go back to the state before its upgrade: put {copy} in its place"
    return f"{text}."
