"""The engine under load that the hang campaign breaks, and the faults: each is injected while a block runs, and healed."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from gpu_actions.config.host import EngineConfig
from gpu_actions.serving.registry import build_engine
from gpu_actions.serving.units.process import ProcessUnit
from gpu_actions.snapshot.target import TriageTarget, unit_facts
from gpu_actions.system.processes import child_environment
from gpu_actions.triage.culprit import Kind
from tests.ports import free_port

NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
LONGEST = 12_288
"""Tokens of the longest prompt. It is read in one step, so that only the processors show the work."""
WELL_S = 45.0
STREAMS = 4
HAPROXY = """
global
  stats socket {socket} mode 600 level admin
defaults
  mode http
  timeout connect 1s
  timeout client 300s
  timeout server 300s
frontend in
  bind 127.0.0.1:{port}
  default_backend serve
backend serve
  server tp 127.0.0.1:{engine}
"""
DEBUGGER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
for task in os.listdir(f"/proc/{sys.argv[1]}/task"):
    if libc.ptrace(0x4206, int(task), 0, 0) or libc.ptrace(0x4207, int(task), 0, 0):  # PTRACE_SEIZE, PTRACE_INTERRUPT
        sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")
print("held", flush=True)
time.sleep(600)
"""


class Rig:
    """A reference engine of some ranks behind HAProxy, with streams on it all the time."""

    def __init__(self, work: Path, ranks: int, device: str) -> None:
        self.ranks, self.device = ranks, device
        self.orders = work / "orders"
        self.orders.mkdir(exist_ok=True)
        self.port, self.router_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.socket = work / "admin.sock"
        self._work = work
        self._streams: list[asyncio.Task[None]] = []
        self._haproxy: asyncio.subprocess.Process | None = None
        path = os.environ.get("PYTHONPATH", str(Path.cwd()))
        environment = {"PYTHONPATH": path, **NO_MULTICAST}
        config = ProcessUnit(argv=self._argv(), env=environment, restart=False)
        self.unit = config.build(f"engine{self.port}", state_dir=work / "units")
        self._pids: dict[int, int] = {}

    def _argv(self) -> tuple[str, ...]:
        return (
            "{python}", "-m", "demo.engine", "--port", str(self.port), "--model-name", "m", "--device", self.device,
            "--tensor-parallel-size", str(self.ranks), "--drill-folder", str(self.orders), "--max-model-len", str(LONGEST + 64),
            "--prefill-chunk", str(LONGEST), "--max-num-seqs", "8", "--max-num-queued-reqs", "16",
        )  # fmt: skip

    @property
    def client_url(self) -> str:
        return self.url if self._haproxy is None else f"http://127.0.0.1:{self.router_port}"

    async def start(self) -> None:
        """Start the engine, the router and the streams."""
        for order in self.orders.iterdir():
            order.unlink()
        await self.unit.start()
        engine = build_engine(EngineConfig(kind="reference", url=self.url, model="m"))

        async def alive() -> bool:
            return (await self.unit.state()).active

        try:
            await engine.wait_ready(timeout_s=180, still_starting=alive)
        except Exception:
            print(await self.unit.log_tail(3000), flush=True)
            raise
        program = shutil.which("haproxy")
        if program is not None:
            text = HAPROXY.format(socket=self.socket, port=self.router_port, engine=self.port)
            (self._work / "h.cfg").write_text(text)
            argv = [program, "-db", "-q", "-f", str(self._work / "h.cfg")]
            self._haproxy = await asyncio.create_subprocess_exec(*argv, start_new_session=True)
        for pid in (await self.unit.state()).pids:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"demo.engine" in words:
                self._pids[int(words[words.index(b"--rank") + 1]) if b"--rank" in words else 0] = pid
        assert sorted(self._pids) == list(range(self.ranks)), self._pids
        self.load(STREAMS)
        assert await self.is_well()

    async def stop(self) -> None:
        self.load(0)
        if self._haproxy is not None:
            self._haproxy.kill()
            await self._haproxy.wait()
        await self.unit.stop(grace_s=1)

    def pid(self, rank: int) -> int:
        return self._pids[rank]

    async def target(self) -> TriageTarget:
        """Return what the monitor reads, as the settings of such a host would have it."""
        state = await self.unit.state()
        main = self._pids[0]
        return TriageTarget(
            host="h",
            engine_url=self.url,
            model="m",
            pids=(state.main_pid or main,),
            unit_active=state.active,
            unit=await unit_facts(self.unit, state),
            ranks=self.ranks,
            expect_gpus=0 if self.device == "cpu" else None,
            ras="127.0.0.1:28028" if self.device == "cuda" else None,
            router_address=None if self._haproxy is None else str(self.socket),
            router_server=None if self._haproxy is None else "tp",
        )

    async def tokens(self) -> float | None:
        """Return the engine's token counter, or None if it does not answer."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
                session.get(f"{self.url}/metrics") as response,
            ):
                for line in (await response.text()).splitlines():
                    if line.startswith("vllm:generation_tokens_total"):
                        return float(line.split()[-1])
        return None

    async def is_well(self) -> bool:
        """Wait until tokens come again. False if they do not."""
        deadline = time.monotonic() + WELL_S
        first = None
        while time.monotonic() < deadline and (await self.unit.state()).active:
            now = await self.tokens()
            if now is not None and first is not None and now > first:
                return True
            first = now if first is None else first
            await asyncio.sleep(0.3)
        return False

    def load(self, streams: int, *, prompt: str = "load", max_tokens: int = 120) -> None:
        """Replace the load by this many clients, each with one stream after the other."""
        for task in self._streams:
            task.cancel()
        self._streams = [
            asyncio.create_task(self._client(number, prompt, max_tokens)) for number in range(streams)
        ]

    async def _client(self, number: int, prompt: str, max_tokens: int) -> None:
        body: dict[str, Any] = {"model": "m", "stream": True, "ignore_eos": True, "max_tokens": max_tokens}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
            while True:
                body["prompt"] = f"{number} {prompt}"
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.post(f"{self.client_url}/v1/completions", json=body) as response:
                        async for _ in response.content:
                            pass
                await asyncio.sleep(0.1)


@dataclass(frozen=True)
class Fault:
    """A kind of hang: how it is injected, the kind that the verdict must say, and where it can be made."""

    expected: str
    how: str
    """A word for the engine's drill, or the name of a function below."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    not_rank_0: bool = False
    monitor: str = "hang"
    heals: bool = True
    at_least: int = 2
    """Ranks: of two that are in different collectives, the stacks single out none."""

    def ranks(self, number: int) -> list[int]:
        return list(range(1 if self.not_rank_0 else 0, number))

    @contextlib.asynccontextmanager
    async def injected(self, rig: Rig, rank: int) -> AsyncIterator[None]:
        """Inject the fault into a rank for as long as the block runs, then heal it and wait until tokens come."""
        pid, order = rig.pid(rank), rig.orders / f"rank-{rank}"
        fifo = rig.orders / "fifo"
        debugger: asyncio.subprocess.Process | None = None
        if self.how == "stop":
            os.kill(pid, signal.SIGSTOP)
        elif self.how == "kill":
            os.kill(pid, signal.SIGKILL)
        elif self.how == "debug":
            argv = [sys.executable, "-c", DEBUGGER, str(pid)]
            debugger = await asyncio.create_subprocess_exec(
                *argv, stdout=asyncio.subprocess.PIPE, env=child_environment()
            )
            assert debugger.stdout is not None
            assert await debugger.stdout.readline() == b"held\n", "ptrace is not permitted"
        else:
            if "FIFO" in self.how:
                fifo.unlink(missing_ok=True)
                os.mkfifo(fifo)
            if "report-idle" in self.how:
                (rig.orders / "report-idle").touch()
            part = order.with_suffix(".part")
            part.write_text(self.how.replace("FIFO", str(fifo)).replace("report-idle", ""))
            part.rename(order)  # at once: a rank reads it before every collective
        try:
            yield
        finally:
            if self.how == "stop":
                os.kill(pid, signal.SIGCONT)
            if debugger is not None:
                debugger.kill()
                await debugger.wait()
            order.unlink(missing_ok=True)
            (rig.orders / "report-idle").unlink(missing_ok=True)
            if "FIFO" in self.how:
                with contextlib.suppress(OSError):  # nobody reads it
                    os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
            if not self.heals:
                await rig.unit.stop(grace_s=0)


FAULTS: dict[str, Fault] = {
    "stopped (SIGSTOP)": Fault(Kind.STOPPED, "stop"),
    "held by a debugger": Fault(Kind.STOPPED, "debug"),
    "dead (SIGKILL)": Fault(Kind.DEAD, "kill", not_rank_0=True, heals=False),
    "asleep outside": Fault(Kind.OUTSIDE, "sleep"),
    "waits for a lock": Fault(Kind.OUTSIDE, "lock"),
    "reads a file that does not answer": Fault(Kind.OUTSIDE, "read FIFO"),
    "blocked in the kernel": Fault(Kind.KERNEL, "spawn FIFO"),
    "spins outside": Fault(Kind.OUTSIDE, "spin"),
    "in another collective": Fault(Kind.OTHER_COLLECTIVE, "broadcast", heals=False, at_least=3),
    "in a longer collective": Fault(Kind.OTHER_COLLECTIVE, "size", devices=("cuda",), heals=False),
    "slow straggler": Fault(Kind.STRAGGLER, "slow 300", monitor="probe"),
    "reports no request": Fault(Kind.OUTSIDE, "sleep report-idle"),
}
