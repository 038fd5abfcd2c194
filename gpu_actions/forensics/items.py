"""What goes into a bundle: the engines' counters twice, processes and their stacks, logs, RAS twice, GPUs and links, versions.

Every item reads only. Nothing here asks a rank for local variables, and no environment value leaves that is not on triage's
allow-list.
"""

import asyncio
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp

from gpu_actions.forensics.bundle import ITEM_CAP_BYTES, Collected, Item, Missing
from gpu_actions.host import Host, Tier
from gpu_actions.serving.interfaces import RouterError
from gpu_actions.serving.registry import PACKAGES
from gpu_actions.snapshot.collector import CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.collectors.environment import collect_environment
from gpu_actions.snapshot.collectors.kernel_log import boot_time, read_kmsg, tail_of, time_of
from gpu_actions.snapshot.collectors.stacks import find_py_spy
from gpu_actions.system.processes import run_process

KERNEL_LOG_SPAN = timedelta(minutes=15)
LOG_TAIL_BYTES = 512 * 1024
PROGRAM_TIMEOUT_S = 60.0
"""The bundle's budget cuts earlier; this is only against a program without an end."""

VERSIONS_OF = (
    "torch",
    *PACKAGES,
    "transformers",
    "triton",
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
    "nvidia-ml-py",
)
PROCESS_FILES = ("status", "wchan", "syscall", "stack")
MAX_PROCESSES = 32
MAX_STACKS = 16


def host_items(host: Host, *, gap_s: float) -> list[Item]:
    """Items of the machine itself: kernel log, GPUs, links, RAS, router, versions. What moves is read twice, `gap_s` apart."""
    items = [
        Item(
            path="host/kernel_log.txt",
            source="kernel log, 15 min",
            collect=lambda: _kernel_log(host),
            keep="tail",
        ),
        Item(path="host/versions.json", source="versions of this host", collect=_versions),
        Item(
            path="router/servers.json",
            source="router admin socket: show servers state, show stat",
            collect=lambda: _router(host),
        ),
    ]
    if host.config.ras_address:
        address = host.config.ras_address
        items += [
            Item(path="nccl/ras_1.txt", source=f"NCCL RAS {address}", collect=lambda: _ras(address, 0)),
            Item(
                path="nccl/ras_2.txt",
                source=f"NCCL RAS {address}, {gap_s:g} s later",
                collect=lambda: _ras(address, gap_s),
            ),
        ]
    if host.config.gpus != 0:
        items += [
            _program("gpu/nvidia_smi.txt", ["nvidia-smi", "-q"]),
            _program("gpu/topology.txt", ["nvidia-smi", "topo", "-m"]),
            _program("gpu/links.txt", ["nvidia-smi", "nvlink", "--status"]),
            _program("gpu/link_errors.txt", ["nvidia-smi", "nvlink", "--errorcounters"]),
            _program("gpu/link_remotes.txt", ["nvidia-smi", "nvlink", "--remotelinkinfo"]),
            _program(
                "gpu/fabric_manager.txt",
                ["systemctl", "status", "--no-pager", "--lines=200", "nvidia-fabricmanager.service"],
            ),
        ]
    return items


async def tier_items(tier: Tier, *, gap_s: float) -> list[Item]:
    """Items of one tier. An inactive tier has its log only. The counters are read twice, `gap_s` apart."""
    state = await tier.unit.state()
    name = tier.name
    if not state.active and not await tier.unit.log_tail(1):
        return []  # it never ran
    items = [
        Item(
            path=f"{name}/log.txt",
            source=f"log of unit {tier.unit.name}",
            collect=lambda: _unit_log(tier),
            keep="tail",
        ),
        Item(path=f"{name}/unit.json", source=f"unit {tier.unit.name}", collect=lambda: _unit(tier)),
    ]
    if not state.active:
        return items
    pids = state.pids[:MAX_PROCESSES]
    items += [
        Item(
            path=f"{name}/metrics_1.txt",
            source=f"{tier.engine.url}/metrics",
            collect=lambda: _metrics(tier, 0),
        ),
        Item(
            path=f"{name}/metrics_2.txt",
            source=f"{tier.engine.url}/metrics, {gap_s:g} s later",
            collect=lambda: _metrics(tier, gap_s),
        ),
        Item(
            path=f"{name}/processes.txt",
            source="/proc of each process",
            collect=lambda: _in_thread(_processes, pids),
        ),
        Item(
            path=f"{name}/environment.json",
            source="/proc/PID/environ: names of NCCL_* and CUDA_*, values of allow-listed ones",
            collect=lambda: _environment(state.main_pid),
        ),
    ]
    py_spy = find_py_spy()
    return items + [_stack(name, pid, py_spy) for pid in pids if _may_be_python(pid)][:MAX_STACKS]


def _program(path: str, argv: Sequence[str]) -> Item:
    async def collect() -> Collected:
        if shutil.which(argv[0]) is None:
            raise Missing(f"{argv[0]} is not installed here")
        result = await run_process(
            argv, timeout_s=PROGRAM_TIMEOUT_S, max_output_bytes=ITEM_CAP_BYTES, kill_grace_s=0.2
        )
        return Collected(
            text=result.stdout + result.stderr, exit_code=result.exit_code, truncated=result.truncated
        )

    return Item(path=path, source=" ".join(argv), collect=collect)


def _stack(tier_name: str, pid: int, py_spy: str | None) -> Item:
    argv = [py_spy or "py-spy", "dump", "--nonblocking", "--pid", str(pid)]

    async def collect() -> Collected:
        if py_spy is None:
            raise Missing("py-spy is installed neither beside this interpreter nor on PATH")
        result = await run_process(argv, timeout_s=PROGRAM_TIMEOUT_S, kill_grace_s=0.2)
        if result.exit_code != 0:
            raise Missing(f"py-spy ended with {result.exit_code}: {' '.join(result.stderr.split())[-300:]}")
        return Collected(text=result.stdout, exit_code=0)

    return Item(path=f"{tier_name}/stack_{pid}.txt", source=" ".join(argv), collect=collect)


def _may_be_python(pid: int) -> bool:
    try:
        return "python" in Path(f"/proc/{pid}/exe").resolve().name
    except OSError:
        return True  # not readable: py-spy may have the right, and says why when it has not


async def _in_thread(work: Callable[[tuple[int, ...]], str], pids: tuple[int, ...]) -> Collected:
    return Collected(text=await asyncio.to_thread(work, pids))


def _processes(pids: tuple[int, ...]) -> str:
    parts = []
    for pid in pids:
        parts.append(f"== process {pid}")
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError as error:
            parts.append(f"gone or not readable: {error}")
            continue
        parts.append(f"command: {command.strip()}")
        for name in PROCESS_FILES:
            try:
                text = Path(f"/proc/{pid}/{name}").read_text(errors="replace").strip()
            except OSError as error:
                text = f"not readable: {error.strerror}"
            parts.append(f"-- {name}\n{text}")
        parts.append(_threads(pid))
    return "\n".join(parts) + "\n"


def _threads(pid: int) -> str:
    """State and wait channel of each thread: a stuck kernel call shows in one of them."""
    lines = ["-- threads: id, state, wchan"]
    try:
        for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            try:
                wchan = (task / "wchan").read_text().strip()
            except OSError:
                wchan = "?"
            lines.append(f"{task.name} {state} {wchan}")
    except OSError as error:
        lines.append(f"not readable: {error}")
    return "\n".join(lines)


async def _environment(main_pid: int | None) -> Collected:
    try:
        reading = await collect_environment(() if main_pid is None else (main_pid,))
    except (CollectorFailed, CollectorSkipped) as error:
        raise Missing(str(error)) from error
    return Collected(text=reading.model_dump_json(indent=1))


async def _metrics(tier: Tier, after_s: float) -> Collected:
    await asyncio.sleep(after_s)
    key = tier.config.engine.api_key
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30), headers=headers) as session,
            session.get(f"{tier.engine.url}/metrics") as response,
        ):
            body = await response.content.read(ITEM_CAP_BYTES)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Missing(f"{tier.engine.url}/metrics: {type(error).__name__}: {error}") from error
    return Collected(text=f"# HTTP {response.status}\n{body.decode(errors='replace')}")


async def _unit_log(tier: Tier) -> Collected:
    text = await tier.unit.log_tail(LOG_TAIL_BYTES)
    if not text:
        raise Missing("the log is empty")
    return Collected(text=text, truncated=len(text) >= LOG_TAIL_BYTES)


async def _unit(tier: Tier) -> Collected:
    state = await tier.unit.state()
    return Collected(
        text=json.dumps(
            {
                "state": state.model_dump(),
                "command": tier.unit.describe_start(),
                "scope": await tier.unit.scope(),
                "engine": {"kind": tier.engine.kind, "url": tier.engine.url, "model": tier.engine.model},
            },
            indent=1,
        )
    )


async def _router(host: Host) -> Collected:
    try:
        servers = await host.router.servers()
    except RouterError as error:
        raise Missing(str(error)) from error
    return Collected(text=json.dumps([row.model_dump() for row in servers], indent=1))


async def _ras(address: str, after_s: float) -> Collected:
    """One raw answer of NCCL's RAS, read to its end. No answer is evidence too: the reason says refused or silent."""
    await asyncio.sleep(after_s)
    name, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(name.strip("[]"), int(port))
    try:
        # RAS waits 5 s for silent ranks by default, which is most of the budget.
        writer.write(b"TIMEOUT 1\nVERBOSE STATUS\n")
        await writer.drain()
        got = bytearray()
        while len(got) < ITEM_CAP_BYTES and (chunk := await reader.read(65536)):
            got += chunk
    finally:
        writer.close()
    if not got:
        raise Missing(f"RAS at {address} closed the connection without an answer")
    return Collected(text=got.decode(errors="replace"))


async def _kernel_log(host: Host) -> Collected:
    since = datetime.now(UTC) - KERNEL_LOG_SPAN
    if host.config.kernel_log is not None:
        lines, cut = await asyncio.to_thread(tail_of, host.config.kernel_log, ITEM_CAP_BYTES)
        return Collected(text="\n".join(_since(lines, since)) + "\n", truncated=cut)
    try:
        lines = await asyncio.to_thread(read_kmsg)
        return Collected(text="\n".join(_since(lines, since)) + "\n")
    except (OSError, CollectorFailed) as error:
        if shutil.which("journalctl") is None:
            raise Missing(f"/dev/kmsg: {error}; and journalctl is not installed") from error
    result = await run_process(
        ["journalctl", "-k", "--no-pager", "-o", "short-iso", "--since", "-15min"],
        timeout_s=PROGRAM_TIMEOUT_S,
        kill_grace_s=0.2,
    )
    if result.exit_code != 0:
        raise Missing(f"journalctl ended with {result.exit_code}: {' '.join(result.stderr.split())[-300:]}")
    return Collected(text=result.stdout, exit_code=0, truncated=result.truncated)


def _since(lines: Sequence[str], since: datetime) -> list[str]:
    """Lines from `since` on; one without a time goes with the line before it."""
    booted, now = boot_time(), datetime.now(UTC)
    kept, keep = [], True
    for line in lines:
        at = time_of(line, booted=booted, now=now)
        keep = keep if at is None else at >= since
        if keep:
            kept.append(line)
    return kept


async def _versions() -> Collected:
    def packages() -> dict[str, str]:
        found = {}
        for name in VERSIONS_OF:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "not installed beside gpu-oncall"
        return found

    driver = Path("/proc/driver/nvidia/version")
    return Collected(
        text=json.dumps(
            {
                "python": platform.python_version(),
                "kernel": platform.release(),
                "machine": platform.machine(),
                "nvidia_driver": driver.read_text().strip()
                if driver.exists()
                else "no NVIDIA driver is loaded",
                "packages": await asyncio.to_thread(packages),
            },
            indent=1,
        )
    )
