"""Copy files that another process names or writes, without following a link to any other file."""

import os
import stat
from pathlib import Path

NO_LINK = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class FileRefused(Exception):
    """A file is not what it should be. The message names it and says why."""


def copy_contained(
    path: Path, target: Path, *, folder: Path, owner_uid: int, max_bytes: int, since_s: float = 0
) -> int:
    """Copy the regular file `path`, which must be in `folder`, to `target` (mode 0600). Return its size in bytes.

    Every step from `folder` down is opened by descriptor without following a link, and all checks are made on the open
    descriptor, so a link or a rename in a shared folder cannot lead to another file. Raises FileRefused for a path outside
    the folder, a link, anything but a regular file with one name, another owner, a size over `max_bytes`, and a file last
    written before `since_s` (Unix seconds).
    """
    *parents, name = _parts_below(path, folder)
    descriptors: list[int] = []
    try:
        descriptors.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        for part in parents:
            descriptors.append(os.open(part, NO_LINK | os.O_DIRECTORY, dir_fd=descriptors[-1]))
        # Opening a FIFO would wait for its writer without O_NONBLOCK.
        descriptors.append(os.open(name, NO_LINK | os.O_NONBLOCK, dir_fd=descriptors[-1]))
        found = os.fstat(descriptors[-1])
        if problem := _problem(found, owner_uid=owner_uid, max_bytes=max_bytes, since_s=since_s):
            raise FileRefused(f"{path} {problem}")
        copy = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        descriptors.append(copy)
        copied = 0
        while copied < found.st_size and (
            sent := os.sendfile(copy, descriptors[-2], copied, found.st_size - copied)
        ):
            copied += sent
    except OSError as error:
        raise FileRefused(f"{path} cannot be opened without following a link: {error.strerror}") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return copied


def _parts_below(path: Path, folder: Path) -> tuple[str, ...]:
    for base in (folder, folder.resolve()):
        if path.is_relative_to(base):
            parts = path.relative_to(base).parts
            if parts and ".." not in parts:
                return parts
    raise FileRefused(f"{path} is not in the folder {folder}")


def _problem(found: os.stat_result, *, owner_uid: int, max_bytes: int, since_s: float) -> str:
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if found.st_nlink > 1:
        return "has other names (hard links)"
    if found.st_uid != owner_uid:
        return f"belongs to uid {found.st_uid}, not to uid {owner_uid} of the process that should have written it"
    if found.st_size > max_bytes:
        return f"is {found.st_size / 1024**2:.0f} MiB, over the limit of {max_bytes / 1024**2:.0f} MiB, and stays there"
    if found.st_mtime < since_s:
        return "is older than this run"
    return "" if found.st_size else "is empty"
