"""`gpu-oncall incident report`: an incident's report from a shell."""

from pathlib import Path

import sqlalchemy as sa
import typer

from bot.incidents.artifacts import ArtifactStore
from bot.incidents.report.collect import write_report
from bot.settings.model import Settings
from bot.store.records import UserError
from bot.store.schema import incidents
from bot.store.store import Store

USAGE_ERROR = 2


def report(settings: Settings, incident_id: str, folder: Path) -> int:
    """Write the report and print its paths. Return the exit code: 0, or 2 if there is no such incident."""
    store = Store(settings.own_database_url)
    try:
        store.create()
        chosen = incident_id or _newest(store)
        for path in write_report(store, ArtifactStore(settings, store), chosen, folder):
            typer.echo(path)
    except UserError as error:
        typer.echo(str(error), err=True)
        return USAGE_ERROR
    finally:
        store.close()
    return 0


def _newest(store: Store) -> str:
    query = sa.select(incidents.c.id).order_by(incidents.c.opened_at.desc()).limit(1)
    with store.database.read() as connection:
        found = connection.execute(query).scalar()
    if found is None:
        raise UserError("There was no incident yet.")
    return str(found)
