"""The commands unit: a tier behind anything else (a container, a scheduler, a script), by fixed commands in the settings.

No shell is involved, and nothing typed in Slack reaches a command line. Without a `freeze` command a freeze stops only our own
starts. A command must hand the tier over to something in another session (a container engine, a daemon), because the command's
own process group ends with it.
"""

import asyncio
import logging
import shlex
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import psutil
from pydantic import Field

from gpu_actions.serving.interfaces import StopReport, UnitError, UnitState
from gpu_actions.serving.setup_checks import SetupCheck, failed, ok
from gpu_actions.serving.units.base import UnitConfig, missing_program
from gpu_actions.serving.units.folder import FolderUnit
from gpu_actions.system.files import write_atomically, write_json
from gpu_actions.system.folder_lock import make_private_folder
from gpu_actions.system.proc import ProcessRow, family, is_same, process_table, send
from gpu_actions.system.processes import ProcessResult, child_environment, run_process
from gpu_actions.system.redact import redacted_head

logger = logging.getLogger(__name__)

QUICK_TIMEOUT_S = 20.0
"""For commands that only read."""

START_TIMEOUT_S = 120.0
"""A start command hands over to a background process; the engine's readiness is awaited elsewhere."""

SETTLE_S = 0.5
"""How long processes have after a stop command that used up the whole grace."""

GONE_TIMEOUT_S = 10.0
"""How long processes may take to end after SIGKILL."""


class CommandsUnit(UnitConfig):
    """Fixed commands for anything else: never a shell string, never text from Slack."""

    driver: Literal["commands"] = "commands"
    start: tuple[str, ...] = Field(min_length=1)
    stop: tuple[str, ...] = Field(min_length=1)
    is_active: tuple[str, ...] = Field(min_length=1, description="exit code 0 = active")
    freeze: tuple[str, ...] = ()
    unfreeze: tuple[str, ...] = ()
    set_environment: tuple[str, ...] = Field(
        default=(), description="its last argument is the path of an env file"
    )
    main_pid: tuple[str, ...] = Field(default=(), description="prints the main process id")
    log: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)

    def build(self, name: str, *, state_dir: Path) -> "CommandUnit":
        return CommandUnit(name, self, state_dir=state_dir)

    def obstacle(self) -> str:
        return missing_program(self.start[0], self.env)

    async def setup_checks(self, name: str, *, group_stop_hazard: str) -> list[SetupCheck]:
        commands = {"start": self.start, "stop": self.stop, "is_active": self.is_active}
        missing = {verb: argv[0] for verb, argv in commands.items() if shutil.which(argv[0]) is None}
        return [
            failed(f"{name}.{verb}", f"{program} is not on this machine", "correct the path")
            for verb, program in missing.items()
        ] or [ok(name, "its commands are there")]


class CommandUnit(FolderUnit):
    """A unit driven by configured commands. Implements the `Unit` interface."""

    def __init__(self, name: str, config: CommandsUnit, *, state_dir: Path) -> None:
        super().__init__(name, state_dir=state_dir)
        self.config = config

    async def start(self) -> None:
        """Run the start command and check that it is active. Raises UnitError if not, or if it is frozen."""
        async with self._fenced(self.config.stop_grace_s + START_TIMEOUT_S):
            self._refuse_if_frozen()
            if await self._is_active():
                return
            await self._expect(self.config.start, "start", timeout_s=START_TIMEOUT_S)
            if not await self._is_active():
                raise UnitError(
                    f"the start command of unit {self.name!r} succeeded, but {shlex.join(self.config.is_active)} "
                    "says that it is not active"
                )

    async def stop(self, *, grace_s: float | None = None) -> StopReport:
        """Run the stop command. Processes known from `main_pid` that outlive it and the grace get SIGKILL."""
        grace = self.config.stop_grace_s if grace_s is None else grace_s
        async with self._fenced(self.config.stop_grace_s + START_TIMEOUT_S):
            begun = time.monotonic()
            was_active = await self._is_active()
            before = self._tree(await self._main_pid()) if was_active else {}
            result = await self._run(self.config.stop, timeout_s=grace + QUICK_TIMEOUT_S)
            deadline = max(begun + grace, time.monotonic() + SETTLE_S)
            left = await self._gone_by(deadline, before)
            for row in left:
                send(row, signal.SIGKILL)
            if stuck := await self._gone_by(time.monotonic() + GONE_TIMEOUT_S, before):
                raise UnitError(
                    f"processes {[row.pid for row in stuck]} of unit {self.name!r} outlived SIGKILL: "
                    "they hang in the kernel"
                )
            if await self._is_active():
                raise UnitError(
                    f"unit {self.name!r} is still active after its stop command: {result.describe()}"
                )
            return StopReport(
                was_active=was_active,
                killed=bool(left),
                pids=tuple(sorted(before)),
                seconds=time.monotonic() - begun,
            )

    async def state(self) -> UnitState:
        """Return whether it is active. Its processes are known only with a `main_pid` command."""
        active = await self._is_active()
        main_pid = await self._main_pid() if active else None
        rows = self._tree(main_pid)
        started = None
        if main_pid is not None and psutil.pid_exists(main_pid):
            started = psutil.Process(main_pid).create_time()
        reason = self._frozen_reason()
        return UnitState(
            active=active,
            frozen=reason is not None,
            main_pid=main_pid,
            pids=tuple(sorted(rows)),
            started_at_s=started,
            frozen_reason=reason or "",
        )

    async def freeze(self, reason: str) -> None:
        """Refuse our own starts, and run the `freeze` command, if configured, to prevent all others."""
        await super().freeze(reason)
        if self.config.freeze:
            await self._expect(self.config.freeze, "freeze")
        else:
            logger.warning("unit %r has no freeze command: others may still start it", self.name)

    async def unfreeze(self) -> None:
        """Run the `unfreeze` command, if configured, and allow our starts again."""
        if self.config.unfreeze:
            await self._expect(self.config.unfreeze, "unfreeze")
        await super().unfreeze()

    async def set_scope(self, variables: Mapping[str, str], *, unset: Sequence[str] = ()) -> None:
        """Pass an env file (NAME='value' lines; `NAME=` to unset) to the `set_environment` command.

        Raises UnitError if there is no such command, because the scope would not take effect.
        """
        if not self.config.set_environment:
            if not variables and not unset:
                return
            raise UnitError(
                f"unit {self.name!r} has no set_environment command, so its environment cannot be changed: set "
                "unit.set_environment in the settings"
            )
        make_private_folder(self.folder)
        file = self.folder / "scope.env"
        lines = [f"{name}=" for name in unset] + [
            f"{name}={shlex.quote(value)}" for name, value in variables.items()
        ]
        write_json(self.folder / "scope.json", {"variables": dict(variables), "unset": list(unset)})
        write_atomically(file, "".join(f"{line}\n" for line in lines), durable=False)
        await self._expect((*self.config.set_environment, str(file)), "set_environment")

    async def log_tail(self, max_bytes: int = 65536) -> str:
        """Return the end of the `log` command's output, empty without such a command."""
        if not self.config.log:
            return ""
        result = await self._run(self.config.log, timeout_s=QUICK_TIMEOUT_S)
        return (result.stdout or result.stderr).encode()[-max_bytes:].decode(errors="replace")

    def describe_start(self) -> str:
        return shlex.join(self.config.start)

    # -- details -------------------------------------------------------------------------------------------------

    async def _run(self, argv: Sequence[str], *, timeout_s: float) -> ProcessResult:
        try:
            return await run_process(argv, timeout_s=timeout_s, env=child_environment(self.config.env))
        except (FileNotFoundError, PermissionError) as error:
            raise UnitError(f"unit {self.name!r}: cannot run {argv[0]!r}: {error.strerror}") from error

    async def _expect(self, argv: Sequence[str], what: str, *, timeout_s: float = QUICK_TIMEOUT_S) -> None:
        result = await self._run(argv, timeout_s=timeout_s)
        if result.exit_code != 0 or result.timed_out:
            raise UnitError(f"the {what} command of unit {self.name!r} failed: {result.describe()}")

    async def _is_active(self) -> bool:
        result = await self._run(self.config.is_active, timeout_s=QUICK_TIMEOUT_S)
        if result.timed_out:
            raise UnitError(
                f"the is_active command of unit {self.name!r} did not answer: {result.describe()}"
            )
        return result.exit_code == 0

    async def _main_pid(self) -> int | None:
        if not self.config.main_pid:
            return None
        result = await self._run(self.config.main_pid, timeout_s=QUICK_TIMEOUT_S)
        word = result.stdout.strip()
        if result.exit_code != 0 or not word:
            return None
        if not word.isdigit() or not 0 < int(word) < 1 << 31:
            raise UnitError(
                f"the main_pid command of unit {self.name!r} printed {redacted_head(word, 80)!r}, which is not a process id"
            )
        return int(word)

    async def _gone_by(self, deadline: float, before: Mapping[int, ProcessRow]) -> list[ProcessRow]:
        """Wait until the processes are gone or the deadline (monotonic) has passed. Return those left."""
        left = self._still(before)
        while left and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
            left = self._still(before)
        return left

    @staticmethod
    def _tree(main_pid: int | None) -> dict[int, ProcessRow]:
        return {} if main_pid is None else family(process_table(), [main_pid])

    @staticmethod
    def _still(before: Mapping[int, ProcessRow]) -> list[ProcessRow]:
        if not before:
            return []
        table = process_table()
        return [row for pid, row in before.items() if is_same(row, table.get(pid)) and not table[pid].zombie]
