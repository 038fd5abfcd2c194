"""Hosts with messages in the kernel log, or without a readable log, and the verdict and cause that must follow."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from gpu_actions.snapshot.collectors.kernel_log import KernelLogReading
from gpu_actions.snapshot.kernel_log_lines import LogMarker, XidEvent
from gpu_actions.snapshot.model import Snapshot
from tests.gpu_actions.triage import builders as make

FLAT = make.engine(tokens=(1000, 1000))
HUNG = make.completion("timeout", tokens=0)


def log_at(*events: tuple[int, float]) -> KernelLogReading:
    """Return a log of Xids, each some seconds before the snapshot; the tier of the builders is 9000 s old."""
    rows = tuple(
        XidEvent(
            kind="xid", code=code, pci="0000:29:00", at=make.TAKEN - timedelta(seconds=ago_s), line=number
        )
        for number, (code, ago_s) in enumerate(events, 1)
    )
    return KernelLogReading(source="/var/log/kern.log", lines_read=100, events=rows)


def init_failed(pci: str) -> KernelLogReading:
    event = XidEvent(kind="init_failed", pci=pci, text="RmInitAdapter failed! (0x22:0x56:667)")
    return KernelLogReading(source="/dev/kmsg", lines_read=100, events=(event,))


def marked(*codes: int, text: str = "", **marker: Any) -> KernelLogReading:
    """Return a log of Xids of GPU 1, one a line, with a marker: of what, on which line, of which GPU."""
    events = tuple(
        XidEvent(kind="xid", code=code, pci="0000:29:00", line=line, text=text)
        for line, code in enumerate(codes, 1)
    )
    return KernelLogReading(
        source="/dev/kmsg", lines_read=100, events=events, markers=(LogMarker(**marker),), since=make.TAKEN
    )


def recovery_changed(change: str) -> Snapshot:
    """Return a host whose log says how a GPU's recovery action changed, while NVML cannot read it."""
    log = make.log((154, f"GPU recovery action changed from {change}"))
    return make.healthy(nvml=make.with_gpu(1, recovery_action=None), kernel_log=log)


RESET_AT = make.TAKEN - timedelta(seconds=60)
Make = Callable[[], Snapshot]
CASES: dict[str, tuple[Make, str, str]] = {
    **{
        f"application Xid {code}": (
            lambda code=code: make.healthy(kernel_log=make.log((code, "Ch 00000008"))),
            "watch",
            "application_fault",
        )
        for code in (13, 31, 43, 45)
    },
    "an Xid without a rule": (
        lambda: make.healthy(kernel_log=make.log((999, ""))),
        "watch",
        "kernel_error",
    ),
    "an Xid from before the tier started": (
        lambda: make.healthy(kernel_log=log_at((95, 9100))),
        "healthy",
        "none",
    ),
    "an Xid from before the tier started, and one after": (
        lambda: make.healthy(kernel_log=log_at((13, 9100), (95, 8900))),
        "fall_back",
        "gpu_reset_required",
    ),
    "an Xid from before the tier started, which does not serve": (
        lambda: make.healthy(kernel_log=log_at((95, 9100)), engine=FLAT, completion=HUNG),
        "fall_back",
        "gpu_reset_required",
    ),
    "an Xid from before the tier started, on a GPU that still asks for a reset": (
        lambda: make.healthy(kernel_log=log_at((95, 9100)), nvml=make.with_gpu(1, recovery_action=1)),
        "fall_back",
        "gpu_reset_required",
    ),
    "an empty kernel log": (
        lambda: make.healthy(kernel_log=KernelLogReading(source="/dev/kmsg", lines_read=0)),
        "unknown",
        "unknown",
    ),
    "a non-fatal NVLink error on healthy links": (
        lambda: make.healthy(kernel_log=make.log((145, "RLW_CTRL Nonfatal XC0 i0 Link 00"))),
        "watch",
        "nvlink_errors",
    ),
    "a fatal NVLink error": (
        lambda: make.healthy(kernel_log=make.log((145, "RLW_CTRL Fatal XC0 i0 Link 00"))),
        "fall_back",
        "nvlink_loss",
    ),
    "a non-fatal switch error": (
        lambda: make.healthy(kernel_log=make.sxid("Non-fatal, Link 32 egress")),
        "watch",
        "nvlink_errors",
    ),
    "a fatal switch error": (
        lambda: make.healthy(kernel_log=make.sxid("Fatal, Link 32 LTSSM Fault Up")),
        "fall_back",
        "nvlink_loss",
    ),
    "off the bus by number": (
        lambda: make.healthy(kernel_log=make.log((79, "GPU has fallen off the bus."))),
        "fall_back",
        "gpu_lost",
    ),
    "off the bus in words": (
        lambda: make.healthy(kernel_log=make.log((None, "fallen off the bus"))),
        "fall_back",
        "gpu_lost",
    ),
    **{
        f"reset Xid {code}": (
            lambda code=code: make.healthy(kernel_log=make.log((code, ""))),
            "fall_back",
            "gpu_reset_required",
        )
        for code in (46, 62, 64, 95, 109, 110, 119, 120, 140, 143)
    },
    "Xid 48": (lambda: make.healthy(kernel_log=make.log((48, "DBE"))), "fall_back", "ecc_uncorrected"),
    "Xid 94": (lambda: make.healthy(kernel_log=make.log((94, "Contained"))), "watch", "ecc_uncorrected"),
    "Xid 154 while field 230 says none": (
        lambda: make.healthy(
            kernel_log=make.log(
                (154, "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)")
            )
        ),
        "watch",
        "gpu_reset_required",
    ),
    "Xid 154 while field 230 cannot be read": (
        lambda: recovery_changed("0x0 (None) to 0x1 (GPU Reset Required)"),
        "fall_back",
        "gpu_reset_required",
    ),
    "a GPU that does not initialise and is not listed": (
        lambda: make.healthy(
            nvml=make.nvml(7), kernel_log=init_failed("0000:89:00"), expected={"gpus": None}
        ),
        "fall_back",
        "gpu_lost",
    ),
    "a GPU that did not initialise at once and is listed": (
        lambda: make.healthy(kernel_log=init_failed("0000:29:00")),
        "watch",
        "kernel_error",
    ),
    "a broken GPU beside those that the settings name": (
        lambda: make.healthy(kernel_log=init_failed("0000:f9:00")),
        "watch",
        "kernel_error",
    ),
    "the kernel log cannot be read": (lambda: make.healthy(kernel_log=None), "unknown", "unknown"),
    "an Xid from before a reset of its GPU, by UUID": (
        lambda: make.healthy(kernel_log=marked(95, kind="gpu_reset", line=2, uuid="gpu-1", at=RESET_AT)),
        "healthy",
        "none",
    ),
    "an Xid on the line of the reset of its GPU, by bus id, at an unknown time": (
        lambda: make.healthy(kernel_log=marked(95, kind="gpu_reset", line=1, pci="0000:29:00")),
        "healthy",
        "none",
    ),
    "an Xid after the reset of its GPU": (
        lambda: make.healthy(kernel_log=marked(95, kind="gpu_reset", line=0, uuid="GPU-1")),
        "fall_back",
        "gpu_reset_required",
    ),
    "an Xid before the reset of another GPU": (
        lambda: make.healthy(kernel_log=marked(95, kind="gpu_reset", line=2, uuid="GPU-2", pci="0000:39:00")),
        "fall_back",
        "gpu_reset_required",
    ),
    "an Xid before a reset of which the log names no GPU": (
        lambda: make.healthy(kernel_log=marked(95, kind="gpu_reset", line=2)),
        "fall_back",
        "gpu_reset_required",
    ),
    "two Xids before and one after the driver was loaded": (
        lambda: make.healthy(kernel_log=marked(95, 95, 95, kind="driver_load", line=2, at=RESET_AT)),
        "fall_back",
        "gpu_reset_required",
    ),
    "two alike Xids": (
        lambda: make.healthy(kernel_log=marked(13, 13, kind="boot", line=0)),
        "watch",
        "application_fault",
    ),
    "a kernel log of which messages were lost": (
        lambda: make.healthy(
            kernel_log=KernelLogReading(source="/dev/kmsg", lines_read=9, lost="12 messages were overwritten")
        ),
        "unknown",
        "unknown",
    ),
    "a kernel log longer than the limit": (
        lambda: make.healthy(
            kernel_log=KernelLogReading(source="/dev/kmsg", lines_read=9, truncated=True, since=make.TAKEN)
        ),
        "healthy",
        "none",
    ),
    "a recovery action that was taken back": (
        lambda: recovery_changed("0x1 (GPU Reset Required) to 0x0 (None)"),
        "watch",
        "gpu_reset_required",
    ),
}
