"""Each GPU by itself: is it there, what does its driver ask for, memory, heat, and what could not be read."""

from collections.abc import Iterator
from statistics import median

from gpu_actions.models import Finding, Severity, VerdictKind
from gpu_actions.snapshot.collectors.nvml import GpuReading, NvmlReading
from gpu_actions.triage.check import Check, CheckContext, count
from gpu_actions.triage.rule import CRITICAL, INFO, OK, UNKNOWN, WATCH, Rules, rule

FIELD_230 = "NVML field 230, the driver's own recovery action"
DCGM = "DCGM health watches"

RULES = Rules(
    rule("gpu.ok", OK, "the GPU was read and nothing is wrong with it", source="NVML"),
    rule(
        "gpu.unread", UNKNOWN, "a reading that can call for a fallback failed (missing symbol, not supported, error)",
        "Update the driver or nvidia-ml-py; a field that this host never has can be accepted: triage.accept_unknown = "
        '["gpu.unread:FIELD"].',
        source="NVML return codes: FunctionNotFound and NotSupported are never OK",
    ),
    rule(
        "gpu.unread_detail", INFO, "this GPU does not have a reading that could have called for a watch at most",
        "No action needed: the checks of this reading do not apply to this GPU.", source="NVML NotSupported",
    ),
    rule(
        "gpu.unread_watch", UNKNOWN, "a reading that could have called for a watch failed",
        "Run triage again; the reason is in the summary.", source="NVML return codes", verdict=VerdictKind.WATCH,
    ),
    rule(
        "gpu.driver_hang", CRITICAL, "an NVML call did not return within its deadline: the driver blocks",
        "Run nvidia-bug-report.sh --safe-mode. If the tier does not serve either, fall back, then reboot the host.",
        source="NVML calls can block for minutes on a sick driver", cause="driver_hang", verdict=VerdictKind.UNKNOWN,
        when_broken=VerdictKind.FALL_BACK, threshold="nvml_stall_s",
    ),
    rule(
        "gpu.lost", CRITICAL, "NVML reports a lost GPU, or the host has fewer GPUs than expected",
        "Fall back to another GPU. Reboot the host, then check the GPU's slot and power.",
        source="NVML GPU_IS_LOST; hosts.gpus", cause="gpu_lost",
    ),
    rule(
        "gpu.driver_mismatch", UNKNOWN,
        "the driver was upgraded under running processes: its library and the loaded module differ, so no GPU can be read",
        "Keep the running tier: whatever starts now gets no GPU, a fallback too. Reboot the host at a quiet time.",
        source="NVML LIB_RM_VERSION_MISMATCH",
    ),
    rule(
        "gpu.prohibited", WATCH, "the GPU's compute mode is Prohibited: a tier that starts now gets no context on it",
        "Set it back: nvidia-smi -i GPU -c DEFAULT.", source="NVML compute mode", cause="environment",
    ),
    rule(
        "gpu.extra", INFO, "the host has more GPUs than expected", "Correct hosts.gpus in the settings.",
        source="hosts.gpus",
    ),
    rule(
        "gpu.reset_required", CRITICAL,
        "the driver asks for a GPU reset (recovery action 1, 4 or 6, or RESET_REQUIRED)",
        "Fall back. Once no process uses the GPU, run nvidia-smi --gpu-reset; for action 4, drain it first.",
        source=FIELD_230, cause="gpu_reset_required",
    ),
    rule(
        "gpu.reboot_required", CRITICAL, "the driver asks for a reboot of the host (recovery action 2 or 7)",
        "Fall back if another GPU still works, and plan the reboot.", source=FIELD_230, cause="gpu_reset_required",
    ),
    rule(
        "gpu.drain_p2p", CRITICAL, "the driver asks to drain P2P traffic (recovery action 3)",
        "Fall back: one GPU needs no P2P. Then reset the GPUs of that fabric.", source=FIELD_230, cause="nvlink_loss",
    ),
    rule(
        "gpu.imex_domain", WATCH, "the driver asks to recover the IMEX domain (recovery action 5)",
        "Restart nvidia-imex on all nodes of the domain.", source=FIELD_230, cause="nvlink_errors",
    ),
    rule(
        "gpu.row_remap_pending", WATCH, "memory rows wait to be remapped; the GPU works until its next reset",
        "Reset the GPU at the next quiet time.", source=f"{DCGM}; NVML remapped rows", cause="row_remap_pending",
    ),
    rule(
        "gpu.row_remap_failed", CRITICAL, "the GPU failed to remap bad memory rows",
        "Fall back to another GPU and have this one replaced.", source=f"{DCGM}; NVML remapped rows",
        cause="row_remap_failed",
    ),
    rule(
        "gpu.remap_spares", WATCH, "a memory bank has no spare row left: its next bad row cannot be remapped",
        "Plan the replacement of the GPU: the next such error fails the remap.", source="NVML row remapper histogram",
        cause="row_remap_pending",
    ),
    rule(
        "gpu.repair_pending", WATCH, "a repair of a memory channel or of a TPC waits for a reset",
        "Reset the GPU at the next quiet time.", source="NVML repair status", cause="row_remap_pending",
    ),
    rule(
        "gpu.sram_threshold", WATCH, "SRAM errors of the GPU are above NVIDIA's threshold for replacement",
        "Plan the replacement of the GPU; move the tier off it at the next quiet time.", source="NVML SRAM ECC status",
        cause="ecc_uncorrected",
    ),
    rule(
        "gpu.ecc_uncorrected", CRITICAL, "uncorrected ECC errors since the driver was loaded: results may be wrong",
        "Fall back to another GPU. Reset this one; if the errors come back, have it replaced.",
        source=f"{DCGM}: volatile > 0 fails", cause="ecc_uncorrected",
    ),
    rule(
        "gpu.ecc_corrected", WATCH, "many corrected ECC errors within the window", "Plan a memory test of this GPU.",
        source=DCGM, cause="ecc_uncorrected", threshold="ecc_correctable_delta",
    ),
    rule(
        "gpu.thermal", WATCH,
        "heat slows the GPU down (event reasons 0x20, 0x40), or it is near its slowdown temperature",
        "Check fans, inlet temperature and neighbouring GPUs; lower the power limit if it stays hot.",
        source="NVML clocks event reasons", cause="thermal", threshold="temperature_margin_c",
    ),
    rule(
        "gpu.slowdown", WATCH, "hardware slowdown or power brake (event reasons 0x8, 0x80) in both samples",
        "Check power supplies and the rack's power limit.", source="NVML clocks event reasons", cause="throttling",
    ),
    rule(
        "gpu.clock_low", WATCH, "the clock of a busy GPU is far below its maximum, and NVML names no reason",
        "Run nvidia-smi -q -d CLOCK,PERFORMANCE. Lift a clock limit (nvidia-smi -rgc), or reset the GPU at a quiet time.",
        source="NVML SM clock, utilisation and clocks event reasons", cause="throttling", threshold="clock_low_share",
    ),
    rule(
        "gpu.straggler", WATCH, "one GPU of several runs slower than the others, which wait for it at each collective",
        "Look at this GPU first: its power limit, its cooling, its clocks. The others are not at fault.",
        source="SM clocks of the busy GPUs compared", cause="throttling", threshold="straggler_share",
    ),
    rule("gpu.mig", INFO, "MIG is on: links and P2P do not apply", source="NVML MIG mode"),
    rule(
        "gpu.memory_held", WATCH, "the tier is stopped on purpose, but a process still holds GPU memory",
        "Find the process by its pid and end it before the next start.", source="NVML compute processes",
        cause="memory_held",
    ),
)  # fmt: skip

LOST = ("gpu_is_lost", "gpu_not_found")
RECOVERY_ACTIONS = {
    1: "gpu.reset_required",
    2: "gpu.reboot_required",
    3: "gpu.drain_p2p",
    4: "gpu.reset_required",
    5: "gpu.imex_domain",
    6: "gpu.reset_required",
    7: "gpu.reboot_required",
}
REQUIRED = ("ecc_uncorrected", "remapped_rows", "recovery_action", "uuid")
"""Readings that can call for a fallback: without them the verdict is unknown."""
ONLY_DETAIL = (
    "slowdown_temperature_c", "power_limit_w", "max_sm_clock_mhz", "compute_mode", "name", "pci", "remote_ends",
    "link_speed", "process_utilisation", "remap_spares", "repair", "sram",
)  # fmt: skip
"""Readings that explain others, or that a setting can replace."""
MISMATCH = "lib_rm_version_mismatch"
PROHIBITED = 2
OTHER_CHECKS = ("links",)
"""Readings that other checks report."""

HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x8, 0x20, 0x40, 0x80
CLOCK_SETTING, SW_POWER_CAP, SYNC_BOOST = 0x2, 0x4, 0x10
"""NVML's clocks event reasons."""
NAMED_LIMITS = CLOCK_SETTING | SW_POWER_CAP | SYNC_BOOST
"""Reasons that explain a low clock and are no fault."""
BUSY_PERCENT = 50


def check_gpus(context: CheckContext) -> Iterator[Finding]:
    """Judge all GPUs."""
    if not context.has_gpus:
        return
    nvml = context.snapshot.nvml
    if nvml is None:
        yield RULES.finding(
            "gpu.unread", f"no GPU could be read: {context.snapshot.why_not('nvml')}", field="nvml"
        )
        return
    findings = [*_host(context, nvml)]
    for gpu in nvml.gpus:
        findings += _gpu(context, gpu)
    findings += _stragglers(context, nvml)
    findings += _unread(nvml)
    yield from findings
    bad = {finding.subject for finding in findings if finding.severity not in (Severity.OK, Severity.INFO)}
    fine = [gpu for gpu in nvml.gpus if gpu.error is None and gpu.subject not in bad]
    if fine:
        yield RULES.finding("gpu.ok", f"no fault found on {len(fine)} of {count(len(nvml.gpus), 'GPU')}")


def _host(context: CheckContext, nvml: NvmlReading) -> Iterator[Finding]:
    expected = context.snapshot.expected.gpus
    if nvml.hung_call is not None:
        where = "" if nvml.hung_gpu is None else f" on GPU {nvml.hung_gpu}"
        yield RULES.finding(
            "gpu.driver_hang",
            f"{nvml.hung_call}{where} did not return within {context.thresholds.nvml_stall_s:g} s",
            call=nvml.hung_call,
            gpu=nvml.hung_gpu,
            subject=None if nvml.hung_gpu is None else f"GPU {nvml.hung_gpu}",
        )
    if (nvml.init_error or "").startswith(MISMATCH):
        yield RULES.finding(
            "gpu.driver_mismatch", f"NVML does not start: {nvml.init_error}", init_error=nvml.init_error
        )
    elif nvml.init_error is not None:
        yield RULES.finding(
            "gpu.lost" if nvml.init_error.startswith(LOST) else "gpu.unread",
            f"NVML does not start: {nvml.init_error}",
            init_error=nvml.init_error,
            field="nvml",
        )
    elif nvml.count is None:
        if nvml.hung_call is None:
            yield RULES.finding("gpu.unread", "NVML did not report the number of GPUs", field="count")
    elif expected is not None and nvml.count < expected:
        yield RULES.finding(
            "gpu.lost", f"{nvml.count} of {expected} GPUs found", expected=expected, found=nvml.count
        )
    elif expected is not None and nvml.count > expected:
        yield RULES.finding("gpu.extra", f"{nvml.count} GPUs found, {expected} expected")
    elif lost := _lost_since_baseline(context, nvml):
        yield RULES.finding(
            "gpu.lost", f"{nvml.count} GPUs found, {', '.join(lost)} of the baseline missing", missing=lost
        )
    elif nvml.count == 0:
        yield RULES.finding("gpu.unread", "the driver is loaded but lists no GPU", field="count")
    absent = (nvml.count or 0) - len(nvml.gpus) - (nvml.hung_gpu is not None)
    if absent > 0 and nvml.init_error is None:
        yield RULES.finding("gpu.unread", f"{count(absent, 'GPU')} could not be reached", field="gpu")


def _lost_since_baseline(context: CheckContext, nvml: NvmlReading) -> list[str]:
    """Return the GPUs that the baseline knows and the driver no longer lists, if none has taken their place."""
    known = context.baseline.uuids
    missing = sorted(known - {gpu.uuid for gpu in nvml.gpus})
    read = nvml.count == len(nvml.gpus) and all(gpu.uuid for gpu in nvml.gpus)
    return missing if read and len(nvml.gpus) < len(known) else []


def _gpu(context: CheckContext, gpu: GpuReading) -> Iterator[Finding]:
    if gpu.error in LOST:
        yield RULES.on_gpu(gpu, "gpu.lost", f"lost ({gpu.error})", pci=gpu.pci)
    elif gpu.error == "reset_required":
        yield RULES.on_gpu(gpu, "gpu.reset_required", "NVML says reset_required")
    elif gpu.error is not None:
        yield RULES.on_gpu(gpu, "gpu.unread", f"cannot be read: {gpu.error}", field="gpu", reason=gpu.error)
    else:
        yield from _recovery_and_memory(context, gpu)
        yield from _heat(context, gpu)
        yield from _use(context, gpu)


def _recovery_and_memory(context: CheckContext, gpu: GpuReading) -> Iterator[Finding]:
    if gpu.recovery_action:
        yield RULES.on_gpu(
            gpu,
            RECOVERY_ACTIONS.get(gpu.recovery_action, "gpu.reset_required"),
            f"the driver's recovery action is {gpu.recovery_action}",
            recovery_action=gpu.recovery_action,
        )
    if gpu.remapped_failure:
        yield RULES.on_gpu(gpu, "gpu.row_remap_failed", "row remapping failed")
    if gpu.remapped_pending:
        yield RULES.on_gpu(gpu, "gpu.row_remap_pending", "a row remap waits for a reset")
    if gpu.banks_without_spare_rows and not gpu.remapped_failure:
        banks = count(gpu.banks_without_spare_rows, "memory bank")
        yield RULES.on_gpu(
            gpu, "gpu.remap_spares", f"{banks} without a spare row", banks=gpu.banks_without_spare_rows
        )
    if gpu.repair_pending:
        yield RULES.on_gpu(gpu, "gpu.repair_pending", "a repair waits for a reset")
    if gpu.sram_threshold_exceeded:
        yield RULES.on_gpu(
            gpu,
            "gpu.sram_threshold",
            "SRAM errors above the threshold",
            uncorrected_since_load=gpu.sram_uncorrected,
        )
    first, latest = gpu.first, gpu.latest
    if latest.ecc_uncorrected:
        grown = latest.ecc_uncorrected - (first.ecc_uncorrected or 0)
        text = f"{count(latest.ecc_uncorrected, 'uncorrected ECC error')}"
        yield RULES.on_gpu(
            gpu,
            "gpu.ecc_uncorrected",
            text + (f", {grown} within the window" if grown > 0 else ""),
            volatile=latest.ecc_uncorrected,
            delta=max(0, grown),
        )
    if latest.ecc_corrected is not None and first.ecc_corrected is not None:
        delta = latest.ecc_corrected - first.ecc_corrected
        if delta >= context.thresholds.ecc_correctable_delta:
            yield RULES.on_gpu(
                gpu, "gpu.ecc_corrected", f"{delta} corrected ECC errors within the window", delta=delta
            )


def _heat(context: CheckContext, gpu: GpuReading) -> Iterator[Finding]:
    latest = gpu.latest
    lasting = (gpu.first.event_reasons or 0) & (latest.event_reasons or 0)
    limit_c = context.thresholds.temperature_watch_c
    if gpu.slowdown_temperature_c:
        limit_c = gpu.slowdown_temperature_c - context.thresholds.temperature_margin_c
    is_slowed = bool(lasting & (SW_THERMAL | HW_THERMAL))
    evidence = {
        "event_reasons": f"{lasting:#x}",
        "temperature_c": latest.temperature_c,
        "limit_c": limit_c,
        "power_w": latest.power_w,
        "sm_clock_mhz": latest.sm_clock_mhz,
    }
    if is_slowed or (latest.temperature_c is not None and latest.temperature_c >= limit_c):
        temperature = "temperature unknown" if latest.temperature_c is None else f"{latest.temperature_c} C"
        yield RULES.on_gpu(
            gpu, "gpu.thermal", temperature + (", slowed down by heat" if is_slowed else ""), **evidence
        )
    if lasting & (POWER_BRAKE | HW_SLOWDOWN) and not lasting & HW_THERMAL:
        what = "power brake" if lasting & POWER_BRAKE else "hardware slowdown"
        yield RULES.on_gpu(gpu, "gpu.slowdown", what, **evidence)


def _is_busy(gpu: GpuReading) -> bool:
    """Return True if it was busy at both ends of the window."""
    used = [sample.utilisation_percent for sample in (gpu.first, gpu.latest)]
    return all(percent is not None and percent >= BUSY_PERCENT for percent in used)


def _clock_mhz(gpu: GpuReading) -> int | None:
    """Return the higher of its two clock readings: a moment of waiting does not make it slow."""
    clocks = [clock for sample in (gpu.first, gpu.latest) if (clock := sample.sm_clock_mhz) is not None]
    return max(clocks, default=None)


def _stragglers(context: CheckContext, nvml: NvmlReading) -> Iterator[Finding]:
    """Find a busy GPU that is slower than its busy peers, and one whose clock is low without a reason.

    A GPU whose reason NVML names (heat, power brake) has a finding of its own; a power cap that only one has is its reason.
    """
    limits = context.thresholds
    busy = [gpu for gpu in nvml.gpus if gpu.error is None and not gpu.mig and _is_busy(gpu)]
    for gpu in busy:
        clock, reasons = _clock_mhz(gpu), (gpu.first.event_reasons or 0) & (gpu.latest.event_reasons or 0)
        peers = [
            other_clock
            for other in busy
            if other is not gpu and other.name == gpu.name and (other_clock := _clock_mhz(other)) is not None
        ]
        if clock is None or reasons & (HW_SLOWDOWN | SW_THERMAL | HW_THERMAL | POWER_BRAKE):
            continue
        capped = ", at its power limit" if reasons & SW_POWER_CAP else ""
        evidence = {"sm_clock_mhz": clock, "event_reasons": f"{reasons:#x}", "power_w": gpu.latest.power_w}
        usual = median(peers) if len(peers) >= 2 else None
        if usual is not None and clock < limits.straggler_share * usual:
            text = f"{clock} MHz under load{capped}, the others run at {usual:.0f} MHz and wait for it"
            yield RULES.on_gpu(gpu, "gpu.straggler", text, usual_mhz=usual, **evidence)
        elif (
            gpu.max_sm_clock_mhz
            and clock < limits.clock_low_share * gpu.max_sm_clock_mhz
            and not reasons & NAMED_LIMITS
        ):
            text = f"{clock} MHz under load, {gpu.max_sm_clock_mhz} MHz are possible, no reason given"
            yield RULES.on_gpu(gpu, "gpu.clock_low", text, max_sm_clock_mhz=gpu.max_sm_clock_mhz, **evidence)


def _use(context: CheckContext, gpu: GpuReading) -> Iterator[Finding]:
    if gpu.mig:
        yield RULES.on_gpu(gpu, "gpu.mig", "partitioned by MIG")
    if gpu.compute_mode == PROHIBITED:
        yield RULES.on_gpu(gpu, "gpu.prohibited", "its compute mode is Prohibited")
    expected = context.snapshot.expected
    strays = [process for process in gpu.processes if process.pid not in expected.other_pids]
    if strays and not expected.tier_expected:
        held_gib = sum(process.memory_mib or 0 for process in strays) / 1024
        pids = ", ".join(str(process.pid) for process in strays[:4])
        yield RULES.on_gpu(
            gpu,
            "gpu.memory_held",
            f"{count(len(strays), 'process', 'processes')} (pid {pids}) hold {held_gib:.1f} GiB",
            processes=[process.model_dump() for process in strays[:16]],
        )


def _unread(nvml: NvmlReading) -> Iterator[Finding]:
    """One finding per unread field and reason, over all GPUs."""
    where: dict[tuple[str, str], list[str]] = {}
    for gpu in nvml.gpus:
        if gpu.error is None:
            for field, reason in gpu.unread.items():
                where.setdefault((field, reason), []).append(gpu.label)
    for (field, reason), labels in where.items():
        if field in OTHER_CHECKS:
            continue
        rule_id = "gpu.unread" if field in REQUIRED else "gpu.unread_watch"
        if field in ONLY_DETAIL or (field not in REQUIRED and reason == "not_supported"):
            rule_id = "gpu.unread_detail"
        yield RULES.finding(
            rule_id,
            f"{field}: {reason} on {count(len(labels), 'GPU')}",
            field=field,
            reason=reason,
            gpus=labels,
        )


GPUS = Check(title="GPUs", rules=RULES, reads=frozenset({"nvml"}), judge=check_gpus)
