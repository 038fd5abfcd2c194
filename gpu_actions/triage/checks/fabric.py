"""The NVSwitch fabric and the service that manages it."""

from collections.abc import Iterator

from gpu_actions.models import Finding, VerdictKind
from gpu_actions.snapshot.collectors.nvml import FabricReading, GpuReading
from gpu_actions.triage.check import Check, CheckContext, count
from gpu_actions.triage.rule import CRITICAL, OK, UNKNOWN, WATCH, Rules, rule

MASK = "NVML fabric health mask (1 = true)"

RULES = Rules(
    rule("fabric.ok", OK, "the GPUs are registered with the fabric and its manager runs", source="NVML, systemctl"),
    rule(
        "fabric.not_ready", CRITICAL, "a GPU is not registered with the fabric: a tier that starts now would fail",
        "Start nvidia-fabricmanager and read its log.", source="NVML fabric info: 3 = completed",
        cause="fabric_manager_down", verdict=VerdictKind.WATCH, when_broken=VerdictKind.FALL_BACK,
    ),
    rule(
        "fabric.fault", CRITICAL, "the fabric reports a broken route, or a registration that ended with an error",
        "Fall back. Then check the switches and the fabric manager's log.", source=MASK, cause="nvlink_loss",
    ),
    rule(
        "fabric.degraded", WATCH,
        "the fabric reports reduced bandwidth, a route recovery, a time-out or a wrong configuration",
        "Read the fabric manager's log and plan a reset.", source=MASK, cause="nvlink_errors",
    ),
    rule(
        "fabric.manager_down", CRITICAL,
        "the fabric manager is installed but does not run; NVML still shows the state from before (it is latched)",
        "Start the service. A running tier keeps running, but a new one cannot start without it.", source="systemctl",
        cause="fabric_manager_down", verdict=VerdictKind.WATCH, when_broken=VerdictKind.FALL_BACK,
    ),
    rule(
        "fabric.manager_unread", UNKNOWN,
        "GPUs are attached to switches, but the fabric manager's state could not be read",
        "Run triage where systemctl answers. In a VM the manager may run on the hypervisor.", source="systemctl",
        verdict=VerdictKind.HEALTHY,
    ),
)  # fmt: skip

STATES = {1: "not started", 2: "in progress"}
RUNNING = ("active", "activating", "reloading")
DEGRADED = ("degraded_bandwidth", "route_recovery", "access_timeout", "incorrect_configuration")


def check_fabric(context: CheckContext) -> Iterator[Finding]:
    """Judge the fabric, if any GPU is attached to a switch."""
    nvml = context.snapshot.nvml
    if nvml is None or not context.has_gpus:
        return
    switched = any(link.remote_kind == "switch" for gpu in nvml.whole_gpus for link in gpu.links)
    registered = [(gpu, gpu.fabric) for gpu in nvml.whole_gpus if gpu.fabric and gpu.fabric.state != 0]
    if not switched and not registered:
        return
    findings = [finding for gpu, fabric in registered for finding in _registration(gpu, fabric)]
    findings += _manager(context)
    yield from findings
    if not findings:
        yield RULES.finding("fabric.ok", f"registered with the fabric: {count(len(registered), 'GPU')}")


def _registration(gpu: GpuReading, fabric: FabricReading) -> Iterator[Finding]:
    evidence = fabric.model_dump()
    if fabric.state in STATES:
        yield RULES.on_gpu(gpu, "fabric.not_ready", f"fabric registration {STATES[fabric.state]}", **evidence)
    elif fabric.status != 0:
        yield RULES.on_gpu(
            gpu, "fabric.fault", f"fabric registration ended with NVML code {fabric.status}", **evidence
        )
    if fabric.route_unhealthy:
        yield RULES.on_gpu(gpu, "fabric.fault", "a fabric route is unhealthy", **evidence)
    if degraded := [name for name in DEGRADED if getattr(fabric, name)]:
        text = ", ".join(name.replace("_", " ") for name in degraded)
        yield RULES.on_gpu(gpu, "fabric.degraded", f"fabric: {text}", **evidence)


def _manager(context: CheckContext) -> Iterator[Finding]:
    reading = context.snapshot.fabric_manager
    if reading is None:
        yield RULES.finding("fabric.manager_unread", context.snapshot.why_not("fabric_manager"))
    elif reading.load_state == "loaded" and reading.active_state not in RUNNING:
        yield RULES.finding(
            "fabric.manager_down",
            f"{reading.unit} is {reading.active_state}" + (f" ({reading.result})" if reading.result else ""),
            **reading.model_dump(),
        )


FABRIC = Check(
    title="NVSwitch fabric", rules=RULES, reads=frozenset({"nvml", "fabric_manager"}), judge=check_fabric
)
