"""The systemd unit: a tier that the system's or the user's manager runs.

Only the verbs of `VERBS` are ever run. The scope is a drop-in file below /run, which a reboot removes. So is the freeze, plus
`mask --runtime` if that works: systemd prefers a unit file in /etc to a mask in /run.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from gpu_actions.serving.interfaces import StopReport, UnitError, UnitState
from gpu_actions.serving.setup_checks import SetupCheck, failed, ok, warning
from gpu_actions.serving.units.base import UnitConfig, check_reason
from gpu_actions.serving.units.systemd_files import (
    freeze_drop_in,
    freeze_reason,
    parse_timespan_s,
    scope_drop_in,
    scope_environment_file,
    scope_variables,
)
from gpu_actions.system.cgroups import cgroup_pids
from gpu_actions.system.files import write_atomically
from gpu_actions.system.proc import family, process_table
from gpu_actions.system.processes import ProcessResult, child_environment, run_process

logger = logging.getLogger(__name__)

VERBS = frozenset(
    {"start", "stop", "show", "mask", "unmask", "daemon-reload", "kill", "reset-failed"},
)
"""All verbs ever passed to systemctl. `reset-failed`: a unit that crashed too often refuses starts until then."""

SCOPE_FILE = "90-gpu-oncall.conf"
SCOPE_ENVIRONMENT_FILE = "90-gpu-oncall.env"
FREEZE_FILE = "95-gpu-oncall-freeze.conf"

PROPERTIES = (
    "LoadState,ActiveState,SubState,Result,MainPID,NRestarts,UnitFileState,TimeoutStopUSec,ControlGroup,"
    "ExecMainStartTimestampMonotonic,DropInPaths"
)
COMMAND_TIMEOUT_S = 30.0
START_TIMEOUT_S = 60.0
"""From `start` until systemd reports a main process. Loading the model comes later and is not awaited."""

KILL_WAIT_S = 10.0

RUNNING = frozenset({"active", "reloading", "activating", "deactivating"})

RESTART_SCHEDULED = "5eb03494b6584870a536b337290809b3"
"""SD_MESSAGE_UNIT_RESTART_SCHEDULED of systemd's sd-messages.h."""


class SystemdUnit(UnitConfig):
    """A systemd unit of the system (or of the user) manager."""

    driver: Literal["systemd"] = "systemd"
    name: str = Field(pattern=r"^[A-Za-z0-9:_.@\\-]+\.service$", description="unit name, ending in .service")
    user: bool = False
    stop_grace_s: float = Field(default=90, ge=0)

    def build(self, name: str, *, state_dir: Path) -> "SystemdService":
        return SystemdService(name, self)

    async def setup_checks(self, name: str, *, group_stop_hazard: str) -> list[SetupCheck]:
        scope = ["--user"] if self.user else []
        try:
            result = await run_process(
                ["systemctl", *scope, "show", "--property=LoadState,KillMode", self.name], timeout_s=10
            )
        except FileNotFoundError:
            return [failed(name, "systemctl is not on this machine", "use another driver for this tier")]
        return self.judge(name, result.stdout, result.stderr, group_stop_hazard=group_stop_hazard)

    def judge(self, name: str, shown: str, error: str, *, group_stop_hazard: str) -> list[SetupCheck]:
        """Judge what `systemctl show` prints: the unit is loaded, and a stop lets the engine finish its requests."""
        values = dict(line.partition("=")[::2] for line in shown.splitlines())
        state = values.get("LoadState", "")
        if state != "loaded":
            return [failed(name, f"{self.name} is {state or error.strip()}", "install the unit file")]
        checks = [ok(name, f"{self.name} is loaded")]
        if values.get("KillMode") == "control-group" and group_stop_hazard:
            text = f"{self.name} has KillMode=control-group: {group_stop_hazard}"
            checks.append(warning(f"{name}.kill_mode", text, "set KillMode=mixed in the unit file"))
        return checks


class SystemdService:
    """A unit run by systemd. Implements the `Unit` interface. `drop_in_root` is the folder of drop-in folders."""

    def __init__(self, name: str, config: SystemdUnit, *, drop_in_root: Path | None = None) -> None:
        self.name = name
        self.config = config
        self.unit = config.name
        self._restart_times: tuple[int, tuple[float, ...]] = (0, ())
        self.drop_ins = (drop_in_root or default_drop_in_root(user=config.user)) / f"{config.name}.d"

    async def start(self) -> None:
        """Start it and wait until systemd reports its main process. Raises UnitError if it is frozen or fails."""
        shown = await self._show()
        if (reason := self._frozen_reason(shown)) is not None:
            raise UnitError(
                f"unit {self.unit} is frozen ({reason}): nothing may start it until it is unfrozen"
            )
        if self._is_active(shown):
            return
        if shown["ActiveState"] == "failed":
            await self._systemctl("reset-failed", self.unit)
        await self._systemctl("start", "--no-block", self.unit)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_active(shown := await self._show()):
            if shown["ActiveState"] == "failed" or time.monotonic() >= deadline:
                raise UnitError(
                    f"unit {self.unit} did not start: it is {shown['ActiveState']}/{shown['SubState']} "
                    f"({shown['Result']}); read {self._journal_words()}"
                )
            await asyncio.sleep(0.05)

    async def stop(self, *, grace_s: float | None = None) -> StopReport:
        """Stop it, with SIGKILL to its whole control group after the grace. Raises UnitError if processes remain.

        systemd itself sends SIGKILL after TimeoutStopSec; a warning is logged if that is shorter than the grace.
        """
        grace = self.config.stop_grace_s if grace_s is None else grace_s
        begun = time.monotonic()
        shown = await self._show()
        was_active = self._is_active(shown)
        seen = set(self._pids(shown))
        own_limit = parse_timespan_s(shown["TimeoutStopUSec"])
        if was_active and own_limit is not None and own_limit < grace:
            logger.warning(
                "unit %s: systemd kills it %.0f s after a stop (TimeoutStopSec), before the grace of %.0f s is over: "
                "raise TimeoutStopSec",
                *(self.unit, own_limit, grace),
            )
        await self._systemctl("stop", "--no-block", self.unit)
        killed = False
        while self._is_active(shown := await self._show()) or self._pids(shown):
            seen |= set(self._pids(shown))
            waited = time.monotonic() - begun
            if waited >= grace and not killed:
                killed = True
                await self._systemctl("kill", "--kill-who=all", "--signal=SIGKILL", self.unit, may_fail=True)
            if waited >= grace + KILL_WAIT_S:
                raise UnitError(
                    f"unit {self.unit} outlived SIGKILL by {KILL_WAIT_S:.0f} s (processes {list(self._pids(shown))}): "
                    "they hang in the kernel, most likely in the GPU driver; the host needs a reset"
                )
            await asyncio.sleep(0.05)
        return StopReport(
            was_active=was_active,
            killed=killed or (was_active and shown["Result"] == "timeout"),
            pids=tuple(sorted(seen)),
            seconds=time.monotonic() - begun,
        )

    async def state(self) -> UnitState:
        """Return its state in systemd; `pids` are those of its control group."""
        shown = await self._show()
        active = self._is_active(shown)
        main_pid = int(shown["MainPID"] or 0) or None
        reason = self._frozen_reason(shown)
        started_us = int(shown["ExecMainStartTimestampMonotonic"] or 0)
        return UnitState(
            active=active,
            frozen=reason is not None,
            main_pid=main_pid,
            pids=self._pids(shown),
            started_at_s=time.time() - time.monotonic() + started_us / 1e6 if active and started_us else None,
            restarts=(restarts := int(shown["NRestarts"] or 0)),
            restarted_at_s=await self._restarted_at_s(restarts),
            frozen_reason=reason or "",
        )

    async def freeze(self, reason: str) -> None:
        """Make every start fail, systemd's own restarts included, and verify it. A running process goes on.

        The drop-in has an assertion that is never true, and `Restart=no`. A unit that is not running is masked too;
        masking a running one would make systemd forget how to stop it.
        """
        reason = check_reason(reason)
        shown = await self._show()
        self._write(FREEZE_FILE, freeze_drop_in(reason))
        await self._systemctl("daemon-reload")
        if not self._is_active(shown):
            await self._systemctl("mask", "--runtime", self.unit, may_fail=True)
        shown = await self._show()
        if shown["LoadState"] != "masked" and FREEZE_FILE not in shown["DropInPaths"]:
            raise UnitError(
                f"unit {self.unit} could not be frozen: systemd reports neither a mask nor {self.drop_ins / FREEZE_FILE}"
            )

    async def unfreeze(self) -> None:
        """Remove mask and drop-in. Raises UnitError if another administrator's mask remains."""
        (self.drop_ins / FREEZE_FILE).unlink(missing_ok=True)
        await self._systemctl("unmask", "--runtime", self.unit)
        await self._systemctl("daemon-reload")
        if (await self._show())["LoadState"] == "masked":
            raise UnitError(
                f"unit {self.unit} is masked permanently, not by gpu-oncall: run "
                f"'systemctl unmask {self.unit}' if that is no longer wanted"
            )

    async def set_scope(self, variables: Mapping[str, str], *, unset: Sequence[str] = ()) -> None:
        """Write the scope's drop-in and reload systemd; an empty call removes it. It applies from the next start."""
        if not variables and not unset:
            for name in (SCOPE_FILE, SCOPE_ENVIRONMENT_FILE):
                (self.drop_ins / name).unlink(missing_ok=True)
        else:
            self._write(SCOPE_ENVIRONMENT_FILE, scope_environment_file(variables))
            file = self.drop_ins / SCOPE_ENVIRONMENT_FILE
            self._write(SCOPE_FILE, scope_drop_in(variables, unset=unset, environment_file=file))
        await self._systemctl("daemon-reload")

    async def scope(self) -> dict[str, str]:
        file = self.drop_ins / SCOPE_FILE
        return scope_variables(file.read_text()) if file.exists() else {}

    async def log_tail(self, max_bytes: int = 65536) -> str:
        """Return the end of its journal, at most `max_bytes`."""
        user = ("--user",) if self.config.user else ()
        lines = max(10, max_bytes // 64)
        argv = (
            "journalctl",
            *user,
            f"--unit={self.unit}",
            "--no-pager",
            f"--lines={lines}",
            "--output=short-iso",
        )
        result = await self._run(argv)
        if result.exit_code != 0:
            raise UnitError(f"the journal of {self.unit} cannot be read: {result.describe()}")
        return result.stdout.encode()[-max_bytes:].decode(errors="replace")

    async def _restarted_at_s(self, restarts: int) -> tuple[float, ...]:
        """Return the times of the latest restarts from its journal, read only when their number changed."""
        if restarts == 0 or self._restart_times[0] == restarts:
            return self._restart_times[1] if restarts else ()
        user = ("--user", "USER_UNIT=") if self.config.user else ("UNIT=",)
        argv = (
            *("journalctl", *user[:-1], "--no-pager", "--output=json", "--lines=20"),
            *(f"MESSAGE_ID={RESTART_SCHEDULED}", f"{user[-1]}{self.unit}"),
        )
        times: list[float] = []
        with contextlib.suppress(UnitError, OSError):
            for line in (await self._run(argv)).stdout.splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    times.append(int(json.loads(line)["__REALTIME_TIMESTAMP"]) / 1e6)
        self._restart_times = (restarts, tuple(times))
        return self._restart_times[1]

    def describe_start(self) -> str:
        return " ".join(self._argv("start", self.unit))

    # -- details -------------------------------------------------------------------------------------------------

    def _argv(self, verb: str, *arguments: str) -> tuple[str, ...]:
        if verb not in VERBS:
            raise ValueError(f"systemctl {verb} is not allowed here")
        user = ("--user",) if self.config.user else ()
        return ("systemctl", *user, "--no-pager", "--no-ask-password", verb, *arguments)

    async def _run(self, argv: Sequence[str]) -> ProcessResult:
        names = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS") if self.config.user else ()
        environment = child_environment({name: os.environ[name] for name in names if name in os.environ})
        try:
            return await run_process(argv, timeout_s=COMMAND_TIMEOUT_S, env=environment)
        except FileNotFoundError:
            raise UnitError(
                f"{argv[0]} was not found: this host does not run systemd; use another driver "
                f"for the tier {self.name!r}"
            ) from None

    async def _systemctl(self, verb: str, *arguments: str, may_fail: bool = False) -> str:
        result = await self._run(self._argv(verb, *arguments))
        if result.timed_out or (result.exit_code != 0 and not may_fail):
            hint = ""
            if any(word in result.stderr for word in ("uthentication", "Access denied", "ermission denied")):
                hint = "; the bot's user may not manage this unit: add a polkit rule (docs/serving.md)"
            raise UnitError(f"systemd refused: {result.describe()}{hint}")
        return result.stdout

    async def _show(self) -> dict[str, str]:
        text = await self._systemctl("show", self.unit, f"--property={PROPERTIES}")
        shown = dict.fromkeys(PROPERTIES.split(","), "")
        for line in text.splitlines():
            key, _, value = line.partition("=")
            shown[key] = value
        if shown["LoadState"] in {"not-found", "bad-setting", "error"}:
            raise UnitError(
                f"systemd has no usable unit {self.unit} (LoadState={shown['LoadState']}): check tiers.{self.name}.unit.name"
            )
        return shown

    @staticmethod
    def _is_active(shown: Mapping[str, str]) -> bool:
        """Return True if the program itself is alive. A unit that waits for its next restart is not active."""
        if int(shown["MainPID"] or 0):
            return shown["ActiveState"] in RUNNING
        return shown["ActiveState"] in {"active", "reloading"}

    @staticmethod
    def _pids(shown: Mapping[str, str]) -> tuple[int, ...]:
        """Return the processes of its control group, or of its main process's tree if there is no such group."""
        if (members := cgroup_pids(shown["ControlGroup"])) is not None:
            return members
        main_pid = int(shown["MainPID"] or 0)
        return tuple(sorted(family(process_table(), [main_pid]))) if main_pid else ()

    def _frozen_reason(self, shown: Mapping[str, str]) -> str | None:
        file = self.drop_ins / FREEZE_FILE
        if file.exists():
            return freeze_reason(file.read_text())
        return "masked in systemd, not by gpu-oncall" if shown["LoadState"] == "masked" else None

    def _journal_words(self) -> str:
        return f"'journalctl {'--user ' if self.config.user else ''}--unit={self.unit}'"

    def _write(self, name: str, text: str) -> None:
        try:
            write_atomically(self.drop_ins / name, text, durable=False)
        except PermissionError as error:
            raise UnitError(
                f"{self.drop_ins / name} cannot be written: the bot's user needs write access to {self.drop_ins} "
                "(docs/serving.md)"
            ) from error


def default_drop_in_root(*, user: bool) -> Path:
    """Return the folder of drop-ins that a reboot clears (systemd.unit(5), unit load path)."""
    if user:
        return Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")) / "systemd" / "user"
    return Path("/run/systemd/system")
