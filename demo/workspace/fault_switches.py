"""Faults as people type them: `deaf`, `late=5`, `error=chat.update:503`, `off`."""

import copy
from collections.abc import Sequence

from demo.workspace.faults import Faults
from demo.workspace.webapi.call import ApiError

SWITCHES = (
    "deaf", "duplicate", "silent", "late=SECONDS", "clock=SECONDS", "refuse=STATUS", "error=METHOD:CODE",
    "lost=METHOD:CALLS", "slow=METHOD:SECONDS", "off",
)  # fmt: skip
"""The switches as people type them; METHOD may be `*`, CODE a status (503), `ratelimited` or any error of Slack."""


def _error(code: str) -> ApiError:
    if code in ("ratelimited", "429"):
        return ApiError("ratelimited", status=429, headers={"Retry-After": "2"})
    if code.isdigit() and 400 <= int(code) < 600:
        return ApiError("internal_error", status=int(code))
    if not code or code.isdigit():
        raise ValueError(code)
    return ApiError(code)


def switch(faults: Faults, words: Sequence[str]) -> None:
    """Switch faults as a person types them: `deaf`, `late=5`, `error=chat.update:503`, `off` (see `SWITCHES`).

    Raises ValueError for a word that names no switch; then nothing is switched.
    """
    changed = Faults() if words[:1] == ["off"] else copy.deepcopy(faults)
    for word in words[1:] if words[:1] == ["off"] else words:
        name, _, value = word.partition("=")
        method, _, detail = value.partition(":")
        try:
            match name:
                case "deaf" | "duplicate" | "silent":
                    field_name = "silent_socket" if name == "silent" else name
                    setattr(changed, field_name, value not in ("off", "false", "0"))
                case "late" | "clock":
                    setattr(changed, f"{name}_s", float(value))
                case "refuse":
                    changed.refuse_socket = int(value)
                case "error":
                    changed.errors[method] = _error(detail)
                case "lost":
                    changed.lost[method] += int(detail or 1)
                case "slow":
                    changed.slow_s[method] = float(detail)
                case _:
                    raise ValueError
            if name in ("error", "lost", "slow") and not method:
                raise ValueError
        except ValueError:
            raise ValueError(f"{word!r} is no switch; there are: {', '.join(SWITCHES)}") from None
    for name in Faults.__slots__:
        setattr(faults, name, getattr(changed, name))


def switched_on(faults: Faults) -> list[str]:
    """Return what is switched on, as a person types it."""
    words = [name for name in ("deaf", "duplicate") if getattr(faults, name)]
    words += ["silent"] if faults.silent_socket else []
    words += [
        f"{name}={getattr(faults, f'{name}_s'):g}"
        for name in ("late", "clock")
        if getattr(faults, f"{name}_s")
    ]
    words += [f"refuse={faults.refuse_socket}"] if faults.refuse_socket else []
    words += [f"error={method}:{error}" for method, error in faults.errors.items()]
    words += [f"lost={method}:{left}" for method, left in faults.lost.items() if left > 0]
    return words + [f"slow={method}:{seconds:g}" for method, seconds in faults.slow_s.items()]
