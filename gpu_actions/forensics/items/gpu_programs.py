"""Output of NVIDIA's own programs about GPUs, links and fabric."""

import asyncio
from collections.abc import Sequence

from gpu_actions.forensics.item import Collected, Evidence, Missing, Scope
from gpu_actions.forensics.program import run_for_evidence
from gpu_actions.system.wedged import too_many, wedged_processes


def _unless_no_gpus(scope: Scope) -> Sequence[Scope]:
    return () if scope.host.config.gpus == 0 else (scope,)


def _program(path: str, command: str) -> Evidence:
    async def collect(scope: Scope) -> Collected:
        if stuck := too_many(await asyncio.to_thread(wedged_processes)):
            raise Missing(stuck)
        return await run_for_evidence(*command.split())

    return Evidence(path=path, source=command, collect=collect, when=_unless_no_gpus)


state = _program("gpu/nvidia_smi.txt", "nvidia-smi -q")
topology = _program("gpu/topology.txt", "nvidia-smi topo -m")
links = _program("gpu/links.txt", "nvidia-smi nvlink --status")
link_errors = _program("gpu/link_errors.txt", "nvidia-smi nvlink --errorcounters")
link_remotes = _program("gpu/link_remotes.txt", "nvidia-smi nvlink --remotelinkinfo")
fabric_manager = _program(
    "gpu/fabric_manager.txt", "systemctl status --no-pager --lines=200 nvidia-fabricmanager.service"
)
