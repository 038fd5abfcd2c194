"""A stand-in for nsys with its command line and its traps; what it writes has the layout of nsys's own files.

Sessions are folders beside this file. `launch` runs the application to its end; a report holds its environment in clear.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
MARK = b"NSYSREP\0"


def fail(text: str) -> None:
    print(text)
    sys.exit(1)


def options(argv: list[str], known: dict[str, int]) -> tuple[dict[str, str], list[str]]:
    """Split known options (1: with a value) from the rest; an unknown option ends the program, as in nsys."""
    found: dict[str, str] = {}
    while argv and argv[0].startswith("-"):
        name, equals, value = argv.pop(0).partition("=")
        if name not in known:
            fail(f"unrecognised option '{name}'")
        found[name] = value if equals else argv.pop(0)
    return found, argv


def launch(argv: list[str]) -> None:
    found, app = options(argv, {"--session-new": 1, "--trace": 1})
    if "=" in app[0]:
        fail(f"Executable '{app[0]}' not found")
    session = HERE / "sessions" / found.get("--session-new", "profile-1")
    session.mkdir(parents=True)
    child = subprocess.Popen(app)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    secrets = [f"{name}={value}" for name, value in os.environ.items()]
    (session / "captured.json").write_text(json.dumps([*secrets, *app]))
    code = child.wait()
    for file in session.iterdir():
        file.unlink()
    session.rmdir()
    sys.exit(code)


def session_of(found: dict[str, str]) -> Path:
    session = HERE / "sessions" / found.get("--session", "")
    if "--session" not in found or not session.is_dir():
        fail("Error: the session does not exist.")
    return session


def start(argv: list[str]) -> None:
    known = dict.fromkeys(("--session", "-o", "-f", "--sample", "--cpuctxsw"), 1)
    found, _ = options(argv, known)
    output, session = Path(found["-o"]), session_of(found)
    if not output.parent.is_dir():
        fail(f"Error: the folder {output.parent} does not exist.")
    if (session / "output").exists():
        fail("Error: a collection is already running in this session.")
    (session / "output").write_text(str(output))


def stop(argv: list[str]) -> None:
    found, _ = options(argv, {"--session": 1})
    session = session_of(found)
    if not (session / "output").exists():
        fail("Error: no collection is running in this session.")
    output = (session / "output").read_text()
    (session / "output").unlink()
    ending = "qdstrm" if (HERE / "no_importer").exists() else "nsys-rep"
    entries = "\0".join(json.loads((session / "captured.json").read_text()))
    Path(f"{output}.{ending}").write_bytes(MARK + entries.encode())


def export(argv: list[str]) -> None:
    found, files = options(argv, {"--type": 1, "-o": 1, "--force-overwrite": 1})
    if not files or not Path(files[0]).read_bytes().startswith(MARK):
        fail("Exportation error: not a report")
    with sqlite3.connect(found["-o"]) as connection:
        connection.executescript(
            """
            CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
            CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL
                (start INTEGER, end INTEGER, deviceId INTEGER, streamId INTEGER, shortName INTEGER);
            INSERT INTO StringIds VALUES (1, 'gemm'), (2, 'ncclDevKernel_AllReduce');
            INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES
                (0, 400000, 0, 7, 1), (300000, 500000, 0, 8, 2), (900000, 1000000, 0, 7, 1), (0, 1000000, 1, 8, 2);
            """
        )


if __name__ == "__main__":
    commands = {"launch": launch, "start": start, "stop": stop, "export": export}
    commands[sys.argv[1]](sys.argv[2:])
