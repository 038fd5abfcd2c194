"""The fabric manager's service: NVML's "completed" is latched and outlives a dead manager."""

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped, Source
from gpu_actions.system.processes import run_process
from gpu_actions.system.redact import redacted_head

TIMEOUT_S = 3.0
PROPERTIES = ("LoadState", "ActiveState", "SubState", "Result")


class FabricManagerReading(Frozen):
    """State of the fabric manager's service."""

    unit: str
    load_state: str = Field(description="loaded, not-found, masked, ...")
    active_state: str = Field(description="active, inactive, failed, ...")
    sub_state: str = ""
    result: str = ""


def parse_show(text: str, *, unit: str) -> FabricManagerReading:
    """Parse `systemctl show`. Raises CollectorFailed if the states are missing."""
    values = {key: value[:40] for key, _, value in (line.partition("=") for line in text.splitlines())}
    if not values.get("LoadState") or not values.get("ActiveState"):
        raise CollectorFailed(f"systemctl reported no state of {unit}")
    return FabricManagerReading(
        unit=unit,
        load_state=values["LoadState"],
        active_state=values["ActiveState"],
        sub_state=values.get("SubState", ""),
        result=values.get("Result", ""),
    )


async def collect_fabric_manager(source: Source) -> FabricManagerReading:
    """Read the state of the service. Raises CollectorSkipped on a CPU host, CollectorFailed if systemctl does not answer."""
    unit = source.target.fabric_manager_unit
    if source.target.expect_gpus == 0:
        raise CollectorSkipped("this host has no GPUs (hosts.gpus = 0)")
    argv = ["systemctl", "show", "--no-pager", "--property", ",".join(PROPERTIES), "--", unit]
    try:
        result = await run_process(argv, timeout_s=TIMEOUT_S)
    except FileNotFoundError:
        raise CollectorFailed("systemctl is not installed") from None
    if result.timed_out or result.exit_code != 0:
        why = "no answer" if result.timed_out else result.stderr.strip()
        raise CollectorFailed(f"systemctl show {unit}: {redacted_head(why, 160)}")
    return parse_show(result.stdout, unit=unit)


FABRIC_MANAGER = Collector(collect=collect_fabric_manager, deadline_s=lambda source: 2 * TIMEOUT_S)
