"""What `docker inspect` and `podman inspect` say of a container."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import Field

from gpu_actions.models import Frozen


class ContainerFacts(Frozen):
    """What `inspect` says of a container."""

    running: bool
    paused: bool
    status: str
    pid: int | None
    exit_code: int
    oom_killed: bool
    started_at_s: float | None
    restarts: int
    restart_policy: str = Field(description="as --restart takes it: `always`, `on-failure:5`")
    shm_bytes: int | None
    ipc: str
    labels: dict[str, str]


def facts_of(shown: Mapping[str, Any]) -> ContainerFacts:
    """Return the facts in an object of `docker inspect` or `podman inspect`, which agree in these fields."""
    state, host = shown["State"], shown.get("HostConfig") or {}
    status = str(state.get("Status", "unknown"))
    running = bool(state["Running"]) or bool(state.get("Paused"))
    return ContainerFacts(
        running=running and status != "restarting",
        paused=bool(state.get("Paused")) or status == "paused",
        status=status,
        pid=int(state.get("Pid") or 0) or None,
        exit_code=int(state.get("ExitCode") or 0),
        oom_killed=bool(state.get("OOMKilled")),
        started_at_s=_unix_time(str(state.get("StartedAt", ""))),
        restarts=int(shown.get("RestartCount") or 0),
        restart_policy=_policy_text(host.get("RestartPolicy") or {}),
        shm_bytes=host.get("ShmSize"),
        ipc=str(host.get("IpcMode") or ""),
        labels={
            str(name): str(value) for name, value in ((shown.get("Config") or {}).get("Labels") or {}).items()
        },
    )


def _policy_text(policy: Mapping[str, Any]) -> str:
    """Return a restart policy as `--restart` takes it; only on-failure has a limit, and 0 means none."""
    name, retries = str(policy.get("Name") or ""), int(policy.get("MaximumRetryCount") or 0)
    return f"{name}:{retries}" if name == "on-failure" and retries else name


def _unix_time(text: str) -> float | None:
    """Return an RFC 3339 time (up to nine digits of a second) as Unix time; None for a container that never started."""
    head, dot, rest = text.partition(".")
    digits = "".join(character for character in rest if character.isdigit())[:6] if dot else ""
    zone = rest.lstrip("0123456789") if dot else ""
    try:
        moment = datetime.fromisoformat((f"{head}.{digits}{zone}" if dot else text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment.timestamp() if moment.year > 1 else None
