"""Kill the children of this process when it dies, even by kill -9, which runs no `finally`.

One small shell (1 MB) reads the active process groups from a pipe and kills them when the pipe closes with its writer.
PR_SET_PDEATHSIG would need code between fork and exec, and does not reach grandchildren (prctl(2)).
"""

import contextlib
import logging
import subprocess
import threading
from collections.abc import Iterator

logger = logging.getLogger(__name__)

KEEPER = """
groups=' '
while read -r word group; do
    case $word in
        hold) groups="$groups$group " ;;
        free) case $groups in *" $group "*) groups="${groups%% $group *} ${groups#* $group }" ;; esac ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
"""
"""POSIX sh. `groups` always begins and ends with a space, so that only whole numbers match."""


class Leash:
    """The keeper of this process's children. It starts with the first child and ends with this process."""

    def __init__(self) -> None:
        self._keeper: subprocess.Popen[bytes] | None = None
        self._held: set[int] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def holding(self, pgid: int) -> Iterator[None]:
        """Have a process group killed if this process dies meanwhile. Leave the context only after the group has ended."""
        with self._lock:
            self._held.add(pgid)
            self._send(f"hold {pgid}\n")
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(pgid)
                self._send(f"free {pgid}\n")

    def _send(self, line: str) -> None:
        try:
            if self._keeper is None or self._keeper.poll() is not None:
                self._start()
            else:
                self._write(line)
        except OSError as error:
            # Go on without it: the child merely outlives a kill of this process.
            logger.warning("children of this process would outlive a kill -9 of it: %s", error)

    def _start(self) -> None:
        """Start a keeper with all groups held now, in place of one that was killed."""
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            bufsize=0,
            start_new_session=True,  # a signal to our group must not end it first
        )
        self._write("".join(f"hold {pgid}\n" for pgid in sorted(self._held)))

    def _write(self, text: str) -> None:
        assert self._keeper is not None  # noqa: S101
        assert self._keeper.stdin is not None  # noqa: S101
        self._keeper.stdin.write(text.encode())


LEASH = Leash()
"""The only leash of this process."""
