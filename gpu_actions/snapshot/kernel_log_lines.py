"""What one line of the kernel log says: its time, an NVIDIA error, a process that was ended, or a reset. Pure."""

import re
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime, Field

from gpu_actions.models import Frozen

MAX_LINE = 4096

APPLICATION_XIDS = frozenset({13, 31, 43, 45})
"""NVIDIA Xid catalogue: faults of the application, not of the GPU."""

_XID = re.compile(r"NVRM: Xid ?\((?:PCI:)?([0-9a-fA-F:.]+)[^)]{0,64}\)[^:]{0,64}: (\d{1,6})\b,?\s*(.*)")
_SXID = re.compile(r"nvidia-nvswitch\d+: SXid \((?:PCI:)?([0-9a-fA-F:.]+)\): (\d{1,6})\b,?\s*(.*)")
_OFF_BUS = re.compile(r"fallen off the bus", re.IGNORECASE)
_INIT_FAILED = re.compile(r"\b(?:RmInitAdapter|rm_init_adapter) failed", re.IGNORECASE)
_BUS_ID = re.compile(r"\b([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})")
_UUID = re.compile(r"\bGPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)
_OOM_KILL = re.compile(r"[Oo]ut of memory: Killed process (\d{1,10}) \(([^)]{0,64})\)")
_BOOT = re.compile(r"\bLinux version \d")
_DRIVER_LOAD = re.compile(r"NVRM: loading NVIDIA\b")
_GPU_RESET = re.compile(
    r"\bwas successfully reset\b|\bGPU reset executed\b|: reset (?:done|complete|completed|succeeded)\b"
    r"|recovery action changed\b.{0,80}\bto (?:0x)?0\b",
    re.IGNORECASE,
)
"""Messages of nvidia-smi and NVSentinel (sent to syslog), of the PCI core, and the driver's Xid 154 after a reset."""
_SINCE_BOOT = re.compile(r"^(?:<\d+>)?\[\s*(\d{1,10}\.\d{1,9})\]")
KMSG_RECORD = re.compile(r"^\d+,(\d{1,18}),(\d{1,16}),[^;]*;")
_ISO = re.compile(r"^(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:[.,]\d+)?\s?(Z|[+-]\d\d:?\d\d)?")
_CTIME = re.compile(r"^\[\w{3} (\w{3} +\d{1,2} \d\d:\d\d:\d\d \d{4})\]")
_SYSLOG = re.compile(r"^(\w{3} +\d{1,2} \d\d:\d\d:\d\d) ")


class XidEvent(Frozen):
    """One NVIDIA error of the kernel log. `off_bus` and `init_failed` (a GPU that does not initialise) have no Xid number."""

    kind: Literal["xid", "sxid", "off_bus", "init_failed"]
    code: int | None = None
    pci: str = Field(default="", description="bus id as logged, in the form of `normal_pci`")
    at: AwareDatetime | None = None
    text: str = ""
    line: int = Field(default=0, description="its position in the log")
    times: int = Field(
        default=1, description="how many events it stands for: older ones of its kind are folded into it"
    )

    @property
    def is_application_fault(self) -> bool:
        """True for an Xid that an application causes, which is never a reason to fall back."""
        return self.kind == "xid" and self.code in APPLICATION_XIDS


class OomKill(Frozen):
    """A process that the kernel's out-of-memory killer ended. `name` is the kernel's, at most 15 characters."""

    pid: int
    name: str
    at: AwareDatetime | None = None


class LogMarker(Frozen):
    """A line of the log that makes older errors history: a boot, a load of the driver, or a reset of one GPU."""

    kind: Literal["boot", "driver_load", "gpu_reset"]
    line: int
    at: AwareDatetime | None = None
    pci: str = ""
    uuid: str = ""


def normal_pci(text: str) -> str:
    """Normalise a PCI bus id: lower case, four-digit domain, no function (`0000:3b:00`)."""
    parts = text.lower().split(".")[0].split(":")
    if len(parts) == 2:
        parts = ["0000", *parts]
    return ":".join([parts[0][-4:].rjust(4, "0"), *parts[1:]]) if len(parts) == 3 else text.lower()


def time_of(line: str, *, booted: datetime, now: datetime) -> datetime | None:
    """Parse the time at the start of a line, in any common form. Return None if there is none."""
    try:
        if found := KMSG_RECORD.match(line):
            return booted + timedelta(microseconds=int(found.group(2)))
        if found := _SINCE_BOOT.match(line):
            return booted + timedelta(seconds=float(found.group(1)))
        if found := _ISO.match(line):
            zone = (found.group(3) or "").replace("Z", "+00:00")
            return datetime.fromisoformat(f"{found.group(1)}T{found.group(2)}{zone}").astimezone(UTC)
        if found := _CTIME.match(line):
            return datetime.strptime(found.group(1), "%b %d %H:%M:%S %Y").astimezone(UTC)
        if found := _SYSLOG.match(line):
            stamp = datetime.strptime(f"{now.year} {found.group(1)}", "%Y %b %d %H:%M:%S").astimezone(UTC)
            return stamp if stamp <= now + timedelta(days=1) else stamp.replace(year=stamp.year - 1)
    except (ValueError, OverflowError):
        return None
    return None


def event_of(line: str) -> XidEvent | None:
    """Find the NVIDIA error in a line. Return None if there is none; the time is left out."""
    text = line[:MAX_LINE].replace("\0", " ")
    small = text.lower()
    if "nvrm" not in small and "nvidia" not in small:
        return None  # nearly every line: a monitor reads the log every few seconds
    kinds: tuple[tuple[Literal["xid", "sxid"], re.Pattern[str]], ...] = (("xid", _XID), ("sxid", _SXID))
    for kind, pattern in kinds:
        if found := pattern.search(text):
            pci, code, words = found.groups()
            return XidEvent(kind=kind, code=int(code), pci=normal_pci(pci), text=words[:300])
    in_words: Literal["off_bus", "init_failed"]
    for in_words, pattern in (("off_bus", _OFF_BUS), ("init_failed", _INIT_FAILED)):
        if pattern.search(text):
            bus = _BUS_ID.search(text)
            return XidEvent(kind=in_words, pci=normal_pci(bus.group(1)) if bus else "", text=text[-300:])
    return None


def marker_of(line: str, *, number: int) -> LogMarker | None:
    """Find what makes older errors history in a line. Return None if there is nothing; the time is left out."""
    text = line[:MAX_LINE]
    if _BOOT.search(text):
        return LogMarker(kind="boot", line=number)
    if _DRIVER_LOAD.search(text):
        return LogMarker(kind="driver_load", line=number)
    if "reset" not in text.lower() or not _GPU_RESET.search(text):
        return None
    bus, uuid = _BUS_ID.search(text), _UUID.search(text)
    if bus is None and uuid is None:
        return None
    return LogMarker(
        kind="gpu_reset",
        line=number,
        pci=normal_pci(bus.group(1)) if bus else "",
        uuid=uuid.group(0) if uuid else "",
    )


def oom_kill_of(line: str) -> OomKill | None:
    """Find the process that the OOM killer ended in a line. Return None if there is none; the time is left out."""
    found = _OOM_KILL.search(line[:MAX_LINE])
    return None if found is None else OomKill(pid=int(found.group(1)), name=found.group(2)[:64])
