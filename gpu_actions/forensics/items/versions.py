"""Versions of the host: Python, kernel, driver, and every package installed beside the bot."""

import asyncio
import importlib.metadata
import json
import platform
from pathlib import Path

from gpu_actions.forensics.item import Collected, Scope, evidence
from gpu_actions.serving.registry import PACKAGES

DRIVER = Path("/proc/driver/nvidia/version")


@evidence("host/versions.json", source="versions of this host")
async def versions(scope: Scope) -> Collected:
    return Collected(text=json.dumps(await asyncio.to_thread(_read), indent=1))


def _read() -> dict[str, object]:
    packages = dict.fromkeys(PACKAGES, "not installed beside gpu-oncall")
    packages |= {one.name: one.version for one in importlib.metadata.distributions()}
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "nvidia_driver": DRIVER.read_text().strip() if DRIVER.exists() else "no NVIDIA driver is loaded",
        "packages": dict(sorted(packages.items())),
    }
