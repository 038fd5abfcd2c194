"""NVIDIA's kernel messages: by number, and for NVLink errors also by their text.

The meaning of each Xid is that of NVIDIA's Xid catalogue and GPU debug guidelines. Application faults (13, 31, 43, 45) never
lead to a fallback.
"""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

from gpu_actions.models import Finding, VerdictKind
from gpu_actions.snapshot.collectors.kernel_log import KernelLogReading
from gpu_actions.snapshot.collectors.nvml import GpuReading
from gpu_actions.snapshot.kernel_log_lines import XidEvent, normal_pci
from gpu_actions.snapshot.model import utc_text
from gpu_actions.snapshot.progress import READS
from gpu_actions.triage.check import Check, CheckContext
from gpu_actions.triage.rule import CRITICAL, INFO, OK, UNKNOWN, WATCH, Rules, rule

CATALOGUE = "NVIDIA Xid catalogue"

RULES = Rules(
    rule("kernel_log.ok", OK, "the kernel log has no NVIDIA error in the period that was read", source="kernel log"),
    rule(
        "kernel_log.unread", UNKNOWN, "the kernel log could not be read, or is empty",
        "Run triage as root or in the group adm or systemd-journal, or pass --kernel-log FILE.", source="kernel log",
    ),
    rule(
        "kernel_log.lost", UNKNOWN, "kernel messages within the judged period were lost or overwritten before they were read",
        "Read the whole log (journalctl -k, or a file with --kernel-log FILE); a larger log_buf_len keeps more.",
        source="/dev/kmsg sequence numbers", threshold="kernel_log_max_bytes",
    ),
    rule(
        "kernel_log.history", INFO,
        "an error from before the GPU was reset, the driver loaded, the host booted or the tier started",
        source="kernel log; process age",
    ),
    rule(
        "kernel_log.off_bus", CRITICAL, "a GPU has fallen off the bus (Xid 79, or in words)",
        "Fall back to another GPU and reboot the host.", source=CATALOGUE, cause="gpu_lost",
    ),
    rule(
        "kernel_log.init_failed", CRITICAL, "the driver could not initialise a GPU, and does not list it",
        "Fall back to another GPU and reboot the host.", source="NVRM: RmInitAdapter failed", cause="gpu_lost",
    ),
    rule(
        "kernel_log.reset", CRITICAL,
        "an Xid that only a GPU reset clears (46, 62, 64, 95, 109, 110, 119, 120, 140, 143, 158)",
        "Fall back, and reset that GPU once nothing uses it.", source=CATALOGUE, cause="gpu_reset_required",
    ),
    rule(
        "kernel_log.nvlink_fatal", CRITICAL, "a fatal NVLink error (136, 144-150 marked Fatal, a fatal SXid)",
        "Fall back, and reset the GPUs of that fabric.", source=CATALOGUE, cause="nvlink_loss",
    ),
    rule(
        "kernel_log.nvlink", WATCH, "a non-fatal NVLink error (74, 137, 144-150, 155, SXid)",
        "Watch this link; its present state is judged separately.", source=CATALOGUE, cause="nvlink_errors",
        when_broken=VerdictKind.FALL_BACK,
    ),
    rule(
        "kernel_log.ecc", CRITICAL, "an uncorrected ECC error (Xid 48, 171, 172)",
        "Fall back to another GPU and reset this one.", source=CATALOGUE, cause="ecc_uncorrected",
    ),
    rule(
        "kernel_log.contained", WATCH, "a contained ECC error ended an application (Xid 94)",
        "Restart the tier if it is down, and reset the GPU later.", source=CATALOGUE, cause="ecc_uncorrected",
    ),
    rule(
        "kernel_log.remap", WATCH,
        "a memory row was recorded for remapping (Xid 63, 92), or a part of the GPU was retired (156, 157)",
        "Reset the GPU at the next quiet time.", source=CATALOGUE, cause="row_remap_pending",
    ),
    rule(
        "kernel_log.recovery", WATCH, "the recovery action changed (Xid 154), but the GPU asks for nothing now",
        "Run triage again to confirm that the GPU still asks for nothing.", source=CATALOGUE,
        cause="gpu_reset_required",
    ),
    rule(
        "kernel_log.recovery_open", CRITICAL,
        "the recovery action changed (Xid 154), and its present value could not be read",
        "Fall back, and do what the kernel message says.", source=CATALOGUE, cause="gpu_reset_required",
    ),
    rule(
        "kernel_log.application", WATCH, "an application fault (Xid 13, 31, 43, 45); never a reason to fall back",
        "Read the application's own log and check its version.", source=CATALOGUE, cause="application_fault",
    ),
    rule(
        "kernel_log.other", WATCH, "an Xid or SXid without a rule", "Look it up in NVIDIA's Xid catalogue.",
        source=CATALOGUE, cause="kernel_error",
    ),
    rule(
        "kernel_log.cut", INFO, "the log is longer than the limit: only its end was read", source="settings",
        threshold="kernel_log_max_bytes",
    ),
)  # fmt: skip

XIDS: dict[int, tuple[str, str]] = {
    13: ("application", "graphics engine exception (application)"),
    31: ("application", "memory page fault (application)"),
    43: ("application", "GPU stopped processing (application)"),
    45: ("application", "channels torn down after an application ended"),
    46: ("reset", "GPU stopped processing"),
    48: ("ecc", "double-bit ECC error"),
    62: ("reset", "internal micro-controller halt"),
    63: ("remap", "row remapping recorded"),
    64: ("reset", "row remapping failed"),
    74: ("nvlink", "NVLink error"),
    79: ("off_bus", "GPU has fallen off the bus"),
    92: ("remap", "high rate of corrected ECC errors"),
    94: ("contained", "contained ECC error: the application was stopped"),
    95: ("reset", "uncontained ECC error"),
    109: ("reset", "context switch time-out"),
    110: ("reset", "security fault"),
    119: ("reset", "GSP RPC time-out"),
    120: ("reset", "GSP error"),
    136: ("nvlink_fatal", "NVLink training failed"),
    137: ("nvlink", "NVLink privilege error"),
    140: ("reset", "unrecovered ECC error"),
    143: ("reset", "GPU initialisation failed"),
    **dict.fromkeys(range(144, 151), ("nvlink", "NVLink 5 error")),
    154: ("recovery", "GPU recovery action changed"),
    155: ("nvlink", "NVLink software defined error"),
    156: ("remap", "a part of the GPU was retired"),
    157: ("remap", "a part of the GPU could not be retired: no spare is left"),
    158: ("reset", "GPU fatal time-out"),
    171: ("ecc", "uncorrected error of its DRAM"),
    172: ("ecc", "uncorrected error of its SRAM"),
}
"""The rule and the meaning of each Xid."""

_FATAL = re.compile(r"(?<!non-)(?<!non )\bfatal\b", re.IGNORECASE)
MARKERS = {
    "boot": "the host booted",
    "driver_load": "the driver was loaded",
    "gpu_reset": "the GPU was reset",
}
_TO_ACTION = re.compile(r"\bto (?:0x)?([0-9a-f]{1,4})\b", re.IGNORECASE)


def check_kernel_log(context: CheckContext) -> Iterator[Finding]:
    """Judge the kernel log. A host without GPUs is judged only by a configured file."""
    snapshot = context.snapshot
    log = snapshot.kernel_log
    if log is None:
        if context.has_gpus and not snapshot.skipped("kernel_log"):
            yield RULES.finding("kernel_log.unread", snapshot.why_not("kernel_log"))
        return
    if not context.has_gpus and not log.events:
        return
    if log.lines_read == 0 and not log.events:
        yield RULES.finding("kernel_log.unread", f"{log.source} is empty: nothing can be concluded from it")
        return
    gpus = {normal_pci(gpu.pci): gpu for gpu in (snapshot.nvml.gpus if snapshot.nvml else ()) if gpu.pci}
    groups: dict[tuple[str, int | None, str, str], list[XidEvent]] = {}
    for event in log.events:
        gpu = gpus.get(normal_pci(event.pci))
        over = why_over(context, log, event, gpu)
        listed = gpu is not None or _has_all_gpus(context)
        rule_id = "kernel_log.history" if over else rule_of(event, gpu, listed=listed)
        groups.setdefault((rule_id, event.code, event.pci, over), []).append(event)
    for (rule_id, _, pci, over), events in groups.items():
        yield _finding(rule_id, events, gpus.get(normal_pci(pci)), over=over)
    if log.lost:
        yield RULES.finding("kernel_log.lost", f"{log.source}: {log.lost}")
    elif log.truncated:
        yield RULES.finding("kernel_log.cut", f"{log.source}: only the end was read")
    if not log.lost and all(rule_id == "kernel_log.history" for rule_id, *_ in groups):
        since = f" since {utc_text(log.since)}" if log.since is not None else ""
        new = "new " if groups else ""
        yield RULES.finding(
            "kernel_log.ok", f"no {new}NVIDIA error in {log.source}{since} ({log.lines_read} lines)"
        )


def why_over(context: CheckContext, log: KernelLogReading, event: XidEvent, gpu: GpuReading | None) -> str:
    """Return what made an event history, or an empty string if it still counts.

    A restart of the tier alone clears an error of the hardware only if the GPU was read since, asks for nothing, and the tier
    works: the error may be what ended the tier before.
    """
    for marker in log.markers:
        own = gpu is not None and bool(marker.uuid) and marker.uuid.lower() == gpu.uuid.lower()
        concerns = marker.kind != "gpu_reset" or own or (bool(event.pci) and marker.pci == event.pci)
        if concerns and event.line <= marker.line:
            at = f" ({utc_text(marker.at)})" if marker.at is not None else ""
            return f"before {MARKERS[marker.kind]}{at}"
    started = tier_start(context)
    if started is None or event.at is None or event.at >= started or context.progress.broken:
        return ""
    gpu_is_well = gpu is not None and gpu.error is None and not gpu.recovery_action
    return (
        f"before the tier started ({utc_text(started)})" if event.is_application_fault or gpu_is_well else ""
    )


def tier_start(context: CheckContext) -> datetime | None:
    """Return when the tier's oldest living main process started, or None if it is not known."""
    ranks = context.snapshot.ranks
    roots = [row for row in (ranks.processes if ranks else ()) if row.root and row.is_alive]
    ages = [row.age_s for row in roots if row.age_s is not None]
    if not ages or len(ages) < len(roots):
        return None
    try:
        return context.snapshot.taken_at - timedelta(seconds=max(ages))
    except OverflowError:
        return None


def _has_all_gpus(context: CheckContext) -> bool:
    """Return True if the driver lists as many GPUs as the settings say: a broken one beside them is known."""
    nvml, expected = context.snapshot.nvml, context.snapshot.expected.gpus
    return nvml is not None and expected is not None and (nvml.count or 0) >= expected


def rule_of(event: XidEvent, gpu: GpuReading | None, *, listed: bool) -> str:
    """Return the id of the rule for an event. `listed`: no GPU is missing that it could be about."""
    fatal = _FATAL.search(event.text) is not None
    kind, _ = XIDS.get(event.code or -1, ("other", ""))
    if event.kind == "off_bus":
        kind = "off_bus"
    elif event.kind == "init_failed" and not listed:
        kind = "init_failed"
    elif event.kind == "sxid":
        kind = "nvlink_fatal" if fatal else "nvlink"
    elif kind == "nvlink" and fatal:
        kind = "nvlink_fatal"
    elif kind == "recovery":
        target = _TO_ACTION.search(event.text)
        now_unknown = gpu is None or gpu.recovery_action is None
        if now_unknown and (target is None or int(target.group(1), 16) != 0):
            kind = "recovery_open"
    return f"kernel_log.{kind}"


def _finding(rule_id: str, events: list[XidEvent], gpu: GpuReading | None, *, over: str) -> Finding:
    code, kind, pci = events[0].code, events[0].kind, events[0].pci
    words = {"off_bus": "off the bus", "init_failed": "it failed to initialise"}
    what = words.get(kind, "error") if code is None else f"{'SXid' if kind == 'sxid' else 'Xid'} {code}"
    if kind == "xid" and code in XIDS:
        what += f", {XIDS[code][1]}"
    where = gpu.label if gpu is not None else pci or "an unnamed GPU"
    times = [event.at for event in events if event.at is not None]
    number = sum(event.times for event in events)
    return RULES.finding(
        rule_id,
        f"{where}: {what}" + (f" ({number} times)" if number > 1 else "") + (f", {over}" if over else ""),
        code=code,
        pci=pci,
        times=number,
        first=utc_text(min(times)) if times else None,
        last=utc_text(max(times)) if times else None,
        text=events[-1].text[:200],
        subject=gpu.subject if gpu is not None else pci or None,
    )


KERNEL_LOG = Check(
    title="Kernel log",
    rules=RULES,
    reads=READS | {"kernel_log"},
    judge=check_kernel_log,
)
