"""Find secrets in a trace file before it leaves the host: a report of nsys holds environment and arguments in clear."""

import os
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from gpu_actions.system.proc import read_command, read_environment
from gpu_actions.system.redact import is_secret_name, redact

CHUNK_BYTES = 1024 * 1024
OVERLAP_BYTES = 4096
SHORTEST = 6
"""A shorter value is found in any file."""
_CANDIDATE = re.compile(
    rb"[\x20-\x7e]*(?:xox[abeprs]-|xapp-|sk-|AKIA|hf_|gh[pousr]_|glpat-|://|-----BEGIN |earer )[\x20-\x7e]*"
    rb"|(?<![\x20-\x7e])[A-Z][A-Z0-9_]{2,}=[\x20-\x7e]{6,}"
)
"""Printable text with a known format in it, or a whole environment variable. Kernel names are neither."""


def secrets_of(pids: Iterable[int]) -> dict[str, str]:
    """Return the values of these processes' environments and arguments that are secrets, with what each is."""
    found: dict[str, str] = {}
    for pid in pids:
        try:
            environment = read_environment(pid)
        except OSError:
            environment = {}
        found |= {value: name for name, value in environment.items() if is_secret_name(name)}
        argv = read_command(pid)
        for word, following in pairwise(argv):
            if (
                word.startswith("--")
                and "=" not in word
                and is_secret_name(word.strip("-").replace("-", "_"))
            ):
                found[following] = f"the value of {word}"
    return {value: name for value, name in found.items() if len(value) >= SHORTEST}


def leak_in(paths: Iterable[Path], known: Mapping[str, str]) -> str:
    """Return what secret the files hold (its name or its kind, never its value), or an empty string."""
    values = {os.fsencode(value): name for value, name in known.items()}
    for path in paths:
        with path.open("rb") as file:
            rest = b""
            while chunk := file.read(CHUNK_BYTES):
                window = rest + chunk
                for value, name in values.items():
                    if value in window:
                        return name
                lines = (found[0].decode("ascii") for found in _CANDIDATE.finditer(window))
                if counts := redact("\n".join(lines)).counts:
                    return next(iter(counts))
                rest = window[-OVERLAP_BYTES:]
    return ""
