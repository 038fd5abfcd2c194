"""Rules on GPUs, NVLinks, fabric, PCIe and the deep probe."""

from gpu_actions.models import Severity, VerdictKind
from gpu_actions.triage.rules.rule import Rule, rule

OK, INFO, WATCH, CRIT, MISSING = (
    Severity.OK,
    Severity.INFO,
    Severity.WATCH,
    Severity.CRITICAL,
    Severity.UNKNOWN,
)
HEALTHY, LOOK, UNSURE, FALL_BACK = (
    VerdictKind.HEALTHY,
    VerdictKind.WATCH,
    VerdictKind.UNKNOWN,
    VerdictKind.FALL_BACK,
)
FIELD_230 = "NVML field 230, the driver's own recovery action"
DCGM = "DCGM health watches"
PLAYBOOK = "fallback playbook"

HARDWARE_RULES: tuple[Rule, ...] = (
    rule("gpu.ok", OK, HEALTHY, "none", "every GPU was read and nothing is wrong with it", "", "NVML"),
    rule(
        "gpu.unread", MISSING, UNSURE, "unknown",
        "a reading that can call for a fallback could not be had (missing symbol, not supported, error)",
        "Read the reason; update the driver or nvidia-ml-py, or accept it with triage.accept_unknown.",
        "NVML return codes: FunctionNotFound and NotSupported are never OK",
    ),
    rule(
        "gpu.unread_detail", MISSING, HEALTHY, "unknown",
        "this GPU does not offer a reading that could only have called for a look",
        "Nothing now; these checks say nothing on this GPU.", "NVML NotSupported",
    ),
    rule(
        "gpu.unread_watch", MISSING, LOOK, "unknown",
        "a reading that could have called for a look failed", "Read the reason; triage again.", "NVML return codes",
    ),
    rule(
        "gpu.driver_hang", CRIT, UNSURE, "driver_hang",
        "an NVML call did not come back within its deadline: the driver blocks",
        "Capture nvidia-bug-report in safe mode; if serving fails too, fall back, then reboot the host.",
        "NVML calls can block for minutes on a sick driver", when_broken=FALL_BACK, threshold="nvml_stall_s",
    ),
    rule(
        "gpu.lost", CRIT, FALL_BACK, "gpu_lost",
        "fewer GPUs than the host should have, or NVML says that a GPU is lost",
        "Fall back to another GPU; reboot the host, then check the slot and its power.", "NVML GPU_IS_LOST; expected count",
    ),
    rule(
        "gpu.extra", INFO, HEALTHY, "none", "more GPUs than expected", "Correct hosts.gpus in the settings.",
        "expected count",
    ),
    rule(
        "gpu.reset_required", CRIT, FALL_BACK, "gpu_reset_required",
        "the driver asks for a GPU reset (recovery action 1, 4 or 6, or NVML RESET_REQUIRED)",
        "Fall back; when no process holds it, nvidia-smi --gpu-reset; for 4 drain it first.", FIELD_230,
    ),
    rule(
        "gpu.reboot_required", CRIT, FALL_BACK, "gpu_reset_required",
        "the driver asks for a reboot of the node (recovery action 2 or 7)",
        "Fall back if a GPU is left that works; plan the reboot of the host.", FIELD_230,
    ),
    rule(
        "gpu.drain_p2p", CRIT, FALL_BACK, "nvlink_loss",
        "the driver asks to drain P2P traffic (recovery action 3)",
        "Fall back: one GPU needs no P2P; then reset the GPUs of that fabric.", FIELD_230,
    ),
    rule(
        "gpu.imex_domain", WATCH, LOOK, "nvlink_errors", "the driver asks to recover the IMEX domain (action 5)",
        "Restart nvidia-imex on the nodes of the domain.", FIELD_230,
    ),
    rule(
        "gpu.row_remap_pending", WATCH, LOOK, "row_remap_pending",
        "memory rows wait to be remapped; the GPU works until its next reset",
        "Reset the GPU at the next quiet time.", f"{DCGM}; NVML remapped rows",
    ),
    rule(
        "gpu.row_remap_failed", CRIT, FALL_BACK, "row_remap_failed", "remapping of bad memory rows failed",
        "Fall back to another GPU; have this one replaced.", f"{DCGM}; NVML remapped rows",
    ),
    rule(
        "gpu.ecc_uncorrected", CRIT, FALL_BACK, "ecc_uncorrected",
        "uncorrected ECC errors since the driver was loaded: results may be wrong",
        "Fall back to another GPU; reset this one; if it comes back, replace it.", f"{DCGM}: volatile > 0 fails",
    ),
    rule(
        "gpu.ecc_corrected", WATCH, LOOK, "ecc_uncorrected", "many corrected ECC errors within the window",
        "Watch this GPU; plan a memory test.", DCGM, threshold="ecc_correctable_delta",
    ),
    rule(
        "gpu.thermal", WATCH, LOOK, "thermal",
        "it slows down by heat (event reasons 0x20, 0x40) or stands near its slowdown temperature",
        "Check fans, inlet temperature and neighbours; lower the power limit if it stays.",
        "NVML clocks event reasons", threshold="temperature_margin_c",
    ),
    rule(
        "gpu.slowdown", WATCH, LOOK, "throttling",
        "hardware slowdown or power brake (event reasons 0x8, 0x80) in both samples",
        "Check power supplies and the rack's power limit.", "NVML clocks event reasons",
    ),
    rule("gpu.mig", INFO, HEALTHY, "none", "MIG is on: links and P2P do not apply", "", "NVML MIG mode"),
    rule(
        "gpu.memory_held", WATCH, LOOK, "memory_held",
        "the tier is meant to be stopped, yet a process holds GPU memory: it is not drained",
        "Find the process by its pid and end it before the next start.", "fact of drains",
    ),
    rule("nvlink.ok", OK, HEALTHY, "none", "all expected links are active and made no errors", "", "NVML"),
    rule(
        "nvlink.loss", CRIT, FALL_BACK, "nvlink_loss", "a GPU has no active NVLink left",
        "Fall back; then reset the GPU or its baseboard and check the fabric manager.", PLAYBOOK,
    ),
    rule(
        "nvlink.partial", CRIT, FALL_BACK, "nvlink_partial", "a GPU has fewer active NVLinks than it should",
        "Fall back; the summary names the links and what stands at their far end.",
        f"{PLAYBOOK}: fewer than 18 active links", threshold="links_missing",
    ),
    rule(
        "nvlink.shared_end", CRIT, FALL_BACK, "nvlink_partial",
        "the inactive links of several GPUs end at one device: the fault is there",
        "Fall back; then look at that switch or peer first, not at the GPUs.", "remote ends compared across GPUs",
        threshold="links_missing",
    ),
    rule(
        "nvlink.few_missing", WATCH, LOOK, "nvlink_partial", "links are missing, fewer than the setting allows",
        "Plan a reset of the GPU.", "settings", threshold="links_missing",
    ),
    rule(
        "nvlink.errors", WATCH, LOOK, "nvlink_errors",
        "a link replayed, recovered or made many CRC errors within the window",
        "Watch it; a link that goes on like this drops soon.", DCGM, threshold="nvlink_crc_per_s",
    ),
    rule(
        "nvlink.slow", WATCH, LOOK, "nvlink_errors", "an active link runs below the speed of its model",
        "Reset the GPU at the next quiet time.", "NVML field 90: 26562 MB/s on H100, 53125 on NVLink 5",
    ),
    rule(
        "nvlink.unread", MISSING, UNSURE, "unknown", "the state of links could not be read",
        "Read the reason; without it link loss cannot be excluded.", "NVML",
    ),
    rule("fabric.ok", OK, HEALTHY, "none", "the fabric is registered and its manager runs", "", "NVML, systemd"),
    rule(
        "fabric.not_ready", CRIT, LOOK, "fabric_manager_down",
        "a GPU is not registered with the fabric: a tier that starts now would fail",
        "Start nvidia-fabricmanager; check its log.", "NVML fabric info: 3 = completed", when_broken=FALL_BACK,
    ),
    rule(
        "fabric.fault", CRIT, FALL_BACK, "nvlink_loss",
        "the fabric reports a broken route, or its registration ended with an error",
        "Fall back; then check the switches and the fabric manager's log.", "NVML fabric health mask (1 = true)",
    ),
    rule(
        "fabric.degraded", WATCH, LOOK, "nvlink_errors",
        "the fabric reports less bandwidth, a recovery, a time-out or a wrong configuration",
        "Check the fabric manager's log; plan a reset.", "NVML fabric health mask (1 = true)",
    ),
    rule(
        "fabric.manager_down", CRIT, LOOK, "fabric_manager_down",
        "the fabric manager's unit is installed but does not run; what NVML says of the fabric is latched",
        "Start the unit; a running tier goes on, a new one cannot start without it.", "systemd",
        when_broken=FALL_BACK,
    ),
    rule(
        "fabric.manager_unread", MISSING, HEALTHY, "unknown",
        "GPUs are attached to switches, but the fabric manager's unit could not be asked",
        "On a host with systemd, run triage where systemctl answers; in a VM the manager may run outside.", "systemd",
    ),
    rule("pcie.ok", OK, HEALTHY, "none", "GPUs reach each other over NVLink", "", "NVML P2P"),
    rule(
        "pcie.p2p_off", CRIT, FALL_BACK, "pcie_only",
        "links are up, but NVLink P2P between two GPUs is not OK: traffic goes over PCIe",
        "Fall back; check the driver's registry keys, IOMMU and ACS, then restart.", "NVML P2P status, index NVLINK",
    ),
    rule(
        "pcie.environment", CRIT, FALL_BACK, "pcie_only",
        "the running tier has NCCL_P2P_DISABLE or NCCL_P2P_LEVEL=LOC: it talks over PCIe on healthy links",
        "Remove the variable from the unit's environment; the restart needs the fallback or a quiet time.",
        "NCCL environment variables; [H] 27.5 instead of 331 GB/s",
    ),
    rule(
        "pcie.busbw", CRIT, FALL_BACK, "pcie_only", "all-reduce is far slower than the baseline or the floor",
        "Fall back; compare the links, then restart the tier.", "deep probe", threshold="busbw_ratio",
    ),
    rule(
        "pcie.pair", CRIT, FALL_BACK, "pcie_only", "copies between two GPUs are far slower than they should be",
        "Fall back; look at the links of these two GPUs.", "deep probe", threshold="p2p_ratio",
    ),
    rule(
        "pcie.degraded", WATCH, LOOK, "pcie_degraded",
        "a slot runs with fewer lanes, under load at a lower generation, or replays often",
        "Reseat or service the GPU at the next quiet time.", "NVML PCIe counters", threshold="pcie_replay_per_min",
    ),
    rule(
        "pcie.unread", MISSING, UNSURE, "unknown",
        "P2P status or the tier's environment could not be read: a PCIe-only tier cannot be excluded",
        "Run triage as root or as the tier's user.", "NVML, /proc/PID/environ",
    ),
    rule(
        "pcie.visible_devices", WATCH, LOOK, "environment",
        "CUDA_VISIBLE_DEVICES of the running tier shows fewer GPUs than the host has",
        "Remove the leftover from the unit's environment before the next start.", "runbook defects, step 1.2",
    ),
    rule(
        "pcie.variables", INFO, HEALTHY, "none", "other NCCL_* or CUDA_* variables are set in the running tier", "",
        "/proc/PID/environ",
    ),
    rule("deep.ok", OK, HEALTHY, "none", "all-reduce, copies and GEMM reach their figures", "", "deep probe"),
    rule(
        "deep.hang", CRIT, FALL_BACK, "nccl_hang", "a fresh all-reduce over all GPUs did not finish",
        "Fall back; collectives hang on this host with no engine involved.", "deep probe", threshold="deep_deadline_s",
        component="deep",
    ),
    rule(
        "deep.gemm", WATCH, LOOK, "throttling", "a GPU multiplies matrices far slower than its baseline",
        "Check clocks, power and heat of that GPU.", "deep probe", threshold="gemm_ratio",
    ),
    rule(
        "deep.unread", MISSING, UNSURE, "unknown", "the deep probe was asked for but could not run to its end",
        "Read the reason; memory must be free on every GPU.", "deep probe", threshold="deep_free_gib",
    ),
    rule(
        "deep.unjudged", INFO, HEALTHY, "none", "measured, but there is neither a baseline nor a floor for this GPU",
        "Store this as the baseline on a known-good day.", "deep probe",
    ),
)  # fmt: skip
