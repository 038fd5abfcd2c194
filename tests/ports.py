"""Ports that stay free until a test uses them: no two workers of pytest-xdist, and no outgoing connection, take the same.

A port that the kernel chose is given again as soon as it was closed, to a parallel worker or to a client's connection. So
each process hands out its own range below the kernel's (32768 and up on Linux), each port once.
"""

import itertools
import os
import socket

FIRST = 10_000
RANGE = 2_000
RANGES = 8
"""FIRST + RANGE * RANGES: from there on the demonstration takes its own (demo/host/layout.py)."""

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_offsets = itertools.count(os.getpid() % 500)


def free_port() -> int:
    """A loopback port that nothing listens on and that this process gives only once in 2,000."""
    while True:
        port = FIRST + RANGE * (_worker % RANGES) + next(_offsets) % RANGE
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
