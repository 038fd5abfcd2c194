"""Record in the audit trail that the settings have changed since the last start: which ones, and their values but no secret."""

from typing import Any

import sqlalchemy as sa

from bot.settings.model import Settings
from bot.store.audit import append
from bot.store.records import TimelineEntry
from bot.store.schema import timeline
from bot.store.store import Store
from gpu_actions.system.redact import redacted_head

KIND = "settings"
MAX_VALUE = 200
MAX_NAMED = 12


def record_settings(settings: Settings, store: Store) -> tuple[str, ...]:
    """Append an entry if the settings differ from those of the last start. Return the names of the changed settings."""
    now = _flat(settings.model_dump(mode="json"))
    with store.database.write() as connection:
        query = (
            sa.select(timeline.c.data).where(timeline.c.kind == KIND).order_by(timeline.c.id.desc()).limit(1)
        )
        before = (connection.execute(query).scalar() or {}).get("settings")
        if before == now:
            return ()
        changed = tuple(
            sorted(name for name in {*now, *(before or {})} if now.get(name) != (before or {}).get(name))
        )
        text = "first start" if before is None else f"changed since the last start: {_named(changed, now)}"
        entry = TimelineEntry(
            at=store.clock(), host="", actor="bot", kind=KIND, text=text, data={"settings": now}
        )
        append(connection, entry)
    return () if before is None else changed


def _named(changed: tuple[str, ...], now: dict[str, str]) -> str:
    shown = [f"{name}={now.get(name, 'removed')}" for name in changed[:MAX_NAMED]]
    more = f" and {len(changed) - MAX_NAMED} more" if len(changed) > MAX_NAMED else ""
    return ", ".join(shown) + more


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Return nested settings as dotted names and short texts. Secrets are masked by their type, and by their form."""
    if isinstance(value, dict):
        parts = [_flat(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        parts = [_flat(item, f"{name}.{index}") for index, item in enumerate(value)]
    else:
        return {name: redacted_head(str(value), MAX_VALUE)}
    return {key: text for part in parts for key, text in part.items()}
