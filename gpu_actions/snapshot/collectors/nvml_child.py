"""The only program that calls NVML: a child that reads all GPUs, waits for the window, reads the counters again, and exits.

NVML calls can block for minutes on a sick driver. So it writes each section as soon as it is complete (one JSON object a line),
and a second thread names the call that does not return. It imports only the standard library and nvidia-ml-py. `nvml.py` starts
it and turns its lines into a reading.
"""

import argparse
import json
import os
import sys
import threading
import time
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
"""Per-link error fields, since NVLink 4 (scope id = link)."""
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
FATAL = ("gpu_is_lost", "reset_required", "gpu_not_found")
"""Errors after which a GPU is not queried any further."""


class UnreadError(Exception):
    """Raised if NVML refuses a call; `word` is its error in lower case."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


class Nvml:
    """Call NVML, and keep the call in progress for the watchdog thread."""

    def __init__(self, stall_s: float) -> None:
        self.stall_s = stall_s
        self.call = ""
        self.gpu: int | None = None
        self.since: float | None = None

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call `name`. Raises UnreadError."""
        self.call, self.since = name, time.monotonic()
        try:
            return getattr(pynvml, name)(*arguments)
        except pynvml.NVMLError as error:
            raise UnreadError(WORDS.get(error.value, f"error_{error.value}")) from None
        finally:
            self.since = None

    def watch(self) -> None:
        """Report a call that hangs and exit: nothing after it can be read."""
        while True:
            time.sleep(min(0.05, self.stall_s / 4))
            since = self.since
            if since is not None and time.monotonic() - since > self.stall_s:
                emit({"section": "hung", "call": self.call, "gpu": self.gpu})
                os._exit(HUNG_EXIT)


def emit(record: dict[str, Any]) -> None:
    """Write one section immediately, so that a later hang does not lose it."""
    os.write(1, json.dumps(record).encode() + b"\n")


def field_value(entry: Any) -> int | float:
    """Return the value of a field by its type. Raises UnreadError with the field's own return code."""
    if entry.nvmlReturn != 0:
        raise UnreadError(WORDS.get(entry.nvmlReturn, f"error_{entry.nvmlReturn}"))
    kind = entry.valueType if 0 <= entry.valueType < len(VALUE_FIELDS) else 3
    value: int | float = getattr(entry.value, VALUE_FIELDS[kind])
    return value


class GpuSweep:
    """Read one GPU. Fields that cannot be read go into `unread`, under their name in the snapshot."""

    def __init__(self, nvml: Nvml, index: int) -> None:
        self.nvml = nvml
        self.index = index
        self.handle: Any = None
        self.unread: dict[str, str] = {}
        self.links: list[int] = []
        self.by_field = True

    def read(self, field: str, name: str, *arguments: Any) -> Any:
        """Call NVML for one field. Return None and note the error if it cannot be read; a fatal error is raised."""
        try:
            return self.nvml.ask(name, self.handle, *arguments)
        except UnreadError as error:
            if error.word in FATAL:
                raise
            self.unread[field] = error.word
            return None

    def first(self) -> dict[str, Any]:
        """Read everything about the GPU."""
        found: dict[str, Any] = {"index": self.index}
        self.nvml.gpu = self.index
        try:
            self.handle = self.nvml.ask("nvmlDeviceGetHandleByIndex", self.index)
            found["uuid"] = self.read("uuid", "nvmlDeviceGetUUID") or ""
            found["name"] = self.read("name", "nvmlDeviceGetName") or ""
            pci = self.read("pci", "nvmlDeviceGetPciInfo")
            found["pci"] = "" if pci is None else _text(pci.busId)
            self._health(found)
            self._memory(found)
            self._limits(found)
            found["first"] = self.sample()
            if not found.get("mig"):
                found["links"] = self._links()
                found["fabric"] = self._fabric()
        except UnreadError as error:
            found["error"] = error.word
        found["unread"] = self.unread
        return found

    def _health(self, found: dict[str, Any]) -> None:
        mig = self.read("mig", "nvmlDeviceGetMigMode")
        found["mig"] = None if mig is None else mig[0] == 1
        rows = self.read("remapped_rows", "nvmlDeviceGetRemappedRows")
        if rows is not None:
            _, uncorrectable, pending, failure = rows
            found["remapped_uncorrectable"] = uncorrectable
            found["remapped_pending"], found["remapped_failure"] = bool(pending), bool(failure)
        fields = self.read("recovery_action", "nvmlDeviceGetFieldValues", [FIELD_RECOVERY_ACTION])
        if fields is not None:
            try:
                found["recovery_action"] = int(field_value(fields[0]))
            except UnreadError as error:
                self.unread["recovery_action"] = error.word

    def _memory(self, found: dict[str, Any]) -> None:
        memory = self.read("memory", "nvmlDeviceGetMemoryInfo")
        if memory is not None:
            found["memory_total_mib"], found["memory_free_mib"] = memory.total / 2**20, memory.free / 2**20
        processes = self.read("processes", "nvmlDeviceGetComputeRunningProcesses")
        found["processes"] = [
            {"pid": row.pid, "memory_mib": None if row.usedGpuMemory is None else row.usedGpuMemory / 2**20}
            for row in (processes or [])[:256]
        ]

    def _limits(self, found: dict[str, Any]) -> None:
        found["pcie_width"] = self.read("pcie_width", "nvmlDeviceGetCurrPcieLinkWidth")
        found["pcie_width_max"] = self.read("pcie_width_max", "nvmlDeviceGetMaxPcieLinkWidth")
        found["pcie_generation_max"] = self.read("pcie_generation_max", "nvmlDeviceGetMaxPcieLinkGeneration")
        found["max_sm_clock_mhz"] = self.read(
            "max_sm_clock_mhz", "nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM
        )
        found["slowdown_temperature_c"] = self.read(
            "slowdown_temperature_c",
            "nvmlDeviceGetTemperatureThreshold",
            pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,
        )
        limit = self.read("power_limit_w", "nvmlDeviceGetEnforcedPowerLimit")
        found["power_limit_w"] = None if limit is None else limit / 1000

    def sample(self) -> dict[str, Any]:
        """Read what changes; called at both ends of the window."""
        power = self.read("power_w", "nvmlDeviceGetPowerUsage")
        load = self.read("utilisation_percent", "nvmlDeviceGetUtilizationRates")
        return {
            "event_reasons": self.read("event_reasons", "nvmlDeviceGetCurrentClocksEventReasons"),
            "temperature_c": self.read(
                "temperature_c", "nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU
            ),
            "power_w": None if power is None else power / 1000,
            "sm_clock_mhz": self.read("sm_clock_mhz", "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
            "utilisation_percent": None if load is None else load.gpu,
            "pcie_generation": self.read("pcie_generation", "nvmlDeviceGetCurrPcieLinkGeneration"),
            "pcie_replays": self.read("pcie_replays", "nvmlDeviceGetPcieReplayCounter"),
            "ecc_corrected": self._ecc("ecc_corrected", pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            "ecc_uncorrected": self._ecc("ecc_uncorrected", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        }

    def _ecc(self, field: str, kind: int) -> Any:
        return self.read(field, "nvmlDeviceGetTotalEccErrors", kind, pynvml.NVML_VOLATILE_ECC)

    def _links(self) -> list[dict[str, Any]]:
        links: list[dict[str, Any]] = []
        for index in range(MAX_LINKS):
            active = self._active(index, last=not links)
            if active == "end":
                break
            self.links.append(index)
            links.append({"index": index, "active": active, **self._remote(index)})
        counters = self.counters()
        speeds = self._fields({"speed": FIELD_LINK_SPEED}, note="link_speed") if links else {}
        for link in links:
            link["first"] = counters.get(link["index"], {})
            link["speed_mbps"] = speeds.get(link["index"], {}).get("speed") or None
        return links

    def _active(self, index: int, *, last: bool) -> bool | str | None:
        """Return True if a link is active, None if its state cannot be read, "end" after the last link."""
        try:
            return bool(self.nvml.ask("nvmlDeviceGetNvLinkState", self.handle, index))
        except UnreadError as error:
            if error.word in FATAL:
                raise
            if last:
                self.unread["links"] = error.word
            if last or error.word in ("not_supported", "invalid_argument"):
                return "end"
            self.unread["links"] = error.word
            return None

    def _remote(self, index: int) -> dict[str, Any]:
        """Return the remote endpoint of a link: device type and PCI bus id, if the driver reports them."""
        found: dict[str, Any] = {"remote_kind": None, "remote_pci": None}
        try:
            kind = self.nvml.ask("nvmlDeviceGetNvLinkRemoteDeviceType", self.handle, index)
            found["remote_kind"] = REMOTE_KINDS.get(kind, "unknown")
            bus_id = _text(self.nvml.ask("nvmlDeviceGetNvLinkRemotePciInfo", self.handle, index).busId)
            found["remote_pci"] = None if not bus_id or set(bus_id) <= HIDDEN else bus_id
        except UnreadError as error:
            if error.word in FATAL:
                raise
            self.unread.setdefault("remote_ends", error.word)
        return found

    def counters(self) -> dict[int, dict[str, int]]:
        """Read the error counters of all links: in one call if the driver has the fields, else one call each."""
        if not self.links:
            return {}
        found = self._fields(LINK_FIELDS, note=None) if self.by_field else {}
        if found:
            return found
        self.by_field = False
        for index in self.links:
            for name, number in LINK_COUNTERS.items():
                value = self.read("link_errors", "nvmlDeviceGetNvLinkErrorCounter", index, number)
                if value is None:
                    return {}
                found.setdefault(index, {})[name] = value
        return found

    def _fields(self, wanted: dict[str, int], *, note: str | None) -> dict[int, dict[str, int]]:
        """Read several fields of all links in one call; links without a field are left out."""
        ids = [(number, index) for index in self.links for number in wanted.values()]
        try:
            entries = self.nvml.ask("nvmlDeviceGetFieldValues", self.handle, ids)
        except UnreadError as error:
            if error.word in FATAL:
                raise
            if note:
                self.unread[note] = error.word
            return {}
        names = {number: name for name, number in wanted.items()}
        found: dict[int, dict[str, int]] = {}
        for entry in entries:
            if entry.nvmlReturn == 0:
                found.setdefault(entry.scopeId, {})[names[entry.fieldId]] = int(field_value(entry))
        return found

    def _fabric(self) -> dict[str, Any] | None:
        info = pynvml.c_nvmlGpuFabricInfo_v2_t()
        if self.read("fabric", "nvmlDeviceGetGpuFabricInfoV", pynvml.byref(info)) is None:
            return None
        mask = info.healthMask
        configuration = mask >> 8 & 0xF
        return {
            "state": info.state,
            "status": info.status,
            "degraded_bandwidth": _three_states(mask & 3),
            "route_recovery": _three_states(mask >> 2 & 3),
            "route_unhealthy": _three_states(mask >> 4 & 3),
            "access_timeout": _three_states(mask >> 6 & 3),
            "incorrect_configuration": None if configuration == 0 else configuration != 1,
        }

    def again(self) -> dict[str, Any]:
        """Read the end of the window: the sample, and the links' states and counters."""
        self.nvml.gpu = self.index
        record: dict[str, Any] = {"section": "last", "index": self.index}
        known = dict(self.unread)
        try:
            record["sample"] = self.sample()
            record["active"] = {index: self._active(index, last=False) for index in self.links}
            record["counters"] = self.counters()
        except UnreadError as error:
            record["error"] = error.word
        record["unread"] = {field: word for field, word in self.unread.items() if field not in known}
        return record


def _three_states(value: int) -> bool | None:
    """Convert NVML's tri-state: 1 true, 2 false, 0 not applicable."""
    return {1: True, 2: False}.get(value)


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def pairs_of(nvml: Nvml, sweeps: list[GpuSweep]) -> dict[str, Any]:
    """Read the P2P status and topology of every pair of GPUs."""
    pairs: list[dict[str, Any]] = []
    unread: str | None = None
    for position, one in enumerate(sweeps):
        for other in sweeps[position + 1 :]:
            pair: dict[str, Any] = {"first": one.index, "second": other.index}
            nvml.gpu = one.index
            for field, name, extra in (
                ("nvlink_p2p", "nvmlDeviceGetP2PStatus", (NVLINK_P2P,)),
                ("read_p2p", "nvmlDeviceGetP2PStatus", (READ_P2P,)),
                ("common_ancestor", "nvmlDeviceGetTopologyCommonAncestor", ()),
            ):
                try:
                    pair[field] = nvml.ask(name, one.handle, other.handle, *extra)
                except UnreadError as error:
                    if field == "nvlink_p2p":
                        unread = error.word
            pairs.append(pair)
    return {"section": "pairs", "pairs": pairs, "unread": unread}


def sweep(nvml: Nvml, *, window_s: float, skip: frozenset[int]) -> None:
    """Read everything and write all sections."""
    try:
        nvml.ask("nvmlInit")
        count = nvml.ask("nvmlDeviceGetCount")
    except UnreadError as error:
        emit({"section": "init_error", "word": error.word, "call": nvml.call})
        return
    system: dict[str, Any] = {"section": "system", "count": count}
    for field, name in (
        ("driver_version", "nvmlSystemGetDriverVersion"),
        ("nvml_version", "nvmlSystemGetNVMLVersion"),
    ):
        try:
            system[field] = _text(nvml.ask(name))
        except UnreadError:
            system[field] = ""
    emit(system)
    sweeps = [GpuSweep(nvml, index) for index in range(count) if index not in skip]
    began = time.monotonic()
    alive = []
    for one in sweeps:
        found = one.first()
        emit({"section": "gpu", "gpu": found})
        if "error" not in found:
            alive.append(one)
    emit(pairs_of(nvml, [one for one in alive if one.handle is not None]))
    time.sleep(max(0.0, window_s - (time.monotonic() - began)))
    elapsed_s = time.monotonic() - began
    for one in alive:
        emit(one.again())
    emit({"section": "done", "window_s": elapsed_s})


def main(argv: list[str] | None = None) -> int:
    """Read and print. Exit 0, or 3 if a call hung."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--window-s", type=float, required=True)
    parser.add_argument("--stall-s", type=float, required=True)
    parser.add_argument("--skip", type=int, action="append", default=[], help="GPU index to leave out")
    options = parser.parse_args(argv)
    nvml = Nvml(options.stall_s)
    threading.Thread(target=nvml.watch, daemon=True).start()
    sweep(nvml, window_s=options.window_s, skip=frozenset(options.skip))
    sys.stdout.flush()
    os._exit(0)  # nvmlShutdown can block on a sick driver


if __name__ == "__main__":
    sys.exit(main())
