"""A unit that keeps its freeze, its scope and its lock in a folder of its own (mode 0700)."""

import errno
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from gpu_actions.serving.interfaces import UnitError
from gpu_actions.serving.units.base import check_reason
from gpu_actions.system.files import write_json
from gpu_actions.system.folder_lock import locked_folder, make_private_folder

logger = logging.getLogger(__name__)


class FolderUnit:
    """The part of a driver that reads and writes its folder."""

    def __init__(self, name: str, *, state_dir: Path) -> None:
        self.name = name
        self.folder = state_dir / name

    async def freeze(self, reason: str) -> None:
        """Refuse starts from now on. A running process goes on. Raises ValueError without a reason."""
        reason = check_reason(reason)
        make_private_folder(self.folder)
        try:
            write_json(self.folder / "frozen", {"reason": reason, "at_s": time.time()})
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            logger.warning("%s: the disk is full, so the freeze has no reason: %s", self.folder, reason)
            (self.folder / "frozen").touch()  # an empty file freezes as well

    @contextmanager
    def _surviving_a_full_disk(self, name: str) -> Iterator[None]:
        """Continue if a note does not fit on the disk: a tier must be stoppable then, too. An empty note counts as one."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            logger.warning("%s: the disk is full, %s was not written", self.folder, name)

    async def unfreeze(self) -> None:
        (self.folder / "frozen").unlink(missing_ok=True)

    async def scope(self) -> dict[str, str]:
        return dict(self._read_json("scope.json").get("variables", {}))

    def _frozen_reason(self) -> str | None:
        if not (self.folder / "frozen").exists():
            return None
        return str(self._read_json("frozen").get("reason", "no reason given"))

    def _refuse_if_frozen(self) -> None:
        if (reason := self._frozen_reason()) is not None:
            raise UnitError(
                f"unit {self.name!r} is frozen ({reason}): nothing may start it until it is unfrozen"
            )

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            data = json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return {}
        except json.JSONDecodeError:
            logger.warning("%s is not JSON; it is treated as empty", self.folder / name)
            return {}
        return data if isinstance(data, dict) else {}

    @asynccontextmanager
    async def _fenced(self, timeout_s: float) -> AsyncIterator[None]:
        """Allow one start or stop at a time, across processes."""
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(locked_folder(self.folder, timeout_s=timeout_s))
            except TimeoutError as error:
                raise UnitError(
                    f"another start or stop of unit {self.name!r} is under way ({error}): wait for that run, or end it"
                ) from None
            yield
