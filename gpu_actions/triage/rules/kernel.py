"""Rules on the kernel log, and the table of Xids.

Sources: NVIDIA's Xid catalogue and the GPU debug guidelines; the numbers are those of facts on GPU checks. Application faults
(13, 31, 43, 45) never lead to a fallback.
"""

from gpu_actions.triage.rules.hardware import CRIT, FALL_BACK, HEALTHY, INFO, LOOK, MISSING, OK, UNSURE, WATCH
from gpu_actions.triage.rules.rule import Rule, rule

CATALOGUE = "NVIDIA Xid catalogue"

APPLICATION_XIDS = frozenset({13, 31, 43, 45})
NVLINK_XIDS = frozenset({74, 137, *range(144, 151), 155})
OFF_BUS_XIDS = frozenset({79})
RESET_XIDS = frozenset({62, 64, 95, 109, 119, 120, 140, 143})
NVLINK_RESET_XIDS = frozenset({136})
ECC_XIDS = frozenset({48})
CONTAINED_XIDS = frozenset({94})
REMAP_XIDS = frozenset({63, 92})
RECOVERY_XIDS = frozenset({154})

XID_WORDS: dict[int, str] = {
    13: "graphics engine exception (application)",
    31: "memory page fault (application)",
    43: "GPU stopped processing (application)",
    45: "channels torn down after an application ended",
    48: "double-bit ECC error",
    62: "internal micro-controller halt",
    63: "row remapping recorded",
    64: "row remapping failed",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "high rate of corrected ECC errors",
    94: "contained ECC error: the application was stopped",
    95: "uncontained ECC error",
    109: "context switch time-out",
    119: "GSP RPC time-out",
    120: "GSP error",
    136: "NVLink training failed",
    137: "NVLink privilege error",
    140: "unrecovered ECC error",
    143: "GPU initialisation failed",
    154: "GPU recovery action changed",
    155: "NVLink software defined error",
}

KERNEL_RULES: tuple[Rule, ...] = (
    rule("kernel_log.ok", OK, HEALTHY, "none", "no NVIDIA error in the kernel log since then", "", "kernel log"),
    rule(
        "kernel_log.unread", MISSING, UNSURE, "unknown", "the kernel log could not be read",
        "Run as root or in the group adm or systemd-journal, or give --kernel-log FILE.", "kernel log",
    ),
    rule(
        "kernel_log.off_bus", CRIT, FALL_BACK, "gpu_lost", "a GPU has fallen off the bus (Xid 79, or in words)",
        "Fall back to another GPU; reboot the host.", CATALOGUE,
    ),
    rule(
        "kernel_log.reset", CRIT, FALL_BACK, "gpu_reset_required",
        "an Xid that only a GPU reset ends (62, 64, 95, 109, 119, 120, 140, 143)",
        "Fall back; reset that GPU when nothing uses it.", CATALOGUE,
    ),
    rule(
        "kernel_log.nvlink_fatal", CRIT, FALL_BACK, "nvlink_loss",
        "a fatal NVLink error (136, 144-150 marked Fatal, a fatal SXid)",
        "Fall back; reset the GPUs of that fabric.", CATALOGUE,
    ),
    rule(
        "kernel_log.nvlink", WATCH, LOOK, "nvlink_errors",
        "an NVLink error was logged (74, 137, 144-150, 155, a non-fatal SXid)",
        "Links are judged by their state now; watch this one.", CATALOGUE, when_broken=FALL_BACK,
    ),
    rule(
        "kernel_log.ecc", CRIT, FALL_BACK, "ecc_uncorrected", "an uncorrected ECC error was logged (Xid 48)",
        "Fall back to another GPU; reset this one.", CATALOGUE,
    ),
    rule(
        "kernel_log.contained", WATCH, LOOK, "ecc_uncorrected",
        "a contained ECC error ended an application (Xid 94)", "Restart the tier if it is down; reset the GPU later.",
        CATALOGUE,
    ),
    rule(
        "kernel_log.remap", WATCH, LOOK, "row_remap_pending", "a memory row was recorded for remapping (63, 92)",
        "Reset the GPU at the next quiet time.", CATALOGUE,
    ),
    rule(
        "kernel_log.recovery", WATCH, LOOK, "gpu_reset_required",
        "the recovery action changed (Xid 154) but the GPU asks for nothing now", "Read field 230 again.", CATALOGUE,
    ),
    rule(
        "kernel_log.recovery_open", CRIT, FALL_BACK, "gpu_reset_required",
        "the recovery action changed (Xid 154) and what it is now could not be read",
        "Fall back; do what the message says.", CATALOGUE,
    ),
    rule(
        "kernel_log.application", WATCH, LOOK, "application_fault",
        "an application fault (Xid 13, 31, 43, 45); never a reason to fall back",
        "Look at the application's own log and version.", CATALOGUE,
    ),
    rule(
        "kernel_log.other", WATCH, LOOK, "kernel_error", "an Xid or SXid that this table does not class",
        "Look it up in the Xid catalogue.", CATALOGUE,
    ),
    rule(
        "kernel_log.cut", INFO, HEALTHY, "none", "the log was longer than the cap: only its end was read", "",
        "settings", threshold="kernel_log_max_bytes",
    ),
)  # fmt: skip
