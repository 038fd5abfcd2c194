"""The container unit: a tier in a Docker or Podman container, driven by the command line of either.

A container's environment is fixed when it is created. With `create` in the settings the driver may therefore remove its own
container and create it again with the fallback's variables; without it, it only starts and stops the container that is there.
A freeze also takes the container's restart policy away: otherwise its engine, not this program, would start it again. It cannot
keep somebody else's `docker start` from working: neither program has a lock for that. Such a start is seen by `state`.
"""

import asyncio
import hashlib
import json
import logging
import math
import shlex
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from gpu_actions.serving.interfaces import StopReport, UnitError, UnitState
from gpu_actions.serving.setup_checks import SetupCheck, failed, ok, warning
from gpu_actions.serving.units.base import UnitConfig, missing_program
from gpu_actions.serving.units.container_facts import ContainerFacts, facts_of
from gpu_actions.serving.units.folder import FolderUnit
from gpu_actions.system.cgroups import cgroup_of, cgroup_pids
from gpu_actions.system.files import write_atomically, write_json
from gpu_actions.system.folder_lock import make_private_folder
from gpu_actions.system.proc import (
    ProcessRow,
    family,
    is_same,
    process_table,
    read_environment,
    read_process,
    send,
)
from gpu_actions.system.processes import ProcessResult, child_environment, run_process
from gpu_actions.system.redact import redacted_head

logger = logging.getLogger(__name__)

QUICK_TIMEOUT_S = 20.0
CREATE_TIMEOUT_S = 120.0
GONE_TIMEOUT_S = 10.0
LOG_LINES = 2000
SCOPE_LABEL = "gpu-oncall.scope"
MIN_SHM_BYTES = 1024**3
"""NCCL and the engines' queues live in /dev/shm; a container's default of 64 MiB ends a tensor-parallel start."""

NEVER = ("", "no")
NO_SUCH = ("no such container", "no such object", "no container with name or id")


class ContainerUnit(UnitConfig):
    """A container of Docker or Podman, by name."""

    driver: Literal["container"] = "container"
    container: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="the container's name")
    program: Literal["docker", "podman"] = "docker"
    options: tuple[str, ...] = Field(default=(), description="options of the program itself, before its verb")
    create: tuple[str, ...] = Field(
        default=(),
        description="arguments of `create` behind --name: options, image, command; empty: it exists",
    )

    def build(self, name: str, *, state_dir: Path) -> "Container":
        return Container(name, self, state_dir=state_dir)

    def obstacle(self) -> str:
        return missing_program(self.program, {})

    async def setup_checks(self, name: str, *, group_stop_hazard: str) -> list[SetupCheck]:
        if shutil.which(self.program) is None:
            return [
                failed(name, f"{self.program} is not on this machine", "install it, or correct unit.program")
            ]
        driver = Container(name, self, state_dir=Path("/nonexistent"))
        try:
            facts = await driver.inspect()
        except UnitError as error:
            return [failed(name, str(error), f"run `{self.program} inspect {self.container}` as this user")]
        if facts is None:
            if self.create:
                return [ok(name, f"{self.container} does not exist yet; unit.create makes it")]
            fix = "create it, or set unit.create in the settings"
            return [failed(name, f"there is no container {self.container}", fix)]
        return [*judge_container(name, self, facts), *judge_visibility(name, self, facts)]


def judge_container(name: str, config: ContainerUnit, facts: ContainerFacts) -> list[SetupCheck]:
    """Judge a container's settings: a restart policy that starts it behind our back, too little shared memory."""
    checks = [ok(name, f"container {config.container} is {facts.status}")]
    if facts.restart_policy not in NEVER and config.program == "podman":
        text = f"{config.container} has the restart policy {facts.restart_policy!r}, which a freeze cannot take away here"
        checks.append(warning(f"{name}.restart", text, "create it with --restart=no"))
    if facts.ipc == "none":
        text = f"{config.container} has no /dev/shm (--ipc=none): NCCL and the engine's queues need it"
        checks.append(warning(f"{name}.shm", text, "create it with --ipc=host, or --shm-size=16g"))
        return checks
    private = facts.ipc not in ("host",) and not facts.ipc.startswith("container:")
    if private and facts.shm_bytes is not None and facts.shm_bytes < MIN_SHM_BYTES:
        text = f"{config.container} has {facts.shm_bytes // 2**20} MiB of /dev/shm: NCCL needs more for several GPUs"
        checks.append(warning(f"{name}.shm", text, "create it with --ipc=host, or --shm-size=16g"))
    return checks


def judge_visibility(name: str, config: ContainerUnit, facts: ContainerFacts) -> list[SetupCheck]:
    """Judge whether this program can see the ranks of a running container, and read their stacks and environment."""
    if not facts.running or facts.pid is None:
        return []
    who = f"process {facts.pid} of {config.container}"
    if read_process(facts.pid) is None:
        text = f"{who} is not in this program's /proc (another pid namespace, or hidepid): its ranks are not found"
        fix = "run gpu-oncall on the host itself, or in a container with --pid=host"
        return [failed(f"{name}.pid", text, fix)]
    try:
        read_environment(facts.pid)
    except OSError:
        text = f"{who} belongs to another user: ranks that only RANK names, and stacks, cannot be read"
        return [warning(f"{name}.pid", text, "run gpu-oncall as root or as the container's user")]
    return []


class Container(FolderUnit):
    """A unit run in a container. Implements the `Unit` interface."""

    def __init__(self, name: str, config: ContainerUnit, *, state_dir: Path) -> None:
        super().__init__(name, state_dir=state_dir)
        self.config = config

    async def start(self) -> None:
        """Start the container, created anew if its variables must change. Raises UnitError if it is frozen or does not run."""
        async with self._fenced(self.config.stop_grace_s + CREATE_TIMEOUT_S):
            self._refuse_if_frozen()
            facts = await self.inspect()
            if facts is not None and facts.running:
                if facts.paused:
                    await self._expect("unpause", self.config.container)
                return
            await self._create(facts)
            await self._expect("start", self.config.container, timeout_s=CREATE_TIMEOUT_S)
            facts = await self.inspect()
            if facts is None or not facts.running:
                raise UnitError(
                    f"container {self.config.container} ended right after its start: {await self._end(facts)}"
                )

    async def stop(self, *, grace_s: float | None = None) -> StopReport:
        """Have the container's engine send SIGTERM, and SIGKILL after the grace. Verify that its processes are gone."""
        grace = self.config.stop_grace_s if grace_s is None else grace_s
        async with self._fenced(self.config.stop_grace_s + CREATE_TIMEOUT_S):
            begun = time.monotonic()
            facts = await self.inspect()
            if facts is None or not facts.running:
                return StopReport(was_active=False, killed=False, pids=(), seconds=0.0)
            before = self._processes(facts)
            if facts.paused:  # a paused process cannot act on SIGTERM
                await self._expect("unpause", self.config.container)
            await self._expect(
                "stop",
                "--time",
                str(math.ceil(grace)),
                self.config.container,
                timeout_s=grace + QUICK_TIMEOUT_S,
            )
            deadline = time.monotonic() + GONE_TIMEOUT_S
            for row in self._left(before):
                send(row, signal.SIGKILL)
            while left := self._left(before):
                if time.monotonic() >= deadline:
                    raise UnitError(
                        f"processes {[row.pid for row in left]} of container {self.config.container} outlived SIGKILL: "
                        "they hang in the kernel"
                    )
                await asyncio.sleep(0.05)
            after = await self.inspect()
            if after is not None and after.running:
                raise UnitError(
                    f"container {self.config.container} runs again after its stop: its restart policy is at work"
                )
            return StopReport(
                was_active=True,
                killed=after is not None and after.exit_code == 128 + signal.SIGKILL,
                pids=tuple(sorted(before)),
                seconds=time.monotonic() - begun,
            )

    async def state(self) -> UnitState:
        """Return its state. `pids` has every process of the container, with the pids of this machine."""
        facts = await self.inspect()
        reason = self._frozen_reason()
        if facts is None or not facts.running:
            ended = facts is not None and facts.started_at_s is not None and facts.status != "restarting"
            return UnitState(
                active=False,
                frozen=reason is not None,
                frozen_reason=reason or "",
                restarts=0 if facts is None else facts.restarts,
                exit_code=facts.exit_code if facts is not None and ended else None,
                oom_killed=facts is not None and facts.oom_killed,
            )
        return UnitState(
            active=True,
            frozen=reason is not None,
            main_pid=facts.pid,
            pids=tuple(sorted(self._processes(facts))),
            started_at_s=facts.started_at_s,
            restarts=facts.restarts,
            frozen_reason=reason or "",
            paused=facts.paused,
            resume=self._words("unpause") if facts.paused else "",
        )

    async def freeze(self, reason: str) -> None:
        """Refuse our own starts, and take the restart policy away until `unfreeze`."""
        await super().freeze(reason)
        facts = await self.inspect()
        if facts is None or facts.restart_policy in NEVER:
            return
        note = self.folder / "restart-policy.json"
        write_json(note, {"policy": facts.restart_policy})
        try:
            await self._expect("update", "--restart=no", self.config.container)
        except UnitError as error:
            note.unlink(missing_ok=True)
            raise UnitError(
                f"container {self.config.container} keeps its restart policy {facts.restart_policy!r}, so it may come back "
                f"by itself: create it with --restart=no ({error})"
            ) from None

    async def unfreeze(self) -> None:
        """Allow starts again, then give the restart policy back, if the container is still there.

        Raises UnitError once if the policy is refused. Starts are allowed even then, and a repeated call does not try again.
        """
        await super().unfreeze()
        note = self.folder / "restart-policy.json"
        policy = str(self._read_json(note.name).get("policy", ""))
        if policy and await self.inspect() is not None:
            try:
                await self._expect("update", f"--restart={policy}", self.config.container)
            except UnitError as error:
                note.unlink(missing_ok=True)
                raise UnitError(
                    f"starts are allowed again, but container {self.config.container} has no restart policy now ({error}): run "
                    f"`{self._words('update', f'--restart={policy}')}`"
                ) from None
        note.unlink(missing_ok=True)

    async def set_scope(self, variables: Mapping[str, str], *, unset: Sequence[str] = ()) -> None:
        """Keep variables for the next start. Raises UnitError without `create`: an existing container keeps its own."""
        if (variables or unset) and not self.config.create:
            raise UnitError(
                f"container {self.config.container} keeps the environment it was created with: set unit.create in the settings"
            )
        make_private_folder(self.folder)
        write_json(self.folder / "scope.json", {"variables": dict(variables), "unset": list(unset)})

    async def log_tail(self, max_bytes: int = 65536) -> str:
        """Return the end of its log, both streams in their order. After an end by the OOM killer, the last line says so.

        Raises UnitError if it cannot be read. A container that does not exist has no log.
        """
        facts = await self.inspect()
        if facts is None:
            return ""
        result = await self._run("logs", "--tail", str(LOG_LINES), self.config.container, one_stream=True)
        text = result.stdout
        if result.exit_code != 0 or result.timed_out:
            raise UnitError(f"the log of container {self.config.container} cannot be read: {text[-300:]}")
        if facts.oom_killed:
            text += f"\ncontainer {self.config.container} was killed by the OOM killer\n"
        return text.encode()[-max_bytes:].decode(errors="replace")

    def describe_start(self) -> str:
        start = self._words("start")
        if not self.config.create:
            return start
        program = shlex.join((self.config.program, *self.config.options))
        return f"{program} create --name {self.config.container} {shlex.join(self.config.create)}; {start}"

    # -- details -------------------------------------------------------------------------------------------------

    async def inspect(self) -> ContainerFacts | None:
        """Return the container's facts, or None if it does not exist. Raises UnitError if they cannot be read."""
        result = await self._run("inspect", "--type", "container", self.config.container)
        if result.exit_code != 0 or result.timed_out:
            if any(words in result.stderr.lower() for words in NO_SUCH):
                return None
            raise UnitError(f"container {self.config.container} cannot be inspected: {result.describe()}")
        try:
            return facts_of(json.loads(result.stdout)[0])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UnitError(
                f"container {self.config.container}: the answer of inspect is not understood: {error!r}"
            ) from None

    async def _create(self, facts: ContainerFacts | None) -> None:
        """Create the container if it is missing, or was created with other variables than the next start needs."""
        scope = self._read_json("scope.json")
        digest = hashlib.sha256(json.dumps(scope, sort_keys=True).encode()).hexdigest()[:16]
        if not self.config.create:
            if facts is None:
                raise UnitError(
                    f"there is no container {self.config.container}: create it, or set unit.create in the settings"
                )
            return
        if facts is not None:
            if facts.labels.get(SCOPE_LABEL) == digest:
                return
            await self._expect("rm", self.config.container)
        make_private_folder(self.folder)
        variables = dict.fromkeys(scope.get("unset", ()), "") | dict(scope.get("variables", {}))
        file = self.folder / "scope.env"
        write_atomically(
            file, "".join(f"{name}={value}\n" for name, value in variables.items()), durable=False
        )
        given = ("--env-file", str(file), "--label", f"{SCOPE_LABEL}={digest}")
        await self._expect(
            "create", "--name", self.config.container, *given, *self.config.create, timeout_s=CREATE_TIMEOUT_S
        )

    async def _end(self, facts: ContainerFacts | None) -> str:
        if facts is None:
            return "it is gone"
        last = (await self.log_tail(2000)).strip().splitlines()
        why = "killed by the OOM killer" if facts.oom_killed else f"exit code {facts.exit_code}"
        return f"{why}; its log ends: {redacted_head(last[-1], 200)}" if last else why

    @staticmethod
    def _processes(facts: ContainerFacts) -> dict[int, ProcessRow]:
        """Return the processes of a running container: the tree of its first process, and its control group."""
        if not facts.pid:
            return {}
        table = process_table()
        group = cgroup_of(facts.pid)
        members = (cgroup_pids(group) if group is not None else None) or ()
        return family(table, [facts.pid, *(pid for pid in members if pid in table)])

    @staticmethod
    def _left(before: Mapping[int, ProcessRow]) -> list[ProcessRow]:
        table = process_table()
        return [row for pid, row in before.items() if is_same(row, table.get(pid)) and not table[pid].zombie]

    def _words(self, *verb: str) -> str:
        """Return a command about the container, for people."""
        return shlex.join((self.config.program, *self.config.options, *verb, self.config.container))

    async def _run(
        self, *words: str, timeout_s: float = QUICK_TIMEOUT_S, one_stream: bool = False
    ) -> ProcessResult:
        argv = (self.config.program, *self.config.options, *words)
        if one_stream:  # two pipes lose the order of what was written to them
            argv = ("sh", "-c", 'exec "$0" "$@" 2>&1', *argv)
        try:
            return await run_process(argv, timeout_s=timeout_s, env=child_environment())
        except (FileNotFoundError, PermissionError) as error:
            raise UnitError(
                f"unit {self.name!r}: cannot run {self.config.program}: {error.strerror}"
            ) from error

    async def _expect(self, *words: str, timeout_s: float = QUICK_TIMEOUT_S) -> None:
        result = await self._run(*words, timeout_s=timeout_s)
        if result.exit_code != 0 or result.timed_out:
            raise UnitError(
                f"{self.config.program} {words[0]} {self.config.container} failed: {result.describe()}"
            )
