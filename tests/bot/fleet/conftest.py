"""A fleet in one process: the bot's runs and one host's worker, with toy actions, over a real PostgreSQL."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from bot.fleet import enrolment
from bot.fleet.face import FleetRuns
from bot.fleet.orders import Signer
from bot.fleet.worker_link import WorkerLink
from bot.incidents.artifacts import ArtifactStore
from bot.runs.approvals import Approvals
from bot.runs.runs import Runs
from bot.settings.model import FleetSettings, Settings
from bot.store.store import Store
from tests.bot.toys import build, toy_actions
from tests.postgres import postgresql

ENOUGH_S = 60.0


@pytest.fixture(scope="session")
def admin() -> Iterator[str]:
    """Yield the URL of an administrator of a server that is kept for all tests of a process."""
    with postgresql() as url:
        yield url


@dataclass
class Site:
    """An initialised fleet with the enrolled hosts `toy` and `other`."""

    admin: str
    folder: Path
    kept: enrolment.Files

    @property
    def bot_url(self) -> str:
        return enrolment.bot_url(self.admin, self.kept)

    def host_url(self, name: str) -> str:
        return self.bot_url.replace(enrolment.BOT_ROLE, enrolment.HOST_ROLE + name)

    @property
    def public_key(self) -> str:
        return Signer.load(self.kept.signing_key).public_key


@pytest.fixture
def site(admin: str, tmp_path: Path) -> Site:
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS fleet CASCADE")
    kept = enrolment.init(admin, tmp_path / "keys")
    for name in ("toy", "other"):
        enrolment.add(admin, tmp_path / "keys", name, [f"zone={name}"])
    return Site(admin=admin, folder=tmp_path, kept=kept)


@dataclass
class Bot:
    """The bot's side."""

    runs: FleetRuns
    store: Store
    approvals: Approvals


@asynccontextmanager
async def bot_of(site: Site) -> AsyncIterator[Bot]:
    """Run the bot's side."""
    settings = Settings(
        _env_file=None,
        state_dir=site.folder / "bot",
        fleet=FleetSettings(url=site.bot_url, signing_key=site.kept.signing_key),
    )
    settings.state_dir.mkdir(exist_ok=True)
    store = Store(settings.own_database_url)
    store.create()
    runs = FleetRuns(settings, store=store, artifacts=ArtifactStore(settings, store), actions=toy_actions())
    await runs.launch()
    try:
        yield Bot(runs=runs, store=store, approvals=Approvals(store, settled=runs.decided))
    finally:
        await runs.close()
        store.close()


@asynccontextmanager
async def worker_of(
    site: Site, *, actions: tuple[str, ...] | None = None, approvals: int = 1
) -> AsyncIterator[Runs]:
    """Run the worker of the host `toy`. Its state folder is `toy`, where the toys leave their effects."""
    async with link_of(site, actions=actions, approvals=approvals) as (runs, link):
        await link.start()
        yield runs


@asynccontextmanager
async def link_of(
    site: Site, *, actions: tuple[str, ...] | None = None, approvals: int = 1
) -> AsyncIterator[tuple[Runs, WorkerLink]]:
    """Run the host `toy`, with a link that is not started."""
    settings, store, runs = build(site.folder / "toy", role="all", approvals=approvals)
    fleet = FleetSettings.model_construct(
        url=site.host_url("toy"), bot_keys=(site.public_key,), actions=actions, max_file_mib=16
    )
    settings = settings.model_copy(update={"fleet": fleet})
    link = WorkerLink(settings, runs=runs, store=store, state=_no_state)
    await runs.launch()
    try:
        yield runs, link
    finally:
        await link.close()
        await runs.close()
        store.close()


async def _no_state() -> dict[str, object]:
    return {"tier": "tp"}


async def until(true: Callable[[], object]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + ENOUGH_S
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
