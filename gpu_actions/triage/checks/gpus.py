"""Checks on each GPU by itself: there at all, the driver's own verdict, memory, heat, and what could not be read."""

from collections.abc import Iterator

from gpu_actions.models import Finding, Severity
from gpu_actions.snapshot.collectors.nvml import GpuReading, NvmlReading
from gpu_actions.triage.checks.context import CheckContext, count, make_finding

LOST = ("gpu_is_lost", "gpu_not_found")
REQUIRED = ("ecc_uncorrected", "remapped_rows", "recovery_action", "uuid")
"""Readings that can call for a fallback: without them the verdict is unknown."""
ONLY_DETAIL = (
    "slowdown_temperature_c",
    "power_limit_w",
    "max_sm_clock_mhz",
    "name",
    "pci",
    "remote_ends",
    "link_speed",
)
"""Readings that explain others or have a setting in their place."""
ELSEWHERE = ("links",)

HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x8, 0x20, 0x40, 0x80
"""Clocks event reasons of NVML."""


def name_of(gpu: GpuReading) -> str:
    """What findings about a GPU have as subject."""
    return gpu.uuid or gpu.label


def check_gpus(context: CheckContext) -> Iterator[Finding]:
    """Findings on the GPUs; none on a host without."""
    if not context.has_gpus:
        return
    nvml = context.snapshot.nvml
    if nvml is None:
        yield make_finding("gpu.unread", f"no GPU could be read: {context.snapshot.why_not('nvml')}")
        return
    findings = [*_host(context, nvml)]
    for gpu in nvml.gpus:
        findings += _one(context, gpu)
    findings += _unread(nvml)
    yield from findings
    bad = {finding.subject for finding in findings if finding.severity not in (Severity.OK, Severity.INFO)}
    fine = [gpu for gpu in nvml.gpus if gpu.error is None and name_of(gpu) not in bad]
    if fine:
        yield make_finding("gpu.ok", f"{count(len(fine), 'GPU')} without a finding of {len(nvml.gpus)}")


def _host(context: CheckContext, nvml: NvmlReading) -> Iterator[Finding]:
    expected = context.snapshot.expected.gpus
    if nvml.hung_call is not None:
        where = "" if nvml.hung_gpu is None else f" on GPU {nvml.hung_gpu}"
        yield make_finding(
            "gpu.driver_hang",
            f"{nvml.hung_call}{where} did not come back within {context.thresholds.nvml_stall_s:g} s",
            evidence={"call": nvml.hung_call, "gpu": nvml.hung_gpu},
            subject=None if nvml.hung_gpu is None else f"GPU {nvml.hung_gpu}",
        )
    if nvml.init_error is not None:
        lost = nvml.init_error.startswith(LOST)
        yield make_finding(
            "gpu.lost" if lost else "gpu.unread",
            f"NVML does not start: {nvml.init_error}",
            evidence={"init_error": nvml.init_error},
        )
    elif nvml.count is None:
        if nvml.hung_call is None:
            yield make_finding("gpu.unread", "NVML gave no number of GPUs")
    elif expected is not None and nvml.count < expected:
        yield make_finding(
            "gpu.lost",
            f"{nvml.count} of {expected} GPUs are there",
            evidence={"expected": expected, "found": nvml.count},
        )
    elif expected is not None and nvml.count > expected:
        yield make_finding("gpu.extra", f"{nvml.count} GPUs, {expected} expected")
    elif nvml.count == 0:
        yield make_finding("gpu.unread", "the driver is loaded but shows no GPU")
    absent = (nvml.count or 0) - len(nvml.gpus) - (nvml.hung_gpu is not None)
    if absent > 0 and nvml.init_error is None:
        yield make_finding("gpu.unread", f"{count(absent, 'GPU')} could not be reached by the sweep")


def _one(context: CheckContext, gpu: GpuReading) -> Iterator[Finding]:
    subject = name_of(gpu)
    if gpu.error is not None:
        if gpu.error in LOST:
            yield make_finding(
                "gpu.lost", f"{gpu.label} is lost ({gpu.error})", evidence={"pci": gpu.pci}, subject=subject
            )
        elif gpu.error == "reset_required":
            yield make_finding(
                "gpu.reset_required", f"{gpu.label}: NVML says reset_required", subject=subject
            )
        else:
            yield make_finding("gpu.unread", f"{gpu.label} cannot be read: {gpu.error}", subject=subject)
        return
    yield from _recovery(gpu)
    yield from _memory(context, gpu)
    yield from _heat(context, gpu)
    if gpu.mig:
        yield make_finding("gpu.mig", f"{gpu.label} is partitioned", subject=subject)
    expected = context.snapshot.expected
    strays = [process for process in gpu.processes if process.pid not in expected.other_pids]
    if strays and not expected.tier_expected:
        held_mib = sum(process.memory_mib or 0 for process in strays)
        yield make_finding(
            "gpu.memory_held",
            f"{gpu.label}: {count(len(strays), 'process', 'processes')} hold {held_mib / 1024:.1f} GiB",
            evidence={"processes": [process.model_dump() for process in strays[:16]]},
            subject=subject,
        )


def _recovery(gpu: GpuReading) -> Iterator[Finding]:
    rules = {
        1: "gpu.reset_required",
        2: "gpu.reboot_required",
        3: "gpu.drain_p2p",
        4: "gpu.reset_required",
        5: "gpu.imex_domain",
        6: "gpu.reset_required",
        7: "gpu.reboot_required",
    }
    if gpu.recovery_action:
        yield make_finding(
            rules.get(gpu.recovery_action, "gpu.reset_required"),
            f"{gpu.label}: the driver's recovery action is {gpu.recovery_action}",
            evidence={"recovery_action": gpu.recovery_action},
            subject=name_of(gpu),
        )


def _memory(context: CheckContext, gpu: GpuReading) -> Iterator[Finding]:
    subject, latest = name_of(gpu), gpu.latest
    if gpu.remapped_failure:
        yield make_finding("gpu.row_remap_failed", f"{gpu.label}: row remapping failed", subject=subject)
    if gpu.remapped_pending:
        yield make_finding(
            "gpu.row_remap_pending", f"{gpu.label}: a row remap waits for a reset", subject=subject
        )
    if latest.ecc_uncorrected:
        grown = latest.ecc_uncorrected - (gpu.first.ecc_uncorrected or 0)
        yield make_finding(
            "gpu.ecc_uncorrected",
            f"{gpu.label}: {latest.ecc_uncorrected} uncorrected ECC errors"
            + (f", {grown} within the window" if grown > 0 else ""),
            evidence={"volatile": latest.ecc_uncorrected, "delta": max(0, grown)},
            subject=subject,
        )
    if latest.ecc_corrected is not None and gpu.first.ecc_corrected is not None:
        delta = latest.ecc_corrected - gpu.first.ecc_corrected
        if delta >= context.thresholds.ecc_correctable_delta:
            yield make_finding(
                "gpu.ecc_corrected",
                f"{gpu.label}: {delta} corrected ECC errors within the window",
                evidence={"delta": delta},
                subject=subject,
            )


def _heat(context: CheckContext, gpu: GpuReading) -> Iterator[Finding]:
    subject, latest = name_of(gpu), gpu.latest
    lasting = (gpu.first.event_reasons or 0) & (latest.event_reasons or 0)
    limit_c = context.thresholds.temperature_watch_c
    if gpu.slowdown_temperature_c:
        limit_c = gpu.slowdown_temperature_c - context.thresholds.temperature_margin_c
    hot = latest.temperature_c is not None and latest.temperature_c >= limit_c
    evidence = {
        "event_reasons": f"{lasting:#x}",
        "temperature_c": latest.temperature_c,
        "limit_c": limit_c,
        "power_w": latest.power_w,
        "sm_clock_mhz": latest.sm_clock_mhz,
    }
    if hot or lasting & (SW_THERMAL | HW_THERMAL):
        yield make_finding(
            "gpu.thermal",
            f"{gpu.label}: {latest.temperature_c} C" + (", slowed by heat" if lasting & 0x60 else ""),
            evidence=evidence,
            subject=subject,
        )
    if lasting & (POWER_BRAKE | HW_SLOWDOWN) and not lasting & HW_THERMAL:
        what = "power brake" if lasting & POWER_BRAKE else "hardware slowdown"
        yield make_finding("gpu.slowdown", f"{gpu.label}: {what}", evidence=evidence, subject=subject)


def _unread(nvml: NvmlReading) -> Iterator[Finding]:
    """What could not be read, one finding a reading and reason, over all GPUs."""
    where: dict[tuple[str, str], list[str]] = {}
    for gpu in nvml.gpus:
        if gpu.error is None:
            for field, word in gpu.unread.items():
                where.setdefault((field, word), []).append(gpu.label)
    for (field, word), labels in where.items():
        if field in ELSEWHERE:
            continue
        rule = "gpu.unread" if field in REQUIRED else "gpu.unread_watch"
        if field in ONLY_DETAIL or (field not in REQUIRED and word == "not_supported"):
            rule = "gpu.unread_detail"
        yield make_finding(
            rule,
            f"{field}: {word} on {count(len(labels), 'GPU')}",
            evidence={"field": field, "reason": word, "gpus": labels},
        )
