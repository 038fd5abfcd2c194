"""Reading processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gpu_actions.system.proc import (
    family,
    process_table,
    read_command,
    read_environment,
    read_file,
    read_process,
    send,
    tree_of,
)

PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process with one child that waits for input."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, env={"SEEN": "a=b", "PATH": "/usr/bin"}
    )
    try:
        while len(tree_of([process.pid], process_table())) < 2:
            assert process.poll() is None
        yield process
    finally:
        for row in tree_of([process.pid], process_table()):
            os.kill(row.pid, signal.SIGKILL)
        process.wait()


def test_a_tree_has_the_root_first_and_its_session(parent: subprocess.Popen[bytes]) -> None:
    table = process_table()
    rows = tree_of([parent.pid], table)
    assert rows[0].pid == parent.pid
    assert {row.parent for row in rows[1:]} == {parent.pid}
    assert rows[0].session == os.getsid(0)
    assert family(table, [parent.pid]).keys() == {row.pid for row in rows}
    assert os.getpid() in family(table, [], os.getsid(0))


def test_command_and_environment_of_a_process_are_read(parent: subprocess.Popen[bytes]) -> None:
    assert read_command(parent.pid)[1:] == ["-c", PARENT]
    assert read_environment(parent.pid)["SEEN"] == "a=b"
    assert read_file(parent.pid, "status").startswith(b"Name:")


def test_a_process_that_is_gone_is_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert read_process(process.pid) is None
    assert read_command(process.pid) == []
    with pytest.raises(OSError):
        read_environment(process.pid)


def test_a_signal_never_reaches_another_process_with_the_same_pid(parent: subprocess.Popen[bytes]) -> None:
    row = read_process(parent.pid)
    assert row is not None
    send(row._replace(started=row.started - 1), signal.SIGKILL)
    assert parent.poll() is None
    send(row, signal.SIGKILL)
    assert parent.wait(timeout=10) == -signal.SIGKILL
