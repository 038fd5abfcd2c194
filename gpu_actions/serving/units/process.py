"""The process unit: a tier as a supervised process in a session of its own, which keeps serving if the bot is killed.

Its state is in its folder (mode 0700): what runs (`state.json`), the scope of the next start (`scope.json`), the freeze
(`frozen`), a stop under way (`stopping`), the log. A lock on the folder admits one start or stop at a time.
"""

import asyncio
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gpu_actions.serving.interfaces import StopReport, UnitError, UnitState
from gpu_actions.serving.setup_checks import SetupCheck, check_command
from gpu_actions.serving.units.base import UnitConfig, missing_program
from gpu_actions.serving.units.folder import FolderUnit
from gpu_actions.system import supervisor
from gpu_actions.system.files import write_json
from gpu_actions.system.folder_lock import make_private_folder
from gpu_actions.system.proc import ProcessRow, boot_id, family, process_table, read_process, send

logger = logging.getLogger(__name__)

BASE_VARIABLES = ("PATH", "HOME", "LANG")
"""What every tier inherits from the bot's environment; the settings or the scope name the rest."""

LOG_CAP_BYTES = 16 * 1024 * 1024
LEFTOVER_GRACE_S = 5.0
"""Processes left by a dead program have this long between SIGTERM and SIGKILL before the program restarts."""

ANSWER_TIMEOUT_S = 15.0
"""The supervisor answers within 50 ms on an idle machine; a host in trouble may take seconds."""

KILL_WAIT_S = 10.0
"""How long processes may take to end after SIGKILL. One stuck in the driver (state D) takes longer."""

DRAIN_GRACE_S = 5.0
"""A longer grace is meant to let running requests finish, so only the main process gets SIGTERM and ends its own children.
Some engines break every stream if all their processes are signalled (`group_stop_hazard` of `HttpEngine`)."""

PRODUCT_ROOT = Path(supervisor.__file__).parents[2]
"""The folder that holds the package `gpu_actions`: the supervisor runs without site-packages."""

SECRET_WORDS = ("key", "token", "secret", "password")


class ProcessUnit(UnitConfig):
    """A supervised process in a session of its own. In `argv`, {python} is the bot's own interpreter."""

    driver: Literal["process"] = "process"
    argv: tuple[str, ...] = Field(min_length=1)
    env: dict[str, str] = Field(
        default_factory=dict, description="its whole environment besides PATH, HOME and LANG"
    )
    env_from: tuple[str, ...] = Field(
        default=(), description="names of variables that it inherits from the bot"
    )
    cwd: Path | None = None
    stop_grace_s: float = Field(default=30, ge=0)
    restart: bool = Field(default=True, description="restart it if it dies and is not frozen")

    def build(self, name: str, *, state_dir: Path) -> "SupervisedProcess":
        return SupervisedProcess(name, self, state_dir=state_dir)

    def obstacle(self) -> str:
        if self.cwd is not None and not self.cwd.is_dir():
            return f"its folder {self.cwd} (unit.cwd) is not there"
        return missing_program(self.command()[0], self.env)

    async def setup_checks(self, name: str, *, group_stop_hazard: str) -> list[SetupCheck]:
        return [await check_command(name, self.command())]

    def command(self) -> list[str]:
        """Return argv with {python} replaced."""
        return [part.replace("{python}", sys.executable) for part in self.argv]


class SupervisedProcess(FolderUnit):
    """A unit that runs a program under `system/supervisor.py`. Implements the `Unit` interface.

    With `output` its standard output goes to that file, bounded in bytes, instead of the log (`system/output_file.py`).
    """

    def __init__(
        self, name: str, config: ProcessUnit, *, state_dir: Path, output: tuple[Path, int] | None = None
    ) -> None:
        super().__init__(name, state_dir=state_dir)
        self.config = config
        self.output = output

    # -- interface -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start it unless it runs. Raises UnitError if it is frozen or the program cannot be executed."""
        async with self._fenced(self.config.stop_grace_s + KILL_WAIT_S + ANSWER_TIMEOUT_S):
            self._refuse_if_frozen()
            (self.folder / "stopping").unlink(missing_ok=True)
            record = self._record()
            main, keeper = self._main(record), self._keeper(record)
            if keeper is not None:
                if main is None:
                    await self._hurry(keeper)
                return
            await self._launch(adopt=main, record=record)

    async def stop(self, *, grace_s: float | None = None) -> StopReport:
        """Send SIGTERM to the main process, then to the others once it has ended, or to all at once if the grace is too
        short to drain (`DRAIN_GRACE_S`). Send SIGKILL after the grace. Verify that all are gone, with the supervisor.

        Processes that left the group or the session are included, also if the supervisor has been killed. All get SIGCONT
        in case they are stopped. Raises UnitError if a process outlives SIGKILL by 10 s.
        """
        grace = self.config.stop_grace_s if grace_s is None else grace_s
        async with self._fenced(grace + KILL_WAIT_S + ANSWER_TIMEOUT_S):
            begun = time.monotonic()
            with self._surviving_a_full_disk("stopping"):
                (self.folder / "stopping").write_text(str(begun + grace))
            record = self._record()
            keeper = self._keeper(record)
            if keeper is not None:
                send(keeper, signal.SIGUSR1)
            was_active = self._main(record) is not None
            seen: dict[int, ProcessRow] = {}
            killed = await self._end_all(seen, deadline=begun + grace, main_first=grace > DRAIN_GRACE_S)
            if record:
                with self._surviving_a_full_disk("state.json"):
                    write_json(
                        self.folder / "state.json",
                        {**self._record(), "main": None, "session": None, "known": []},
                    )
            (self.folder / "stopping").unlink(missing_ok=True)
            return StopReport(
                was_active=was_active,
                killed=killed,
                pids=tuple(sorted(seen)),
                seconds=time.monotonic() - begun,
            )

    async def state(self) -> UnitState:
        """Return its state. `active`: the program itself is alive. `pids`: its processes without the supervisor."""
        record = self._record()
        main = self._main(record)
        reason = self._frozen_reason()
        return UnitState(
            active=main is not None,
            frozen=reason is not None,
            main_pid=None if main is None else main.pid,
            pids=tuple(sorted(self._members(record))),
            started_at_s=record.get("started_at_s") if main is not None else None,
            restarts=record.get("restarts", 0),
            restarted_at_s=tuple(record.get("restarted_at_s", ())),
            frozen_reason=reason or "",
        )

    async def set_scope(self, variables: Mapping[str, str], *, unset: Sequence[str] = ()) -> None:
        """Store the scope of the next start (mode 0600); an empty call removes it."""
        for variable in [*variables, *unset]:
            if not variable or "=" in variable or "\0" in variable:
                raise ValueError(f"{variable!r} cannot be the name of an environment variable")
        make_private_folder(self.folder)
        if not variables and not unset:
            (self.folder / "scope.json").unlink(missing_ok=True)
            return
        write_json(self.folder / "scope.json", {"variables": dict(variables), "unset": list(unset)})

    async def log_tail(self, max_bytes: int = 65536) -> str:
        """Return the end of the log, empty if it never ran."""
        try:
            with (self.folder / "log").open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - max_bytes))
                return file.read(max_bytes).decode(errors="replace")
        except FileNotFoundError:
            return ""

    def describe_start(self) -> str:
        """Return the command line without secret-looking arguments and without values of variables."""
        shown: list[str] = []
        hide = False
        for part in self.config.command():
            name, has_value, _ = part.partition("=")
            secret = part.startswith("-") and any(word in name.lower() for word in SECRET_WORDS)
            shown.append("***" if hide else f"{name}=***" if secret and has_value else shlex.quote(part))
            hide = secret and not has_value
        names = sorted({*self.config.env, *self.config.env_from})
        return f"{' '.join(shown)}  (environment: {', '.join([*BASE_VARIABLES, *names])})"

    def environment(self) -> dict[str, str]:
        """Return the environment of the next start: base variables, settings, inherited names, then the scope."""
        environment = {name: os.environ[name] for name in BASE_VARIABLES if name in os.environ}
        environment.update(self.config.env)
        environment.update({name: os.environ[name] for name in self.config.env_from if name in os.environ})
        scope = self._read_json("scope.json")
        for name in scope.get("unset", ()):
            environment.pop(name, None)
        environment.update(scope.get("variables", {}))
        return environment

    async def _launch(self, *, adopt: ProcessRow | None, record: dict[str, Any]) -> None:
        """Start the supervisor and wait for its answer. With `adopt` it takes over a running program."""
        order: dict[str, Any] = {
            "argv": self.config.command(),
            "environment": self.environment(),
            "cwd": None if self.config.cwd is None else str(self.config.cwd),
            "restart": self.config.restart,
            "leftover_grace_s": min(LEFTOVER_GRACE_S, self.config.stop_grace_s),
            "log_cap_bytes": LOG_CAP_BYTES,
        }
        if self.output is not None:
            order["output"] = {"path": str(self.output[0].absolute()), "cap_bytes": self.output[1]}
        if adopt is not None:
            order["adopt"] = {
                "pid": adopt.pid,
                "started": adopt.started,
                "started_at_s": record.get("started_at_s", time.time()),
                "restarts": record.get("restarts", 0),
            }
        else:  # strays of a program whose supervisor was killed would keep its port and GPU memory
            await self._end_all({}, deadline=time.monotonic() + order["leftover_grace_s"])
        write_json(
            self.folder / "unit.json",
            {"argv": order["argv"], "cwd": order["cwd"], "variables": sorted(order["environment"])},
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-S", "-m", supervisor.__name__, str(self.folder)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(PRODUCT_ROOT)},
            cwd="/",
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                out, err = await process.communicate(json.dumps(order).encode())
        except TimeoutError:
            raise UnitError(
                f"the supervisor of unit {self.name!r} did not answer within {ANSWER_TIMEOUT_S:.0f} s: "
                f"the machine may be out of memory or processes; see {self.folder}"
            ) from None
        reply = json.loads(out) if out.strip() else {"error": err.decode(errors="replace").strip()}
        if "error" in reply:
            raise UnitError(
                f"unit {self.name!r} could not start: {reply['error'] or 'its supervisor died silently'}; "
                f"the command is {self.describe_start()}"
            )

    async def _hurry(self, keeper: ProcessRow) -> None:
        """Make a supervisor in its backoff start now, and wait until the program runs."""
        send(keeper, signal.SIGUSR1)
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while self._main(self._record()) is None:
            record = self._record()
            if self._keeper(record) is None:
                await self._launch(adopt=None, record=record)
                return
            if time.monotonic() >= deadline:
                raise UnitError(
                    f"unit {self.name!r} keeps dying ({record.get('last_exit')}, {record.get('restarts')} "
                    f"restarts): read its log {self.folder / 'log'}"
                )
            send(keeper, signal.SIGUSR1)
            await asyncio.sleep(0.05)

    # -- what runs -----------------------------------------------------------------------------------------------

    def _record(self) -> dict[str, Any]:
        """Return what the supervisor wrote last; empty if it never ran or the machine has rebooted since."""
        record = self._read_json("state.json")
        return record if record.get("boot_id") == boot_id() else {}

    @staticmethod
    def _living(identity: Sequence[int] | None) -> ProcessRow | None:
        if not identity:
            return None
        row = read_process(identity[0])
        return row if row is not None and row.started == identity[1] and not row.zombie else None

    def _main(self, record: dict[str, Any]) -> ProcessRow | None:
        return self._living(record.get("main"))

    def _keeper(self, record: dict[str, Any]) -> ProcessRow | None:
        return self._living(record.get("supervisor"))

    def _members(self, record: dict[str, Any]) -> dict[int, ProcessRow]:
        """Return the unit's processes without its supervisor: by descent, by session, and known strays."""
        if not record:
            return {}
        table = process_table()
        named = [record.get("supervisor"), record.get("main"), *record.get("known", ())]
        roots = {row.pid for row in map(self._living, named) if row is not None}
        keeper_pid, keeper_started = record["supervisor"]
        session = record.get("session")
        # The kernel does not reuse a session's number while it has members. A leader of that number with another start
        # time means that our session is empty and the number belongs to another program.
        if session in table and table[session].started != keeper_started:
            session = None
        members = family(table, roots, session)
        members.pop(keeper_pid, None)
        return members

    async def _end_all(
        self, seen: dict[int, ProcessRow], *, deadline: float, main_first: bool = False
    ) -> bool:
        """End the unit's processes and its supervisor. Return True if SIGKILL was needed. `seen` collects them."""
        signalled: set[tuple[int, int]] = set()
        killed = False
        pause_s = 0.02
        while True:
            record = self._record()
            members = self._members(record)
            for row in map(self._living, [(pid, row.started) for pid, row in seen.items()]):
                if row is not None:
                    members[row.pid] = row
            keeper = self._keeper(record)
            if not members and keeper is None:
                return killed
            seen.update(members)
            now = time.monotonic()
            main = self._main(record) if main_first else None
            for row in members.values():
                if now >= deadline:
                    killed = True
                    send(row, signal.SIGKILL)
                elif (row.pid, row.started) not in signalled:
                    if main is None or row.pid == main.pid:
                        signalled.add((row.pid, row.started))
                        send(row, signal.SIGTERM)
                    send(row, signal.SIGCONT)
            if keeper is not None and now >= deadline + KILL_WAIT_S / 2:
                send(keeper, signal.SIGKILL)
            if now >= deadline + KILL_WAIT_S:
                raise UnitError(
                    f"processes {sorted(members)} of unit {self.name!r} outlived SIGKILL by {KILL_WAIT_S:.0f} s: "
                    "they hang in the kernel (state D), most likely in the GPU driver; the host needs a reset"
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.2, 0.2)  # the process table of a big host takes 40 ms
