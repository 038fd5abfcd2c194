"""Ports that stay free until a test uses them: no two test processes, and no outgoing connection, take the same.

A port that the kernel chose is given again as soon as it was closed, to a parallel process or to a client's connection. So
each process claims a range below the kernel's (32768 and up on Linux) for as long as it lives, and hands out its ports in turn.
"""

import fcntl
import itertools
import os
import socket
import tempfile
from pathlib import Path
from typing import IO

FIRST = 10_000
RANGE = 500
RANGES = 32
"""FIRST + RANGE * RANGES: from there on the demonstration takes its own (demo/host/layout.py)."""

_claims: list[IO[str]] = []
"""The locks of this process; they end with it."""


def _claimed() -> int:
    """Claim a range that no living process has, and return its first port. If all are taken, share one."""
    for number in range(RANGES):
        claim = (Path(tempfile.gettempdir()) / f"gpu-oncall-test-ports-{os.getuid()}-{number}").open("w")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.close()
            continue
        _claims.append(claim)
        return FIRST + RANGE * number
    return FIRST + RANGE * (os.getpid() % RANGES)


_first = _claimed()
_offsets = itertools.count(os.getpid() % RANGE)


def free_port() -> int:
    """A loopback port that nothing listens on and that this process gives only once in 500."""
    while True:
        port = _first + next(_offsets) % RANGE
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def free_ports(count: int) -> list[int]:
    """Several of them."""
    return [free_port() for _ in range(count)]
