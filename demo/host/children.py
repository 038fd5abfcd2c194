"""The workspace and the bot as child processes of the demonstration, each in its own session and with its log file."""

import asyncio
import contextlib
from pathlib import Path

from gpu_actions.system.files import write_atomically
from gpu_actions.system.processes import child_environment, end_group

RESTART_PAUSE_S = 1.0
END_GRACE_S = 15.0


class Children:
    """Starts the children, and starts them again when they end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._commands: dict[str, tuple[list[str], dict[str, str]]] = {}

    async def start(self, name: str, argv: list[str], *, env: dict[str, str] | None = None) -> None:
        """Start one child. Its output goes to NAME.log and its process id to NAME.pid in the folder."""
        self._commands[name] = (argv, env or {})
        with self.log_path(name).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(env),
                start_new_session=True,
            )
        self._processes[name] = process
        write_atomically(self._folder / f"{name}.pid", f"{process.pid}\n")

    def log_path(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def ended(self) -> str | None:
        """Return the name of a child that has ended, or None."""
        return next((name for name, each in self._processes.items() if each.returncode is not None), None)

    async def keep(self, name: str) -> None:
        """Start a child again whenever it ends, as its supervisor would on a host."""
        while True:
            code = await self._processes[name].wait()
            print(f"The {name} ended ({code}); starting it again.", flush=True)
            await asyncio.sleep(RESTART_PAUSE_S)
            argv, env = self._commands[name]
            await self.start(name, argv, env=env)

    async def end(self) -> None:
        """End all children, the bot before the workspace."""
        for name in ("bot", "workspace"):
            process = self._processes.pop(name, None)
            if process is not None:
                await end_group(process.pid, grace_s=END_GRACE_S)
                await process.wait()
            with contextlib.suppress(FileNotFoundError):
                (self._folder / f"{name}.pid").unlink()
