"""A real PostgreSQL server for a test, from the distribution's package: its own folder, a Unix socket, no TCP port."""

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


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Run a server during the block. Yield the URL of an empty database in it."""
    if (bin_dir := programs()) is None:
        pytest.skip("PostgreSQL is not installed (deploy/packages.sh postgresql)")
    # the server refuses to run as root, and its socket's path must stay under 108 characters
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="gpo-pg-"))
    if user:
        shutil.chown(folder, "postgres")

    def run(*words: str) -> None:
        subprocess.run([*user, *words], check=True, capture_output=True, timeout=120, cwd="/", text=True)

    run(str(bin_dir / "initdb"), "-D", f"{folder}/data", "-A", "trust", "-U", "oncall", "--no-sync")
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    run(str(bin_dir / "pg_ctl"), "-D", f"{folder}/data", "-o", options, "-l", f"{folder}/log", "-w", "start")
    try:
        yield f"postgresql://oncall@/postgres?host={folder}"
    finally:
        run(str(bin_dir / "pg_ctl"), "-D", f"{folder}/data", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
