"""`gpu-oncall audit`: check the hash chain of the audit trail, and export the trail as JSON lines."""

import typer

from bot.settings.model import Settings
from bot.store import local_record
from bot.store.store import Store
from bot.store.upgrade import DatabaseTooNew

USAGE_ERROR = 2


def _store(settings: Settings) -> Store:
    store = Store(settings.own_database_url)
    try:
        store.create()
    except DatabaseTooNew as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(USAGE_ERROR) from None
    return store


def verify(settings: Settings, *, expected: str = "") -> int:
    """Print whether the trail is intact, and still has the hash `expected`. Return the exit code: 0 intact, 1 changed."""
    store = _store(settings)
    try:
        report = store.audit.verify(expected=expected)
    finally:
        store.close()
    lines, last, changed = local_record.verify(settings.state_dir)
    if report.problem:
        typer.echo(
            f"CHANGED: {report.problem}. Find out who can write the database, and restore it from a backup."
        )
    if changed:
        typer.echo(f"CHANGED: {changed}. Find out who can write {settings.state_dir}.")
    if report.problem or changed:
        return 1
    older = (
        f"; older entries, up to {report.removed_through}, were removed by retention"
        if report.removed_through
        else ""
    )
    typer.echo(f"intact: {report.entries} entries{older}. Last hash: {report.last_hash}")
    if lines:
        typer.echo(f"intact: {lines} lines of {local_record.NAME}. Last hash: {last}")
    typer.echo("Keep a hash elsewhere: a later check must still find it, or a whole chain was written anew.")
    return 0


def export(settings: Settings, *, since: float) -> int:
    """Print the entries since a Unix time, oldest first, one JSON object per line."""
    store = _store(settings)
    try:
        for line in store.audit.json_lines(since=since):
            typer.echo(line)
    finally:
        store.close()
    return 0
