"""The child in which triage calls NVML: it reads all GPUs, waits for the window, reads the counters again, and exits.

NVML calls can block for minutes on a sick driver. So it writes the whole reading again after each GPU (one JSON object a line,
in the form of `NvmlReading`), and a second thread names the call that does not return. It imports only the standard library and
nvidia-ml-py. `nvml.py` starts it and takes its last line.
"""

import argparse
import json
import os
import select
import sys
import threading
import time
from typing import Any

import pynvml

from gpu_actions.snapshot.collectors.nvml_fields import (
    CONVERT,
    FATAL,
    FIELD_LINK_SPEED,
    FIELD_RECOVERY_ACTION,
    HIDDEN,
    HUNG_EXIT,
    LASTING_REASONS,
    LINK5_FIELDS,
    LINK_COUNTERS,
    LINK_FIELDS,
    MAX_LINKS,
    NO_SHARES,
    NVLINK_P2P,
    READ_P2P,
    REMOTE_KINDS,
    SAMPLE,
    SHARE_BACK_US,
    STATIC,
    VALUE_FIELDS,
    WORDS,
    text,
)


class UnreadError(Exception):
    """Raised if NVML refuses a call; `word` is its error in lower case."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


class Nvml:
    """Call NVML, and keep the call in progress for the watchdog thread, and the reading so far."""

    def __init__(self, stall_s: float) -> None:
        self.stall_s = stall_s
        self.call = ""
        self.gpu: int | None = None
        self.since: float | None = None
        self.reading: dict[str, Any] = {"gpus": [], "pairs": []}

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
                self.emit(hung_call=self.call, hung_gpu=self.gpu)
                os._exit(HUNG_EXIT)

    def emit(self, **fields: Any) -> None:
        """Add fields to the reading and write it immediately, so that a later hang does not lose it."""
        self.reading.update(fields)
        os.write(1, json.dumps(self.reading).encode() + b"\n")


def field_value(entry: Any) -> int | float:
    """Return the value of a field by its type. Raises UnreadError with the field's own return code."""
    if entry.nvmlReturn != 0:
        raise UnreadError(WORDS.get(entry.nvmlReturn, f"error_{entry.nvmlReturn}"))
    kind = entry.valueType if 0 <= entry.valueType < len(VALUE_FIELDS) else 3
    value: int | float = getattr(entry.value, VALUE_FIELDS[kind])
    return value


class Gpu:
    """Read one GPU into `found`. Fields that cannot be read go into `unread`, under their name in the snapshot."""

    def __init__(self, nvml: Nvml, index: int) -> None:
        self.nvml = nvml
        self.handle: Any = None
        self.unread: dict[str, str] = {}
        self.found: dict[str, Any] = {"index": index, "unread": self.unread, "links": []}
        self.links: list[int] = []
        self.began_us = 0
        self.by_field = True

    def read(self, field: str | None, name: str, *arguments: Any) -> Any:
        """Call NVML. If it fails, return None and note the error under `field`, if any; a fatal error is raised."""
        try:
            return self.nvml.ask(name, self.handle, *arguments)
        except UnreadError as error:
            if error.word in FATAL:
                raise
            if field is not None:
                self.unread[field] = error.word
            return None

    def read_all(self, calls: dict[str, tuple[Any, ...]], into: dict[str, Any]) -> dict[str, Any]:
        """Read several fields into a dict and return it; those that cannot be read are left out."""
        for field, call in calls.items():
            value = self.read(field, *call)
            if value is not None:
                into[field] = CONVERT[field](value) if field in CONVERT else value
        return into

    def first(self) -> None:
        """Read everything about the GPU."""
        found = self.found
        self.nvml.gpu = found["index"]
        try:
            self.handle = self.nvml.ask("nvmlDeviceGetHandleByIndex", found["index"])
            self.read_all(STATIC, found)
            self._health(found)
            found["first"] = self.read_all(SAMPLE, {})
            self.began_us = time.time_ns() // 1000 - SHARE_BACK_US
            if not found.get("mig"):
                found["links"] = self._links()
                found["fabric"] = self._fabric()
        except UnreadError as error:
            found["error"] = error.word

    def last(self) -> None:
        """Read the end of the window: the sample, and the links' states and counters."""
        self.nvml.gpu = self.found["index"]
        try:
            sample = self.read_all(SAMPLE, {})
            active = {index: self._active(index, last=False) for index in self.links}
            counters = self.counters()
        except UnreadError as error:
            self.found["error"] = error.word
            return
        self.found["last"] = sample
        self._shares()
        for link in self.found["links"]:
            state = active[link["index"]]
            # A link that NVML no longer lists ("end") is inactive.
            link["active"] = None if state is None else state is True
            link["last"] = counters.get(link["index"], {})

    def _shares(self) -> None:
        """Add to each process its mean use of the multiprocessors since a second before the window."""
        try:
            rows = self.nvml.ask("nvmlDeviceGetProcessUtilization", self.handle, self.began_us)
        except UnreadError as error:
            if error.word not in NO_SHARES:
                self.unread["process_utilisation"] = error.word
                return
            rows = ()
        shares: dict[int, list[int]] = {}
        for row in rows:
            if row.smUtil <= 100:  # some drivers return entries of garbage
                shares.setdefault(row.pid, []).append(row.smUtil)
        for process in self.found["processes"]:
            own = shares.get(process["pid"], (0,))
            process["sm_percent"] = sum(own) / len(own)

    def _health(self, found: dict[str, Any]) -> None:
        rows = self.read("remapped_rows", "nvmlDeviceGetRemappedRows")
        if rows is not None:
            _, uncorrectable, pending, failure = rows
            found["remapped_uncorrectable"] = uncorrectable
            found["remapped_pending"], found["remapped_failure"] = bool(pending), bool(failure)
        spares = self.read("remap_spares", "nvmlDeviceGetRowRemapperHistogram")
        if spares is not None:
            found["banks_without_spare_rows"], found["banks_with_few_spare_rows"] = spares.none, spares.low
        repairs = self.read("repair", "nvmlDeviceGetRepairStatus")
        if repairs is not None:
            found["repair_pending"] = any(repairs)
        sram = pynvml.c_nvmlEccSramErrorStatus_v1_t()
        if self.read("sram", "nvmlDeviceGetSramEccErrorStatus", pynvml.byref(sram)) is not None:
            found["sram_threshold_exceeded"] = bool(sram.bThresholdExceeded)
            found["sram_uncorrected"] = sram.volatileUncParity + sram.volatileUncSecDed
        fields = self.read("recovery_action", "nvmlDeviceGetFieldValues", [FIELD_RECOVERY_ACTION])
        if fields is not None:
            try:
                found["recovery_action"] = int(field_value(fields[0]))
            except UnreadError as error:
                self.unread["recovery_action"] = error.word
        memory = self.read("memory", "nvmlDeviceGetMemoryInfo")
        if memory is not None:
            found["memory_total_mib"], found["memory_free_mib"] = memory.total / 2**20, memory.free / 2**20
        processes = self.read("processes", "nvmlDeviceGetComputeRunningProcesses")
        found["processes"] = [
            {"pid": row.pid, "memory_mib": None if row.usedGpuMemory is None else row.usedGpuMemory / 2**20}
            for row in (processes or [])[:256]
        ]

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
        kind = self.read("remote_ends", "nvmlDeviceGetNvLinkRemoteDeviceType", index)
        info = None if kind is None else self.read("remote_ends", "nvmlDeviceGetNvLinkRemotePciInfo", index)
        bus_id = "" if info is None else text(info.busId)
        return {
            "remote_kind": None if kind is None else REMOTE_KINDS.get(kind, "unknown"),
            "remote_pci": None if set(bus_id) <= HIDDEN else bus_id,
        }

    def counters(self) -> dict[int, dict[str, int]]:
        """Read the error counters of all links: in one call if the driver has the fields, else one call each."""
        if not self.links:
            return {}
        found = self._fields(LINK_FIELDS | LINK5_FIELDS, note=None) if self.by_field else {}
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
        entries = self.read(note, "nvmlDeviceGetFieldValues", ids) or ()
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


def _three_states(value: int) -> bool | None:
    """Convert NVML's tri-state: 1 true, 2 false, otherwise not applicable."""
    return {1: True, 2: False}.get(value)


def read_pairs(nvml: Nvml, gpus: list[Gpu]) -> None:
    """Read the P2P status and topology of every pair of GPUs into the reading."""
    for position, one in enumerate(gpus):
        nvml.gpu = one.found["index"]
        for other in gpus[position + 1 :]:
            pair: dict[str, Any] = {"first": one.found["index"], "second": other.found["index"]}
            for field, name, extra in (
                ("nvlink_p2p", "nvmlDeviceGetP2PStatus", (NVLINK_P2P,)),
                ("read_p2p", "nvmlDeviceGetP2PStatus", (READ_P2P,)),
                ("common_ancestor", "nvmlDeviceGetTopologyCommonAncestor", ()),
            ):
                try:
                    pair[field] = nvml.ask(name, one.handle, other.handle, *extra)
                except UnreadError as error:
                    if field == "nvlink_p2p":
                        nvml.reading["pairs_unread"] = error.word
            nvml.reading["pairs"].append(pair)


def is_steady(found: dict[str, Any]) -> bool:
    """Return True if a GPU's first sample needs no second one: it is unused, its error counters are 0 since boot, and no reason
    slows it down. Only growth and duration need a window."""
    if "error" in found:
        return True
    sample, links = found["first"], found["links"]
    counts = [sample.get("pcie_replays"), sample.get("ecc_corrected")]
    counts += [
        count for link in links for name, count in link.get("first", {}).items() if not name.endswith("_ber")
    ]
    used = (sample.get("utilisation_percent") or 0) > 0
    return not used and not any(counts) and not (sample.get("event_reasons") or 0) & LASTING_REASONS


def wait(seconds: float, *, until_eof: bool) -> None:
    """Wait for the end of the window: `seconds`, or until the parent closes standard input."""
    if until_eof:
        select.select([0], [], [], max(0.0, seconds))
    else:
        time.sleep(max(0.0, seconds))


def read_host(nvml: Nvml, *, window_s: float, skip: frozenset[int], until_eof: bool = False) -> None:
    """Read all GPUs at both ends of the window."""
    try:
        nvml.ask("nvmlInit")
        count = nvml.ask("nvmlDeviceGetCount")
    except UnreadError as error:
        nvml.emit(init_error=f"{error.word} ({nvml.call})")
        return
    for field, name in (
        ("driver_version", "nvmlSystemGetDriverVersion"),
        ("nvml_version", "nvmlSystemGetNVMLVersion"),
    ):
        try:
            nvml.reading[field] = text(nvml.ask(name))
        except UnreadError:
            nvml.reading[field] = ""
    nvml.emit(count=count)
    began = time.monotonic()
    gpus = [Gpu(nvml, index) for index in range(count) if index not in skip]
    for gpu in gpus:
        gpu.first()
        nvml.reading["gpus"].append(gpu.found)
        nvml.emit()
    alive = [gpu for gpu in gpus if "error" not in gpu.found]
    read_pairs(nvml, alive)
    nvml.emit(steady=all(is_steady(gpu.found) for gpu in gpus))
    wait(window_s - (time.monotonic() - began), until_eof=until_eof)
    elapsed_s = time.monotonic() - began
    for gpu in alive:
        gpu.last()
        nvml.emit()
    nvml.emit(window_s=elapsed_s)


def main(argv: list[str] | None = None) -> int:
    """Read and print. Exit 0, or 3 if a call hung."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--window-s", type=float, required=True)
    parser.add_argument("--stall-s", type=float, required=True)
    parser.add_argument("--until-eof", action="store_true", help="the window ends when standard input does")
    parser.add_argument("--skip", type=int, action="append", default=[], help="GPU index to leave out")
    options = parser.parse_args(argv)
    nvml = Nvml(options.stall_s)
    threading.Thread(target=nvml.watch, daemon=True).start()
    read_host(nvml, window_s=options.window_s, skip=frozenset(options.skip), until_eof=options.until_eof)
    sys.stdout.flush()
    os._exit(0)  # nvmlShutdown can block on a sick driver


if __name__ == "__main__":
    sys.exit(main())
