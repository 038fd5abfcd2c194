"""Where the workspace keeps its state so that it can be restarted: one SQLite file of JSON documents and file contents.

Written through at every change; the reading side is a single load at start. Without a file nothing is kept.
"""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from gpu_actions.models import JsonObject

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (kind TEXT, key TEXT, body TEXT NOT NULL, PRIMARY KEY (kind, key));
CREATE TABLE IF NOT EXISTS contents (file_id TEXT PRIMARY KEY, data BLOB NOT NULL);
"""


class Journal:
    """Documents by (kind, key) and contents by file id. With `path=None` every write is dropped."""

    def __init__(self, path: Path | None) -> None:
        """Opens or creates the file. Raises ValueError when it is not a state file of this version."""
        self._db: sqlite3.Connection | None = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # The event loop's thread alone uses the connection; a test may build and run the workspace in two threads.
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            version = int(database.execute("PRAGMA user_version").fetchone()[0])
            if version not in (0, SCHEMA_VERSION):
                raise ValueError(
                    f"the state file {path} has version {version}, this program reads version {SCHEMA_VERSION}; "
                    "give another --state file"
                )
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.executescript(_SCHEMA)
            database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            database.close()
            raise ValueError(
                f"the state file {path} is not a workspace state file ({error}); give another --state file"
            ) from error
        except ValueError:
            database.close()
            raise
        self._db = database

    def put(self, kind: str, key: str, body: JsonObject) -> None:
        """Write one document, replacing what was there."""
        if self._db is not None:
            self._db.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (kind, key, json.dumps(body))
            )

    def remove(self, kind: str, key: str) -> None:
        """Forget one document."""
        if self._db is not None:
            self._db.execute("DELETE FROM documents WHERE kind = ? AND key = ?", (kind, key))

    def documents(self, kind: str) -> Iterator[JsonObject]:
        """All documents of a kind, by key (message keys begin with the channel, then the time)."""
        if self._db is not None:
            rows = self._db.execute("SELECT body FROM documents WHERE kind = ? ORDER BY key", (kind,))
            for (body,) in rows.fetchall():
                yield json.loads(body)

    def put_content(self, file_id: str, data: bytes) -> None:
        """Write the bytes of an uploaded file."""
        if self._db is not None:
            self._db.execute("INSERT OR REPLACE INTO contents VALUES (?, ?)", (file_id, data))

    def content(self, file_id: str) -> bytes | None:
        """The bytes of a file, None where they were never written."""
        if self._db is None:
            return None
        row = self._db.execute("SELECT data FROM contents WHERE file_id = ?", (file_id,)).fetchone()
        return None if row is None else bytes(row[0])

    def remove_content(self, file_id: str) -> None:
        """Forget the bytes of a file."""
        if self._db is not None:
            self._db.execute("DELETE FROM contents WHERE file_id = ?", (file_id,))

    def close(self) -> None:
        """Close the file; later writes are dropped."""
        if self._db is not None:
            self._db.close()
            self._db = None
