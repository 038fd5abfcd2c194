"""Enrolment of a fleet: the bot's key and certificate authority, the database's roles and policies, and each host's role.

`init`, `add`, `rotate` and `revoke` connect as an administrator of PostgreSQL; the bot and the workers never do. Keys are
written to private files on the bot's machine; a host gets a folder to copy, and its key leaves the bot's machine with it.
"""

import datetime
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from bot.fleet.orders import Signer
from gpu_actions.system.files import write_atomically

HOST_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,39}$")
LABEL = re.compile(r"^[a-z][a-z0-9_]{0,31}=[A-Za-z0-9._-]{1,63}$")
BOT_ROLE = "oncall_bot"
HOST_ROLE = "oncall_host_"
CA_YEARS = 10
HOST_DAYS = 397
CONNECTIONS = 6
"""Connections that one host's role may hold: a worker holds two, and a restart may overlap."""


class CannotEnrol(Exception):
    """A command of the fleet cannot be carried out. The message says what is wrong and what to do."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a fleet on the bot's machine."""

    folder: Path

    @property
    def signing_key(self) -> Path:
        return self.folder / "signing.key"

    @property
    def ca_certificate(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        return self.folder / "ca.key"

    def of(self, name: str) -> tuple[Path, Path]:
        """Return the certificate and the key of a role, as they are kept for copying."""
        return self.folder / name / "client.crt", self.folder / name / "client.key"


def init(admin_url: str, folder: Path, *, server_name: str = "") -> Files:
    """Create what a fleet needs, or bring it up to date: keys that exist are kept."""
    kept = Files(folder=folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not kept.signing_key.exists():
        Signer.create(kept.signing_key)
    if not kept.ca_key.exists():
        _create_authority(kept)
    if not kept.of("bot")[0].exists():
        _create_certificate(kept, BOT_ROLE, *kept.of("bot"))
    if server_name and not kept.of("server")[0].exists():
        _create_certificate(kept, server_name, *kept.of("server"), is_server=True)
    script = files("bot.fleet").joinpath("postbox.sql").read_bytes()
    with _admin(admin_url) as connection:
        connection.execute(script)
    return kept


def add(admin_url: str, folder: Path, host: str, labels: list[str]) -> Path:
    """Enrol a host, or enrol a revoked one again. Return the folder with its certificate and its settings."""
    if not HOST_NAME.match(host):
        raise CannotEnrol(
            f"{host!r} cannot be the name of a host: up to 40 characters a-z, 0-9, _ and -, first a letter or digit"
        )
    for label in labels:
        if not LABEL.match(label):
            raise CannotEnrol(f"{label!r} is not a label: write name=value, for example pool=chat")
    kept = _existing(folder)
    given = dict(label.split("=", 1) for label in labels)
    role = HOST_ROLE + host
    with _admin(admin_url) as connection:
        found = connection.execute("SELECT revoked_at FROM fleet.hosts WHERE name = %s", (host,)).fetchone()
        if found is not None and found["revoked_at"] is None:
            raise CannotEnrol(
                f"{host} is enrolled already; for a new certificate: gpu-oncall fleet rotate {host}"
            )
        _create_role(connection, role)
        connection.execute(
            "INSERT INTO fleet.hosts (name, role, labels) VALUES (%s, %s, %s) ON CONFLICT (name) DO UPDATE "
            "SET labels = excluded.labels, enrolled_at = now(), revoked_at = NULL",
            (host, role, Jsonb(given)),
        )
    _create_certificate(kept, role, *kept.of(host))
    _write_settings(kept, admin_url, host)
    return kept.folder / host


def rotate(admin_url: str, folder: Path, host: str) -> Path:
    """Make a new certificate for a host. The old one works until it expires or the host is revoked: copy the new one first."""
    kept = _existing(folder)
    with _admin(admin_url) as connection:
        _enrolled(connection, host)
    _create_certificate(kept, HOST_ROLE + host, *kept.of(host))
    _write_settings(kept, admin_url, host)
    return kept.folder / host


def revoke(admin_url: str, host: str) -> int:
    """Take a host's rights away at once, and end its connections. Return how many were ended."""
    with _admin(admin_url) as connection:
        _enrolled(connection, host)
        role = HOST_ROLE + host
        connection.execute("UPDATE fleet.hosts SET revoked_at = now() WHERE name = %s", (host,))
        connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(role)))
        connection.execute(sql.SQL("REVOKE oncall_worker FROM {}").format(sql.Identifier(role)))
        connection.execute("DELETE FROM fleet.orders WHERE host = %s", (host,))
        ended = connection.execute(
            "SELECT count(pg_terminate_backend(pid)) AS n FROM pg_stat_activity WHERE usename = %s", (role,)
        ).fetchone()
    return int(ended["n"]) if ended is not None else 0


def enrolled(admin_url: str) -> list[dict[str, Any]]:
    """Return every host with its labels, `revoked_at`, its worker's version and the seconds since its last sign of life."""
    with _admin(admin_url) as connection:
        return connection.execute(
            "SELECT h.name, h.labels, h.revoked_at, s.body->>'version' AS version, "
            "extract(epoch FROM now() - s.at)::float8 AS age_s "
            "FROM fleet.hosts h LEFT JOIN fleet.signs s ON s.host = h.name ORDER BY h.name"
        ).fetchall()


def bot_url(admin_url: str, kept: Files) -> str:
    """Return the URL with which the bot connects."""
    return _url(admin_url, BOT_ROLE, *kept.of("bot"), kept.ca_certificate)


def _existing(folder: Path) -> Files:
    kept = Files(folder=folder)
    if not kept.ca_key.exists():
        raise CannotEnrol(f"{folder} holds no fleet: run `gpu-oncall fleet init` first, on the bot's machine")
    return kept


def _admin(url: str) -> "psycopg.Connection[dict[str, Any]]":
    try:
        return psycopg.connect(url, connect_timeout=5, row_factory=dict_row)
    except psycopg.OperationalError as error:
        raise CannotEnrol(f"the database does not let the administrator in: {str(error).strip()}") from None


def _enrolled(connection: "psycopg.Connection[dict[str, Any]]", host: str) -> None:
    query = "SELECT name FROM fleet.hosts WHERE name = %s AND revoked_at IS NULL"
    if connection.execute(query, (host,)).fetchone() is None:
        raise CannotEnrol(f"{host} is not enrolled; `gpu-oncall fleet list` shows the hosts")


def _create_role(connection: "psycopg.Connection[dict[str, Any]]", role: str) -> None:
    name = sql.Identifier(role)
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is None:
        connection.execute(sql.SQL("CREATE ROLE {}").format(name))
    rights = sql.SQL(
        "ALTER ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT {}"
    )
    connection.execute(rights.format(name, sql.Literal(CONNECTIONS)))
    connection.execute(sql.SQL("GRANT oncall_worker TO {}").format(name))


# -- certificates ------------------------------------------------------------------------------------------------


def _create_authority(kept: Files) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gpu-oncall fleet")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=365 * CA_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_pair(kept.ca_certificate, certificate, kept.ca_key, key)


def _create_certificate(
    kept: Files, name: str, certificate_path: Path, key_path: Path, *, is_server: bool = False
) -> None:
    """Write a certificate of the fleet's authority whose common name is a database role, or the server's host name."""
    authority = x509.load_pem_x509_certificate(kept.ca_certificate.read_bytes())
    authority_key = load_pem_private_key(kept.ca_key.read_bytes(), password=None)
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise CannotEnrol(f"{kept.ca_key} is not the key that `gpu-oncall fleet init` wrote")
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=HOST_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if is_server:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    certificate_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_pair(certificate_path, builder.sign(authority_key, hashes.SHA256()), key_path, key)


def _write_pair(
    certificate_path: Path, certificate: x509.Certificate, key_path: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    write_atomically(key_path, pem)
    key_path.chmod(0o600)
    write_atomically(certificate_path, certificate.public_bytes(Encoding.PEM).decode())


# -- settings ----------------------------------------------------------------------------------------------------


def _url(admin_url: str, role: str, certificate: Path, key: Path, authority: Path) -> str:
    """Return the URL of a role in the administrator's database. Over a Unix socket there is no TLS."""
    given = conninfo_to_dict(admin_url)
    host, port, database = given.get("host") or "", given.get("port"), given.get("dbname") or "postgres"
    if not host or str(host).startswith("/"):
        return f"postgresql://{role}@/{database}?host={host}" + (f"&port={port}" if port else "")
    tls = f"sslmode=verify-full&sslcert={certificate}&sslkey={key}&sslrootcert={authority}"
    return f"postgresql://{role}@{host}:{port or 5432}/{database}?{tls}"


WHERE_ON_THE_HOST = Path("/etc/gpu-oncall/fleet")


def _write_settings(kept: Files, admin_url: str, host: str) -> None:
    """Write the settings of a worker, beside its certificate, as they are to be copied to the host."""
    folder = kept.folder / host
    write_atomically(folder / "ca.crt", kept.ca_certificate.read_text())
    there = WHERE_ON_THE_HOST
    url = _url(admin_url, HOST_ROLE + host, there / "client.crt", there / "client.key", there / "ca.crt")
    key = Signer.load(kept.signing_key).public_key
    write_atomically(
        folder / "fleet.toml",
        f"# Add this to the settings of {host}, whose [[hosts]] section is named {host!r}.\n"
        f'[fleet]\nurl = "{url}"\nbot_keys = ["{key}"]\n'
        '# actions = ["triage", "forensics"]  # what the bot may ask for here; left out: everything\n',
    )
