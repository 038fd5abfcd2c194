"""The fabric manager's unit as systemd sees it: NVML's "completed" is latched and outlives a dead manager."""

from gpu_actions.snapshot.collectors import CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.host_model import FabricManagerReading
from gpu_actions.system.processes import run_process

PROPERTIES = ("LoadState", "ActiveState", "SubState", "Result")


def parse_show(text: str, *, unit: str) -> FabricManagerReading:
    """Parse `systemctl show`. Raises CollectorFailed when its states are not there."""
    values = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    if not values.get("LoadState") or not values.get("ActiveState"):
        raise CollectorFailed(f"systemctl says nothing about {unit}")
    return FabricManagerReading(
        unit=unit,
        load_state=values["LoadState"][:40],
        active_state=values["ActiveState"][:40],
        sub_state=values.get("SubState", "")[:40],
        result=values.get("Result", "")[:40],
    )


async def collect_fabric_manager(
    unit: str, *, expect_gpus: int | None, timeout_s: float = 3.0
) -> FabricManagerReading:
    """Ask systemd. Raises CollectorSkipped on a CPU host, CollectorFailed where systemd does not answer."""
    if expect_gpus == 0:
        raise CollectorSkipped("this host declares no GPUs")
    argv = ["systemctl", "show", "--no-pager", "--property", ",".join(PROPERTIES), "--", unit]
    try:
        result = await run_process(argv, timeout_s=timeout_s)
    except FileNotFoundError:
        raise CollectorFailed("there is no systemctl here") from None
    if result.timed_out or result.exit_code != 0:
        why = "no answer" if result.timed_out else result.stderr.strip()
        raise CollectorFailed(f"systemctl show {unit}: {why[:160]}")
    return parse_show(result.stdout, unit=unit)
