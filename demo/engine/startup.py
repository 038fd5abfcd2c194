"""Start-up of the engine: its error, and how long each phase takes."""

import contextlib
import logging
import time
from collections.abc import Iterator

log = logging.getLogger(__name__)


class StartError(Exception):
    """Raised when the engine cannot start as asked. The message says why and what to change."""


@contextlib.contextmanager
def timed_phase(name: str) -> Iterator[None]:
    """Log how long the block took."""
    began = time.monotonic()
    yield
    log.info("start-up: %s took %.2f s", name, time.monotonic() - began)
