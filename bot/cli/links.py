"""`gpu-oncall links RUN`: new links to the files of a run."""

import typer

from bot.incidents.artifacts import ArtifactStore
from bot.settings.model import Settings
from bot.store.store import Store

USAGE_ERROR = 2


def print_links(settings: Settings, run_id: str) -> int:
    """Print a line per file. Return the exit code: 0, or 2 if there is no such run."""
    store = Store(settings.own_database_url)
    try:
        store.create()
        run = store.get(run_id)
        if run is None:
            typer.echo(f"there is no run {run_id}", err=True)
            return USAGE_ERROR
        for record, link in ArtifactStore(settings, store).fresh_links(run):
            typer.echo(f"{record.artifact.title or record.artifact.name}: {link}")
    finally:
        store.close()
    return 0
