"""The other ranks as child processes of rank 0: started at once, watched, and never left behind.

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

MODULE = "demo.engine"


class Ranks:
    """The processes of ranks 1 and up."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._stopping = False

    def spawn(self, options: Options, arguments: list[str]) -> tuple[int, socket.socket | None]:
        """Start all other ranks with rank 0's own arguments; gives the rendezvous port and the socket on it.

        The main thread must call it: the kernel's death signal is tied to the thread that started a child.
        """
        if options.tensor_parallel_size == 1:
            return 0, None
        listener = socket.create_server(("127.0.0.1", options.dist_port))
        port: int = listener.getsockname()[1]
        for rank in range(1, options.tensor_parallel_size):
            argv = [sys.executable, "-m", MODULE, *arguments, "--rank", str(rank), "--dist-port", str(port)]
            self._processes[rank] = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        return port, listener

    def watch(self, on_death: Callable[[str], None]) -> None:
        """Call `on_death` with one sentence, from another thread, when a rank ends without having been told to."""
        for rank, process in self._processes.items():
            threading.Thread(target=self._wait, args=(rank, process, on_death), daemon=True).start()

    def _wait(self, rank: int, process: "subprocess.Popen[bytes]", on_death: Callable[[str], None]) -> None:
        code = process.wait()
        if self._stopping:
            return
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        on_death(f"rank {rank} (pid {process.pid}) died: {how}; its collectives cannot go on")

    def end(self, *, grace_s: float) -> None:
        """Wait for the ranks to end, and kill what is left after `grace_s`; a stopped (SIGSTOP) one is killed too."""
        self._stopping = True
        deadline = time.monotonic() + grace_s
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for process in self._processes.values():
            process.wait()

    def expect_end(self) -> None:
        """From here on a rank that ends is no accident."""
        self._stopping = True


def die_with_parent() -> None:
    """In a rank: have the kernel kill this process when rank 0 is gone, and leave signals to rank 0, which drains."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("rank 0 is gone already")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
