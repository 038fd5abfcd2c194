"""Control groups (cgroups(7)): which container, pod or service a process belongs to, and which processes a group has.

A group may vanish at any moment: with a container that ends, its folders go one by one while they are read.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gpu_actions.system.proc import read_file

CGROUP_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified"))
"""Where the service manager's hierarchy is mounted: cgroup v2, v1, and both side by side."""
CGROUP_V1_ROOTS = tuple(Path("/sys/fs/cgroup") / name for name in ("pids", "memory", "cpu,cpuacct", "cpu"))
"""Hierarchies of cgroup v1 that a container engine uses."""

ID = r"(?P<id>[0-9a-f]{64})"
CONTAINERS = (
    (re.compile(rf"^(?:docker|libpod|cri-containerd|crio|nerdctl)-{ID}(?:\.scope)?$"), ""),
    (re.compile(rf"^libpod-payload-{ID}$"), "podman"),  # podman run --cgroups=split, as in a Quadlet unit
    (
        re.compile(rf"^[^:]+:(?P<name>[^:]+):{ID}$"),
        "",
    ),  # slice:prefix:id, the wrong driver with runc's systemd syntax
    (re.compile(rf"^{ID}$"), ""),
)
"""A path's component that is a container, and its runtime if the component alone says it."""
RUNTIMES = {
    "docker": "docker",
    "libpod": "podman",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
}
"""Runtimes by the prefix of a container's component, or of its parent's."""
POD = re.compile(r"(?:^|-)pod(?P<uid>[0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})(?=\.slice|$)")
PODMAN_POD = re.compile(rf"libpod_pod_{ID}")
SERVICE = re.compile(r"^[^/]+\.(?:service|scope)$")


class Membership(NamedTuple):
    """What a control group belongs to. Fields that its path does not tell are empty.

    `runtime` is docker, podman, containerd or cri-o; for a container whose path does not tell it, `container`; `service` for a
    process that is only in a service or scope of the service manager.
    """

    runtime: str = ""
    container: str = ""
    pod: str = ""
    service: str = ""

    @property
    def text(self) -> str:
        """Return it for people: `container 0123456789ab (containerd, pod 5f2c...)`."""
        if not self.container:
            return f"service {self.service}" if self.service else ""
        about = [part for part in (self.runtime if self.runtime != "container" else "",) if part]
        about += [f"pod {self.pod}"] if self.pod else []
        return f"container {self.container[:12]}" + (f" ({', '.join(about)})" if about else "")


def membership_of(text: str) -> Membership:
    """Return what the group in the text of /proc/PID/cgroup belongs to: the innermost container, else the service."""
    found = [_membership(path) for _, path in _groups(text)]
    return next((one for one in found if one.container), found[0] if found else Membership())


def _membership(path: str) -> Membership:
    parts = [part for part in path.split("/") if part]
    container = runtime = ""
    for position, part in enumerate(parts):
        for pattern, known in CONTAINERS:
            if match := pattern.match(part):
                container = match["id"]
                above = parts[position - 1] if position else ""
                runtime = known or RUNTIMES.get(_prefix(match, above), "container")
    pod = ""
    for part in re.split(r"[/:]", path):
        if match := POD.search(part):
            pod = match["uid"].replace("_", "-")
        elif match := PODMAN_POD.search(part):
            pod = match["id"]
    service = next((part for part in reversed(parts) if SERVICE.match(part)), "")
    if container:
        return Membership(runtime, container, pod, "")
    return Membership("service" if service else "", "", pod, service)


def _prefix(match: re.Match[str], above: str) -> str:
    """Return the runtime's name in a component (`crio-<id>.scope`), else that of its parent (`docker/<id>`)."""
    if "name" in match.re.groupindex:
        return match["name"]
    before = match.string[: match.start("id")].rstrip("-")
    return before or above


def _groups(text: str) -> list[tuple[str, str]]:
    """Return the groups of a process as (controllers, path), the most telling first, without root groups.

    A path that names a container comes first: with cgroup v1 and both versions side by side, a container engine that is no
    service manager puts its containers into the controllers' hierarchies only. Then the service manager's, then the longest.
    """
    groups = []
    for line in text.splitlines():
        _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        if path.strip("/") and ".." not in path.split("/"):  # `/../x` is outside our cgroup namespace
            is_manager = controllers == "" or controllers.startswith("name=")
            groups.append((bool(_membership(path).container), is_manager, len(path), controllers, path))
    return [(controllers, path) for *_, controllers, path in sorted(groups, reverse=True)]


def read_membership(pid: int) -> Membership:
    """Return what a process belongs to; nothing if it is gone."""
    return membership_of(read_file(pid, "cgroup").decode(errors="replace"))


def cgroup_of(pid: int) -> str | None:
    """Return the control group of a process below its hierarchy's root, or None for the root group itself."""
    groups = _groups(read_file(pid, "cgroup").decode(errors="replace"))
    return groups[0][1] if groups else None


def cgroup_pids(group: str) -> tuple[int, ...] | None:
    """Return the processes in a control group and below it, or None if no hierarchy has the group.

    Groups that vanish meanwhile are left out, and processes of another pid namespace, which the kernel shows as 0.
    """
    for root in (*CGROUP_ROOTS, *CGROUP_V1_ROOTS):
        if (folder := _folder(root, group)) is not None and _procs(folder) is not None:
            found = {pid for below in _folders(folder) for pid in _procs(below) or ()}
            return tuple(sorted(found - {0}))
    return None


def _folder(root: Path, group: str) -> Path | None:
    parts = [part for part in group.split("/") if part]
    return None if not parts or ".." in parts else root.joinpath(*parts)


def _folders(top: Path) -> Iterator[Path]:
    """Yield a folder and those below it. Unlike Path.rglob, os.walk passes over one that vanishes (ENOENT, ENODEV)."""
    for folder, _, _ in os.walk(top):
        yield Path(folder)


def _procs(folder: Path) -> list[int] | None:
    """Return the processes of one group; None if it does not exist (any more) or cannot be read."""
    try:
        return [int(word) for word in (folder / "cgroup.procs").read_text().split()]
    except OSError:  # ENOENT, ENODEV while it is removed, EOPNOTSUPP of a threaded group
        return None


def is_frozen_by_cgroup(pid: int) -> bool:
    """Return True if a freezer stopped a process (`docker pause`, `podman pause`). Its state is then D (v1) or S (v2)."""
    for controllers, path in _groups(read_file(pid, "cgroup").decode(errors="replace")):
        if "freezer" in controllers.split(",") and _word(
            Path("/sys/fs/cgroup/freezer"), path, "freezer.state"
        ) in (
            "FROZEN",
            "FREEZING",
        ):
            return True
        if controllers == "":
            for root in (CGROUP_ROOTS[0], CGROUP_ROOTS[2]):
                if "frozen 1" in _word(root, path, "cgroup.events"):
                    return True
    return False


def _word(root: Path, path: str, name: str) -> str:
    folder = _folder(root, path)
    try:
        return "" if folder is None else (folder / name).read_text().strip()
    except OSError:
        return ""
