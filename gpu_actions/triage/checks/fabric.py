"""Checks on the NVSwitch fabric and the unit that manages it."""

from collections.abc import Iterator

from gpu_actions.models import Finding
from gpu_actions.snapshot.collectors.nvml import FabricReading
from gpu_actions.triage.checks.context import CheckContext, make_finding
from gpu_actions.triage.checks.gpus import name_of
from gpu_actions.triage.checks.nvlink import usable_gpus

STATES = {1: "not started", 2: "in progress"}
RUNNING = ("active", "activating", "reloading")
DEGRADED = ("degraded_bandwidth", "route_recovery", "access_timeout", "incorrect_configuration")


def check_fabric(context: CheckContext) -> Iterator[Finding]:
    """Findings on the fabric; none where no GPU is attached to a switch."""
    nvml = context.snapshot.nvml
    if nvml is None or not context.has_gpus:
        return
    gpus = usable_gpus(nvml)
    switched = any(link.remote_kind == "switch" for gpu in gpus for link in gpu.links)
    in_fabric = [gpu for gpu in gpus if gpu.fabric is not None and gpu.fabric.state != 0]
    findings: list[Finding] = []
    for gpu in in_fabric:
        if gpu.fabric is not None:
            findings += _of_gpu(gpu.label, name_of(gpu), gpu.fabric)
    if switched or in_fabric:
        findings += _manager(context)
        yield from findings
        if not findings:
            yield make_finding("fabric.ok", f"{len(in_fabric)} GPUs registered with the fabric")


def _of_gpu(label: str, subject: str, fabric: FabricReading) -> Iterator[Finding]:
    evidence = fabric.model_dump()
    if fabric.state in STATES:
        yield make_finding(
            "fabric.not_ready",
            f"{label}: fabric registration {STATES[fabric.state]}",
            evidence=evidence,
            subject=subject,
        )
    elif fabric.status != 0:
        yield make_finding(
            "fabric.fault",
            f"{label}: registration ended with NVML code {fabric.status}",
            evidence=evidence,
            subject=subject,
        )
    if fabric.route_unhealthy:
        yield make_finding(
            "fabric.fault", f"{label}: a route is unhealthy", evidence=evidence, subject=subject
        )
    if what := [name for name in DEGRADED if getattr(fabric, name)]:
        yield make_finding(
            "fabric.degraded", f"{label}: {', '.join(what)}", evidence=evidence, subject=subject
        )


def _manager(context: CheckContext) -> Iterator[Finding]:
    reading = context.snapshot.fabric_manager
    if reading is None:
        yield make_finding("fabric.manager_unread", context.snapshot.why_not("fabric_manager"))
    elif reading.load_state == "loaded" and reading.active_state not in RUNNING:
        yield make_finding(
            "fabric.manager_down",
            f"{reading.unit} is {reading.active_state}" + (f" ({reading.result})" if reading.result else ""),
            evidence=reading.model_dump(),
        )
