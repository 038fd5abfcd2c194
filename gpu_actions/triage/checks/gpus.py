"""Each GPU by itself: is it there, what does its driver ask for, its memory, and what could not be read."""

from collections.abc import Iterator

from gpu_actions.models import Finding, Severity, VerdictKind
from gpu_actions.snapshot.activity import strangers_of
from gpu_actions.snapshot.collectors.nvml import GpuReading, NvmlReading
from gpu_actions.system.wedged import too_many
from gpu_actions.triage.check import Check, CheckContext, count
from gpu_actions.triage.checks.clocks import check_clocks
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
    findings += _unread(nvml)
    yield from findings
    bad = {
        finding.subject
        for finding in (*findings, *check_clocks(context))
        if finding.severity not in (Severity.OK, Severity.INFO)
    }
    fine = [gpu for gpu in nvml.gpus if gpu.error is None and gpu.subject not in bad]
    if fine:
        yield RULES.finding("gpu.ok", f"no fault found on {len(fine)} of {count(len(nvml.gpus), 'GPU')}")


def _host(context: CheckContext, nvml: NvmlReading) -> Iterator[Finding]:
    expected = context.snapshot.expected.gpus
    if nvml.hung_call is not None:
        where = "" if nvml.hung_gpu is None else f" on GPU {nvml.hung_gpu}"
        text = f"{nvml.hung_call}{where} did not return within {context.thresholds.nvml_stall_s:g} s"
        if (stuck := too_many(nvml.wedged)) or nvml.wedged:
            alone = len(nvml.wedged) == 1
            killed = (
                "1 process that read the driver was"
                if alone
                else f"{len(nvml.wedged)} processes that read the driver were"
            )
            text = stuck or f"{text}; {killed} killed and {'does' if alone else 'do'} not end"
        yield RULES.finding(
            "gpu.driver_hang",
            text,
            wedged=list(nvml.wedged),
            call=nvml.hung_call,
            gpu=nvml.hung_gpu,
            subject=None if nvml.hung_gpu is None else f"GPU {nvml.hung_gpu}",
        )
    if nvml.unfinished:
        yield RULES.finding(
            "gpu.unread",
            f"only {len(nvml.gpus)} of {nvml.count or 'all'} GPUs were read in time: each call returned, slowly",
            field="nvml",
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
        if nvml.hung_call is None and not nvml.unfinished:
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
    if absent > 0 and nvml.init_error is None and not nvml.unfinished:
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
        before = latest.ecc_uncorrected if first.ecc_uncorrected is None else first.ecc_uncorrected
        grown = latest.ecc_uncorrected - before
        text = count(latest.ecc_uncorrected, "uncorrected ECC error")
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


def _use(context: CheckContext, gpu: GpuReading) -> Iterator[Finding]:
    if gpu.mig:
        yield RULES.on_gpu(gpu, "gpu.mig", "partitioned by MIG")
    if gpu.compute_mode == PROHIBITED:
        yield RULES.on_gpu(gpu, "gpu.prohibited", "its compute mode is Prohibited")
    expected = context.snapshot.expected
    strays = strangers_of(gpu, expected.other_pids)
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
