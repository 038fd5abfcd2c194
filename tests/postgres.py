"""A real PostgreSQL server for a test, from the distribution's package: its own folder, a Unix socket; TCP only if asked."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def programs() -> Path | None:
    """Return the folder of `initdb` and `pg_ctl`, or None if PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Server:
    """A running server. `run` calls one of its programs as its user."""

    def __init__(self, folder: Path, bin_dir: Path) -> None:
        self.folder, self._bin_dir = folder, bin_dir
        # the server refuses to run as root
        self._user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []

    @property
    def url(self) -> str:
        return f"postgresql://oncall@/postgres?host={self.folder}"

    def run(self, program: str, *words: str) -> None:
        argv = [*self._user, str(self._bin_dir / program), *words]
        subprocess.run(argv, check=True, capture_output=True, timeout=120, cwd="/", text=True)

    def install(self, name: str, content: bytes) -> None:
        """Write a file into its data folder, private and its own."""
        path = self.folder / "data" / name
        path.write_bytes(content)
        path.chmod(0o600)
        if self._user:
            shutil.chown(path, "postgres", "postgres")

    def reload(self) -> None:
        self.run("pg_ctl", "-D", f"{self.folder}/data", "reload")


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Run a server during the block. Yield the URL of an empty database in it."""
    with server() as made:
        yield made.url


@contextlib.contextmanager
def server(*, port: int = 0, max_connections: int = 100) -> Iterator[Server]:
    """Run a server during the block, with a TCP port on this machine if one is given."""
    if (bin_dir := programs()) is None:
        pytest.skip("PostgreSQL is not installed (deploy/packages.sh postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="gpo-pg-"))  # its socket's path must stay under 108 characters
    made = Server(folder, bin_dir)
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    data = f"{folder}/data"
    made.run("initdb", "-D", data, "-A", "trust", "-U", "oncall", "--no-sync")
    listen = f"-c listen_addresses=127.0.0.1 -c port={port}" if port else "-c listen_addresses="
    options = (
        f"{listen} -c unix_socket_directories={folder} -c fsync=off -c max_connections={max_connections}"
    )
    made.run("pg_ctl", "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
    try:
        yield made
    finally:
        made.run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
