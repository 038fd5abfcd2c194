"""The database connection and its transactions: SQLite in WAL mode on one host, PostgreSQL for a fleet.

SQLite write transactions begin IMMEDIATE: one that reads first would otherwise fail with "database is locked" when it
upgrades its lock (https://www.sqlite.org/lang_transaction.html). WAL needs a local disk, not NFS.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bot.store.upgrade import upgrade

BUSY_TIMEOUT_MS = 10_000
POOL_SIZE = 4


class Database:
    """A database engine with explicit transactions: `read()` sees one snapshot, `write()` holds the write lock."""

    def __init__(self, url: str) -> None:
        self.url = _with_driver(url)
        self.engine = sa.create_engine(
            self.url, pool_size=POOL_SIZE, max_overflow=POOL_SIZE, pool_pre_ping=not self.is_sqlite
        )
        self._wal: Path | None = None
        if self.is_sqlite:
            file = Path(str(self.engine.url.database))
            self._wal = file.with_name(f"{file.name}-wal")  # https://www.sqlite.org/walformat.html
            sa.event.listen(self.engine, "connect", _on_connect)
            sa.event.listen(self.engine, "begin", _on_begin)

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    def create(self) -> None:
        """Create the folder, the file (mode 0600, WAL) and the tables, or upgrade them. Raise DatabaseTooNew."""
        if self.is_sqlite:
            create_sqlite_file(self.url)
        upgrade(self.engine)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a read-only transaction on one consistent snapshot."""
        with self.engine.connect().execution_options(reads=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a write transaction: committed at the end of the block, rolled back if it raises."""
        with self.engine.begin() as connection:
            yield connection

    def commit_sign(self) -> object:
        """Return a value that changes with each commit of any process, read without the database; None for PostgreSQL."""
        if self._wal is None:
            return None
        try:
            state = self._wal.stat()
        except FileNotFoundError:
            return 0, 0
        return state.st_mtime_ns, state.st_size

    def close(self) -> None:
        self.engine.dispose()


def create_sqlite_file(url: str) -> None:
    """Create a private SQLite file and switch it to WAL, which is stored in the file."""
    path = Path(str(sa.make_url(url).database))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000)
    try:
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    finally:
        connection.close()
    if mode != "wal":
        raise OSError(
            f"{path}: SQLite uses journal mode {mode!r} instead of WAL: the file system does not support WAL "
            "(is it a network file system?). Set state_dir to a local disk"
        )


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def _on_connect(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions are begun explicitly in _on_begin
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA foreign_keys=ON")


def _on_begin(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
