"""Children that die with this process, also when it is killed: kill -9 runs no `finally`, and systemd is not everywhere.

One small shell per process (1 MB) reads the groups that are at work from a pipe; when the pipe closes with its writer,
it ends them. PR_SET_PDEATHSIG would need code between fork and exec, and misses grandchildren (engine.md, trap 6).
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
"""POSIX sh. `groups` always begins and ends with a space, so that a number is found whole."""


class Leash:
    """The keeper of this process's children. Started with the first child; ends by itself with this process."""

    def __init__(self) -> None:
        self._keeper: subprocess.Popen[bytes] | None = None
        self._held: set[int] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def holding(self, pgid: int) -> Iterator[None]:
        """Have the process group killed should this process die in the meantime. Leave it only when the group is gone."""
        with self._lock:
            self._held.add(pgid)
            self._tell(f"hold {pgid}\n")
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(pgid)
                self._tell(f"free {pgid}\n")

    def _tell(self, line: str) -> None:
        try:
            if self._keeper is None or self._keeper.poll() is not None:
                self._start()
            else:
                self._write(line)
        except OSError as error:
            # The child is worth more than its leash: without one it only outlives a kill of this process.
            logger.warning("children of this process would outlive a kill -9 of it: %s", error)

    def _start(self) -> None:
        """Start a keeper that knows all that is held now; one that was killed is replaced so."""
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", KEEPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            bufsize=0,
            start_new_session=True,  # what is sent to our group must not end it first
        )
        self._write("".join(f"hold {pgid}\n" for pgid in sorted(self._held)))

    def _write(self, text: str) -> None:
        assert self._keeper is not None  # noqa: S101
        assert self._keeper.stdin is not None  # noqa: S101
        self._keeper.stdin.write(text.encode())


LEASH = Leash()
"""One for the process; nothing is started before the first child is."""
