"""What NVIDIA's kernel messages mean: by number, and for NVLink errors also by their text."""

import re
from collections.abc import Iterator

from gpu_actions.models import Finding
from gpu_actions.snapshot.collectors.kernel_log import XidEvent, normal_pci
from gpu_actions.snapshot.collectors.nvml import GpuReading
from gpu_actions.snapshot.model import utc_text
from gpu_actions.triage.checks.context import CheckContext, make_finding
from gpu_actions.triage.checks.gpus import name_of
from gpu_actions.triage.rules import kernel as table

_FATAL = re.compile(r"(?<!non-)(?<!non )\bfatal\b", re.IGNORECASE)
_TO_ACTION = re.compile(r"\bto (?:0x)?([0-9a-f]{1,4})\b", re.IGNORECASE)


def check_kernel_log(context: CheckContext) -> Iterator[Finding]:
    """Findings on the kernel log; a host without GPUs is judged only by a file that was named for it."""
    log = context.snapshot.kernel_log
    if log is None:
        if context.has_gpus and not context.snapshot.skipped("kernel_log"):
            yield make_finding("kernel_log.unread", context.snapshot.why_not("kernel_log"))
        return
    if not context.has_gpus and not log.events:
        return
    gpus = {
        normal_pci(gpu.pci): gpu
        for gpu in (context.snapshot.nvml.gpus if context.snapshot.nvml else ())
        if gpu.pci
    }
    groups: dict[tuple[str, int | None, str], list[XidEvent]] = {}
    for event in log.events:
        gpu = gpus.get(normal_pci(event.pci))
        groups.setdefault((rule_of(event, gpu), event.code, event.pci), []).append(event)
    for (rule_id, code, pci), events in groups.items():
        gpu = gpus.get(normal_pci(pci))
        yield _finding(rule_id, code, pci, events, gpu)
    if log.truncated or log.dropped_events:
        yield make_finding(
            "kernel_log.cut",
            f"{log.source}: only the end was read"
            + (f", {log.dropped_events} events more" if log.dropped_events else ""),
        )
    if not groups:
        since = f" since {utc_text(log.since)}" if log.since is not None else ""
        yield make_finding(
            "kernel_log.ok", f"no NVIDIA error in {log.source}{since} ({log.lines_read} lines)"
        )


def rule_of(event: XidEvent, gpu: GpuReading | None) -> str:
    """The rule for an event."""
    code, fatal = event.code, _FATAL.search(event.text) is not None
    if event.kind == "off_bus" or (event.kind == "xid" and code in table.OFF_BUS_XIDS):
        return "kernel_log.off_bus"
    if event.kind == "sxid":
        return "kernel_log.nvlink_fatal" if fatal else "kernel_log.nvlink"
    if code in table.NVLINK_RESET_XIDS or (code in table.NVLINK_XIDS and fatal):
        return "kernel_log.nvlink_fatal"
    for codes, rule_id in (
        (table.APPLICATION_XIDS, "kernel_log.application"),
        (table.NVLINK_XIDS, "kernel_log.nvlink"),
        (table.RESET_XIDS, "kernel_log.reset"),
        (table.ECC_XIDS, "kernel_log.ecc"),
        (table.CONTAINED_XIDS, "kernel_log.contained"),
        (table.REMAP_XIDS, "kernel_log.remap"),
    ):
        if code in codes:
            return rule_id
    if code in table.RECOVERY_XIDS:
        target = _TO_ACTION.search(event.text)
        now_unknown = gpu is None or gpu.recovery_action is None
        asks = target is None or int(target.group(1), 16) != 0
        return "kernel_log.recovery_open" if now_unknown and asks else "kernel_log.recovery"
    return "kernel_log.other"


def _finding(
    rule_id: str, code: int | None, pci: str, events: list[XidEvent], gpu: GpuReading | None
) -> Finding:
    what = "off the bus" if code is None else f"{'SXid' if events[0].kind == 'sxid' else 'Xid'} {code}"
    words = table.XID_WORDS.get(code or -1, "") if events[0].kind == "xid" else ""
    where = gpu.label if gpu is not None else pci or "an unnamed GPU"
    times = [event.at for event in events if event.at is not None]
    return make_finding(
        rule_id,
        f"{where}: {what}"
        + (f", {words}" if words else "")
        + (f" ({len(events)} times)" if len(events) > 1 else ""),
        evidence={
            "code": code,
            "pci": pci,
            "times": len(events),
            "first": utc_text(min(times)) if times else None,
            "last": utc_text(max(times)) if times else None,
            "text": events[-1].text[:200],
        },
        subject=name_of(gpu) if gpu is not None else pci or None,
    )
