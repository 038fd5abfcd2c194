"""The SQLite file that lets a workspace be restarted: JSON documents and file contents, written at every change."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from demo.workspace.records import JsonObject

SCHEMA_VERSION = 1

_SCHEMA = f"""
PRAGMA journal_mode=WAL;
PRAGMA synchronous=NORMAL;
CREATE TABLE IF NOT EXISTS documents (kind TEXT, key TEXT, body TEXT NOT NULL, PRIMARY KEY (kind, key));
CREATE TABLE IF NOT EXISTS contents (file_id TEXT PRIMARY KEY, data BLOB NOT NULL);
PRAGMA user_version={SCHEMA_VERSION};
"""


class StateFile:
    """Documents by kind and key, and file contents by file id. Without a path they live in memory only."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the file. Raises ValueError if it is not a state file of this version."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        # Only the event loop's thread uses the connection; a test may build and run the workspace in two threads.
        self._db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        try:
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if version not in (0, SCHEMA_VERSION):
                raise ValueError(
                    f"the state file {path} has version {version}, this program reads version {SCHEMA_VERSION}; "
                    "choose another --state file"
                )
            self._db.executescript(_SCHEMA)
        except (sqlite3.DatabaseError, ValueError) as error:
            self._db.close()
            if isinstance(error, ValueError):
                raise
            raise ValueError(
                f"the state file {path} is not a workspace state file ({error}); choose another --state file"
            ) from error

    def put(self, kind: str, key: str, body: JsonObject) -> None:
        """Write a document, replacing an earlier one of the same key."""
        self._db.execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (kind, key, json.dumps(body)))

    def remove(self, kind: str, key: str) -> None:
        """Delete a document."""
        self._db.execute("DELETE FROM documents WHERE kind = ? AND key = ?", (kind, key))

    def documents(self, kind: str) -> Iterator[JsonObject]:
        """Yield all documents of a kind, ordered by key (a message's key is its channel, then its ts)."""
        rows = self._db.execute("SELECT body FROM documents WHERE kind = ? ORDER BY key", (kind,))
        for (body,) in rows.fetchall():
            yield json.loads(body)

    def put_content(self, file_id: str, data: bytes) -> None:
        """Write the bytes of an uploaded file."""
        self._db.execute("INSERT OR REPLACE INTO contents VALUES (?, ?)", (file_id, data))

    def content(self, file_id: str) -> bytes | None:
        """Return the bytes of a file, or None if there are none."""
        row = self._db.execute("SELECT data FROM contents WHERE file_id = ?", (file_id,)).fetchone()
        return None if row is None else bytes(row[0])

    def remove_content(self, file_id: str) -> None:
        """Delete the bytes of a file."""
        self._db.execute("DELETE FROM contents WHERE file_id = ?", (file_id,))

    def close(self) -> None:
        """Close the file; it cannot be used afterwards."""
        self._db.close()
