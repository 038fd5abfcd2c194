"""This machine: the state folder, its disk, and the tools that read evidence."""

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from bot.incidents.artifact_backends import backend_for
from bot.incidents.artifact_outbox import Outbox
from bot.settings.model import Settings
from gpu_actions.serving.setup_checks import SetupCheck, failed, ok, warning
from gpu_actions.system.processes import run_process

GIB = 1024**3
NVML_TIMEOUT_S = 20
PROBE = "doctor/check/probe"
PROBE_CONTENT = b"gpu-oncall doctor\n"
COUNT_GPUS = "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount())"


async def check_state_dir(settings: Settings) -> list[SetupCheck]:
    """Check that the state folder can be written, and has space for evidence and artifacts."""
    folder = settings.state_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = "create the folder for the bot's user or set state_dir"
        return [failed("state_dir", f"{folder} cannot be written: {error.strerror}", fix)]
    writable = ok("state_dir", f"{folder} can be written")
    free_gib = shutil.disk_usage(folder).free / GIB
    needed_gib = max((host.fallback.min_free_disk_gib for host in settings.hosts), default=0)
    if free_gib < needed_gib:
        fix = "free some space: evidence and artifacts are written there"
        return [writable, failed("disk", f"{free_gib:.1f} GiB free, {needed_gib:g} GiB needed", fix)]
    return [writable, ok("disk", f"{free_gib:.1f} GiB free at {folder}")]


async def check_artifacts(settings: Settings) -> list[SetupCheck]:
    """Check that a remote artifact store keeps a small file and returns it, and whether files wait for their upload."""
    url = settings.artifacts.url
    if not url or not (backend := backend_for(url, endpoint=settings.artifacts.endpoint)).is_remote:
        return []

    def keep_and_return() -> bool:
        with backend.open(PROBE, "wb") as file:
            file.write(PROBE_CONTENT)
        with backend.open(PROBE, "rb") as file:
            same = file.read() == PROBE_CONTENT
        backend.remove(PROBE)
        return same

    waiting = len(Outbox(settings.state_dir / "outbox", backend).waiting())
    kept = f"; {waiting} file(s) wait on this machine" if waiting else ""
    fix = "check artifacts.url, artifacts.endpoint, and the keys in the bot's environment; nothing is lost meanwhile"
    try:
        if await asyncio.to_thread(keep_and_return):
            return [ok("artifacts.url", f"{url} keeps a file and returns it{kept}")]
        return [failed("artifacts.url", f"{url} returns something else than it was given{kept}", fix)]
    except OSError as error:
        return [failed("artifacts.url", f"{url} does not keep files: {str(error)[:200]}{kept}", fix)]


async def check_py_spy(settings: Settings) -> list[SetupCheck]:
    """Check for py-spy, which reads the stacks of hung ranks."""
    if Path(sys.executable).with_name("py-spy").exists() or shutil.which("py-spy"):
        return [ok("py-spy", "found: stacks of hung ranks can be read")]
    return [warning("py-spy", "not found: stacks of hung ranks cannot be read", "pip install py-spy")]


async def check_nvml(settings: Settings) -> list[SetupCheck]:
    """Check that NVML answers, in a child process: a broken driver can hang its caller."""
    result = await run_process([sys.executable, "-c", COUNT_GPUS], timeout_s=NVML_TIMEOUT_S)
    if result.exit_code == 0:
        return [ok("nvml", f"answers: {result.stdout.strip()} GPUs")]
    reason = (result.stderr.strip().splitlines() or [f"no answer in {NVML_TIMEOUT_S} s"])[-1]
    fix = "expected on a machine without NVIDIA GPUs"
    return [warning("nvml", f"does not answer here ({reason})", fix)]
