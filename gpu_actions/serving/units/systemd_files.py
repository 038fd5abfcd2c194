"""Render and parse systemd drop-in files, quoted as systemd.exec(5) and systemd.syntax(7) require. Pure functions."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SCOPE_MARK = "# gpu-oncall-scope: "
_REASON_MARK = "# gpu-oncall-reason: "

_UNITS_S = {
    "us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800,
    "month": 2_629_800, "y": 31_557_600,
}  # fmt: skip
"""Units of a printed time span (systemd.time(7))."""


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a name that systemd would refuse or misread."""
    for name in names:
        if not VARIABLE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of an environment variable")


def quote_environment(name: str, value: str) -> str:
    """Return one word of an `Environment=` line: double-quoted, C escapes, `%` doubled because specifiers are expanded."""
    if "\0" in value:
        raise ValueError(f"the value of {name} holds a NUL byte")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{name}={escaped.replace("%", "%%")}"'


def scope_drop_in(variables: Mapping[str, str], *, unset: Sequence[str], environment_file: Path) -> str:
    """Return the scope's drop-in. Raises ValueError for impossible names.

    The environment file repeats the variables, because the unit's own EnvironmentFile= overrides Environment=, and later
    files override earlier ones. A variable that is set is not unset, because UnsetEnvironment= is applied last.
    """
    check_names([*variables, *unset])
    removed = [name for name in unset if name not in variables]
    kept = json.dumps({"variables": dict(variables), "unset": list(unset)})
    lines = [
        f"{_SCOPE_MARK}{kept}",
        "[Service]",
        *(f"Environment={quote_environment(name, value)}" for name, value in variables.items()),
    ]
    if variables:
        lines.append(f"EnvironmentFile={str(environment_file).replace('%', '%%')}")
    if removed:
        lines.append(f"UnsetEnvironment={' '.join(removed)}")
    return "\n".join(lines) + "\n"


def scope_environment_file(variables: Mapping[str, str]) -> str:
    r"""Return the variables as an environment file: double-quoted, with \ before the four characters that need it."""
    lines = (f'{name}="' + re.sub(r'(["\\$`])', r"\\\1", value) + '"' for name, value in variables.items())
    return "".join(f"{line}\n" for line in lines)


def scope_variables(text: str) -> dict[str, str]:
    """Return the variables of a scope's drop-in, or an empty dict if it is not one of ours."""
    for line in text.splitlines():
        if line.startswith(_SCOPE_MARK):
            return dict(json.loads(line.removeprefix(_SCOPE_MARK))["variables"])
    return {}


def freeze_drop_in(reason: str) -> str:
    """Return the freeze's drop-in: an assertion that is never true ("/" exists), so every start fails and reports it."""
    return f"{_REASON_MARK}{' '.join(reason.split())}\n[Unit]\nAssertPathExists=!/\n[Service]\nRestart=no\n"


def freeze_reason(text: str) -> str:
    """Return the reason of a freeze from its drop-in."""
    for line in text.splitlines():
        if line.startswith(_REASON_MARK):
            return line.removeprefix(_REASON_MARK)
    return "no reason given"


def parse_timespan_s(text: str) -> float | None:
    """Parse a time span as `systemctl show` prints it ("1min 30s", "500ms"). Return None for "infinity" or nothing."""
    if text in {"", "infinity"}:
        return None
    total = 0.0
    for number, unit in re.findall(r"([0-9.]+)\s*([a-z]+)", text):
        if unit not in _UNITS_S:
            raise ValueError(f"{text!r} is not a time span of systemd")
        total += float(number) * _UNITS_S[unit]
    return total
