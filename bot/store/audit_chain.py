"""The hash chain of the audit trail: a changed, removed, inserted or reordered entry breaks it.

Each hash is the SHA-256 of the hash before it and of the entry's canonical JSON. The table `audit_chain` has the hash of the
newest entry, so that entries cut off the end are noticed too. Whoever can write the database can also write a new chain:
keep the line that `gpu-oncall audit verify` prints somewhere else to notice that.
"""

import hashlib
import json
from typing import Any

GENESIS = "0" * 64
CONTENT = ("at", "incident_id", "run_id", "host", "actor", "kind", "text", "data")


def chain_hash(previous: str, content: dict[str, Any]) -> str:
    """Return the hash of an entry that follows the entry with the hash `previous`."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{previous}\n{canonical}".encode()).hexdigest()


def stored_content(row: Any) -> dict[str, Any]:
    """Return the hashed part of a row of the timeline."""
    return {name: row._mapping[name] for name in CONTENT}
