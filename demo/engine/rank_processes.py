"""The other ranks as child processes of rank 0.

They stay in rank 0's session and process group, so that what stops the unit stops them, and their command lines carry
`--rank K`, so that triage can name them. The kernel kills them when rank 0 dies.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from demo.engine.options import Options

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


class RankProcesses:
    """The processes of ranks 1 and up."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._stopping = False

    def spawn(self, options: Options, arguments: list[str]) -> tuple[int, socket.socket | None]:
        """Start all other ranks with rank 0's own arguments. Return the rendezvous port and the socket that listens on it.

        Must be called on the main thread: the kernel's death signal is tied to the thread that started a child.
        """
        if options.tensor_parallel_size == 1:
            return 0, None
        listener = socket.create_server(("127.0.0.1", options.dist_port))
        port: int = listener.getsockname()[1]
        for rank in range(1, options.tensor_parallel_size):
            argv = [sys.executable, "-m", "demo.engine", *arguments]
            argv += ["--rank", str(rank), "--dist-port", str(port)]
            self._processes[rank] = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        return port, listener

    def watch(self, on_death: Callable[[str], object]) -> None:
        """Call `on_death` with one sentence, from another thread, when a rank ends unexpectedly."""
        for rank, process in self._processes.items():
            threading.Thread(target=self._wait, args=(rank, process, on_death), daemon=True).start()

    def _wait(self, rank: int, process: "subprocess.Popen[bytes]", on_death: Callable[[str], object]) -> None:
        code = process.wait()
        if self._stopping:
            return
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        on_death(f"rank {rank} (pid {process.pid}) died: {how}; its collectives cannot continue")

    def expect_end(self) -> None:
        """Stop reporting ranks that end."""
        self._stopping = True

    def end(self, *, grace_s: float) -> None:
        """Wait for the ranks to end. Kill those left after `grace_s`, frozen (SIGSTOP) ones included."""
        self._stopping = True
        deadline = time.monotonic() + grace_s
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for process in self._processes.values():
            process.wait()


def die_with_rank_0() -> None:
    """In a rank: have the kernel kill this process when rank 0 is gone, and leave SIGTERM to rank 0, which drains."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("rank 0 is gone already")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
