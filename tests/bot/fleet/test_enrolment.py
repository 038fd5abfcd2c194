"""Enrolment from a shell, over TLS with client certificates, as a real PostgreSQL checks them."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

from bot.cli.doctor.fleet import check_fleet
from bot.cli.main import app
from bot.fleet import enrolment
from bot.settings.model import FleetSettings, Settings
from tests.bot.toys import toy_settings
from tests.ports import free_port
from tests.postgres import Server, server

HBA = """
local all oncall trust
hostssl all oncall 127.0.0.1/32 trust
hostssl all oncall_bot,+oncall_worker all cert
host all oncall_bot,+oncall_worker all reject
"""


@dataclass
class Shell:
    """The command line, on a folder of keys and a server with TLS."""

    folder: Path
    database: Server
    port: int

    @property
    def admin(self) -> str:
        return f"postgresql://oncall@localhost:{self.port}/postgres"

    def fleet(self, *words: str, fails: bool = False) -> str:
        """Run a command of the fleet and return what it printed."""
        keys = ("--folder", str(self.folder)) if words[0] in ("init", "add", "rotate") else ()
        done = CliRunner().invoke(app, ["fleet", *words, "--admin", self.admin, *keys])
        assert (done.exit_code != 0) is fails, done.output
        return done.output

    def url_of(self, host: str) -> str:
        """Return the URL in a host's settings, with the files where they are now."""
        settings = tomllib.loads((self.folder / host / "fleet.toml").read_text())
        url = str(settings["fleet"]["url"])
        return url.replace(str(enrolment.WHERE_ON_THE_HOST), str(self.folder / host))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder, port = tmp_path_factory.mktemp("fleet") / "keys", free_port()
    with server(port=port) as database:
        made = Shell(folder=folder, database=database, port=port)
        kept = enrolment.init(f"{database.url}&port={port}", folder, server_name="localhost")
        certificate, key = kept.of("server")
        database.install("server.crt", certificate.read_bytes())
        database.install("server.key", key.read_bytes())
        database.install("fleet-ca.crt", kept.ca_certificate.read_bytes())
        database.install("pg_hba.conf", HBA.encode())
        with psycopg.connect(f"{database.url}&port={port}", autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET ssl_ca_file = 'fleet-ca.crt'")
            connection.execute("ALTER SYSTEM SET ssl = on")
        database.reload()
        yield made


def me(url: str) -> str:
    with psycopg.connect(url, connect_timeout=10) as connection:
        row = connection.execute("SELECT fleet.me()").fetchone()
    return str(row[0]) if row else ""


async def test_a_fleet_is_made_and_a_host_enrolled_renewed_and_revoked_from_a_shell(shell: Shell) -> None:
    said = shell.fleet("init")
    settings = tomllib.loads(said[said.index("[fleet]") : said.index("PostgreSQL must")])["fleet"]
    assert "sslmode=verify-full" in settings["url"]
    assert (shell.folder / "signing.key").stat().st_mode & 0o077 == 0
    key_before = (shell.folder / "signing.key").read_bytes()
    shell.fleet("init")  # may be repeated; keys are kept
    assert (shell.folder / "signing.key").read_bytes() == key_before

    said = shell.fleet("add", "toy", "--label", "pool=chat", "--label", "zone=z1")
    assert "toy is enrolled" in said
    assert (shell.folder / "toy" / "client.key").stat().st_mode & 0o077 == 0
    assert me(shell.url_of("toy")) == "toy"
    assert "enrolled already" in shell.fleet("add", "toy", fails=True)
    assert "cannot be the name of a host" in shell.fleet("add", "Toy; DROP ROLE x", fails=True)
    assert "is not a label" in shell.fleet("add", "two", "--label", "pool", fails=True)
    shell.fleet("add", "two")
    listed = shell.fleet("list")
    assert "pool=chat zone=z1" in listed and "never" in listed

    # both sides say what is right and what is missing
    bot = Settings(_env_file=None, state_dir=shell.folder, fleet=FleetSettings(**settings))
    checks = {check.name: check for check in await check_fleet(bot)}
    assert checks["fleet.url"].status == "ok"
    assert checks["fleet.toy"].status == "warning"
    worker = tomllib.loads((shell.folder / "toy" / "fleet.toml").read_text())["fleet"]
    host = FleetSettings(url=shell.url_of("toy"), bot_keys=tuple(worker["bot_keys"]))
    checks = {
        check.name: check
        for check in await check_fleet(toy_settings(shell.folder).model_copy(update={"fleet": host}))
    }
    assert {name: check.status for name, check in checks.items()} == {"fleet.url": "ok", "fleet.clock": "ok"}
    other = FleetSettings(url=shell.url_of("two"), bot_keys=("bad",))
    checks = {
        check.name: check
        for check in await check_fleet(toy_settings(shell.folder).model_copy(update={"fleet": other}))
    }
    assert checks["fleet.bot_keys"].status == "failed"
    assert "belongs to the host 'two', this is 'toy'" in checks["fleet.url"].detail

    # a certificate is worth its own role, no other one, and nothing without its key or over another authority
    url = shell.url_of("toy")
    for wrong in (
        url.replace("oncall_host_toy@", "oncall_host_two@"),
        url.replace("oncall_host_toy@", "oncall_bot@"),
        url.replace(f"sslcert={shell.folder}/toy", "sslcert=/nowhere"),
        url.replace("sslmode=verify-full", "sslmode=disable"),
    ):
        with pytest.raises(psycopg.OperationalError):
            me(wrong)
    foreign = enrolment.Files(folder=shell.folder.parent / "foreign")
    foreign.folder.mkdir()
    enrolment._create_authority(foreign)
    enrolment._create_certificate(foreign, "oncall_host_toy", *foreign.of("toy"))
    with pytest.raises(psycopg.OperationalError):
        me(
            url.replace(f"sslcert={shell.folder}", f"sslcert={foreign.folder}").replace(
                f"sslkey={shell.folder}", f"sslkey={foreign.folder}"
            )
        )

    # a renewed certificate works; a revoked host is out at once, with its open connections
    shell.fleet("rotate", "toy")
    with psycopg.connect(url) as held:
        assert "1 of its connections were ended" in shell.fleet("revoke", "toy")
        with pytest.raises(psycopg.Error):
            held.execute("SELECT 1 FROM fleet.orders")
    with pytest.raises(psycopg.OperationalError):
        me(url)
    (out,) = await check_fleet(toy_settings(shell.folder).model_copy(update={"fleet": host}))
    assert "does not let this role in" in out.detail
    assert "revoked" in shell.fleet("list")
    assert "not enrolled" in shell.fleet("revoke", "toy", fails=True)
    shell.fleet("add", "toy")
    assert me(url) == "toy"
