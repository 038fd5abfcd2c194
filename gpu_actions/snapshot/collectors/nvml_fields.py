"""What the NVML child reads: the numbers of fields and counters, and the calls by the name of their field in the snapshot."""

from collections.abc import Callable
from typing import Any

import pynvml

HUNG_EXIT = 3
MAX_LINKS = 36
"""NVML_NVLINK_MAX_LINKS of NVLink 5."""

NVLINK_P2P, READ_P2P = 2, 0
"""Indexes of nvmlDeviceGetP2PStatus; the READ constant of nvidia-ml-py is a tuple by mistake."""

FIELD_RECOVERY_ACTION = 230
FIELD_LINK_SPEED = 90
LINK_FIELDS = {"replay": 161, "recovery": 162, "crc": 163}
"""Per-link error fields of NVLink 4 (scope id = link). NVLink 5 does not have them."""
LINK5_FIELDS = {
    "receive_errors": pynvml.NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS,
    "integrity_errors": pynvml.NVML_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS,
    "recovered": pynvml.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS,
    "recovery_failed": pynvml.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS,
    "effective_errors": pynvml.NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS,
    "symbol_errors": pynvml.NVML_FI_DEV_NVLINK_COUNT_SYMBOL_ERRORS,
    "effective_ber": pynvml.NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER,
}
"""Per-link error fields of NVLink 5 (Blackwell); older links do not have them. The bit error rate is no counter."""
LINK_COUNTERS = {"replay": 0, "recovery": 1, "crc": 2}
"""Counter numbers of the older call, for drivers without those fields."""

REMOTE_KINDS = {0: "gpu", 1: "npu", 2: "switch"}
HIDDEN = set("fF:.")
VALUE_FIELDS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

WORDS = {
    getattr(pynvml, name): name.removeprefix("NVML_ERROR_").lower()
    for name in dir(pynvml)
    if name.startswith("NVML_ERROR_") and isinstance(getattr(pynvml, name), int)
}
LASTING_REASONS = 0x8 | 0x20 | 0x40 | 0x80
"""Clocks event reasons that count if they are there at both ends of the window: slowdown, heat, power brake."""
FATAL = ("gpu_is_lost", "reset_required", "gpu_not_found")
"""Errors after which a GPU is not queried any further."""

SHARE_BACK_US = 1_000_000
"""The driver samples processes a few times a second, so a short window alone may hold no sample."""
NO_SHARES = ("not_found", "error_0")
"""Answers of the call for processes' utilisation if none used the GPU; nvidia-ml-py raises success without a sample."""

STATIC: dict[str, tuple[Any, ...]] = {
    "uuid": ("nvmlDeviceGetUUID",),
    "name": ("nvmlDeviceGetName",),
    "pci": ("nvmlDeviceGetPciInfo",),
    "mig": ("nvmlDeviceGetMigMode",),
    "compute_mode": ("nvmlDeviceGetComputeMode",),
    "pcie_width": ("nvmlDeviceGetCurrPcieLinkWidth",),
    "pcie_width_max": ("nvmlDeviceGetMaxPcieLinkWidth",),
    "pcie_generation_max": ("nvmlDeviceGetMaxPcieLinkGeneration",),
    "max_sm_clock_mhz": ("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
    "slowdown_temperature_c": (
        "nvmlDeviceGetTemperatureThreshold",
        pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,
    ),
    "power_limit_w": ("nvmlDeviceGetEnforcedPowerLimit",),
}
"""Fields of `GpuReading` that are read once: the NVML call and its arguments."""

ECC = ("nvmlDeviceGetTotalEccErrors",)
SAMPLE: dict[str, tuple[Any, ...]] = {
    "event_reasons": ("nvmlDeviceGetCurrentClocksEventReasons",),
    "temperature_c": ("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
    "power_w": ("nvmlDeviceGetPowerUsage",),
    "sm_clock_mhz": ("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
    "utilisation_percent": ("nvmlDeviceGetUtilizationRates",),
    "pcie_generation": ("nvmlDeviceGetCurrPcieLinkGeneration",),
    "pcie_replays": ("nvmlDeviceGetPcieReplayCounter",),
    "ecc_corrected": (*ECC, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_VOLATILE_ECC),
    "ecc_uncorrected": (*ECC, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC),
}
"""Fields of `GpuSample`, read at both ends of the window."""


def text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


CONVERT: dict[str, Callable[[Any], Any]] = {
    "uuid": text,
    "name": text,
    "pci": lambda info: text(info.busId),
    "mig": lambda mode: mode[0] == 1,
    "power_limit_w": lambda milliwatts: milliwatts / 1000,
    "power_w": lambda milliwatts: milliwatts / 1000,
    "utilisation_percent": lambda rates: rates.gpu,
}
"""Conversions of what NVML returns; other fields are kept unchanged."""
