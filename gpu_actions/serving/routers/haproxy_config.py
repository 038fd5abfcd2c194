"""Render the managed router's configuration from the host's settings, with the limits now in force.

Every rule of the template was tried with HAProxy 2.6. Limits are written here as well as set over the admin socket, so that a
router that is killed restarts with them.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from gpu_actions.serving.interfaces import SERVER_HEADER, RouterError
from gpu_actions.serving.routers.base import BackPressure, RoutedHost, RouterConfig
from gpu_actions.serving.routers.haproxy_log import (
    CLIENT_LEFT_STATUS,
    LOG_FORMAT,
    MARK_PATH,
    MARK_STATUS,
    OWN_AGENT,
)
from gpu_actions.system.urls import port_of

CONFIG_NAME = "haproxy.cfg"
MAP_NAME = "back_pressure.map"
HOLD_NAME = "hold.map"
STATE_NAME = "servers.state"
SOCKET_NAME = "admin.sock"
ANSWERS_LUA = Path(__file__).with_name("haproxy_answers.lua").absolute()

EMPTY_STATE = (
    "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state "
    "bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr "
    "srv_agent_addr srv_agent_port\n"
)
"""A server-state file without servers: HAProxy 2.6 warns about an empty or missing one."""

DEFAULT_BUFFER_BYTES = 16_384
HEADER_ROOM_BYTES = 4_096
LARGEST_BUFFER_BYTES = 65_536
"""Each request holds two buffers, so a body without a length counts as long from at most this size, less headers."""

LARGEST_BIND_PATH = 90
"""HAProxy first binds PATH.PID.tmp, and sun_path holds 108 bytes."""

PROXY_NAME = re.compile(r"[A-Za-z0-9_.:-]+")

ERRORS: tuple[tuple[int, bool, str, str, str], ...] = (
    (400, False, "invalid_request_error", "bad_request", "The request is not valid HTTP."),
    (403, False, "permission_error", "forbidden", "This path answers to the serving host only."),
    (408, False, "timeout_error", "request_timeout", "The request did not arrive in time."),
    (413, False, "invalid_request_error", "too_large", "The request is too large."),
    (429, True, "rate_limit_error", "queue_full", "Too many requests are waiting. Try again later."),
    (500, False, "server_error", "internal_error", "The router failed."),
    (502, True, "server_error", "bad_gateway", "The model server broke the connection."),
    (
        503,
        True,
        "server_error",
        "overloaded",
        "No model server could take the request in time. Try again later.",
    ),
    (504, True, "server_error", "gateway_timeout", "The model server did not answer in time."),
)
"""Status, whether Retry-After is sent, and the error's type, code and message in OpenAI's format."""


class HaproxySettings(RouterConfig):
    """HAProxy 2.6 or newer, driven through its admin socket."""

    kind: Literal["haproxy"] = "haproxy"
    socket: Path | None = Field(
        default=None, description="admin socket; a managed router has it in the state folder"
    )
    long_backend: str = "serve_long"
    binary: str = "haproxy"
    client_timeout_s: float = Field(default=600, gt=0)
    request_log_mib: int = Field(
        default=64, ge=1, le=4096, description="MiB of disk for the managed router's record of requests"
    )
    check_answers: bool = Field(
        default=False,
        description="the managed router looks into answers with status 200 for error events, a missing end and no text",
    )

    def concurrency(self, pressure: BackPressure) -> dict[str, int]:
        """Return the concurrent requests that back-pressure allows a server, by backend: short ones, long ones.

        Both lines lead to one engine and count separately, so `max_concurrent` is split. Raises RouterError for a share
        of 0, which HAProxy treats as "no limit".
        """
        if pressure.long_share == 0:
            raise RouterError(
                "router.back_pressure.long_share is 0, which HAProxy treats as no limit: set it to at least 1"
            )
        return {
            self.backend: pressure.max_concurrent - pressure.long_share,
            self.long_backend: pressure.long_share,
        }

    def as_limits(self, in_force: Mapping[str, int]) -> dict[str, float]:
        """Return limits in force by backend under their names in the settings."""
        named = {"max_concurrent": float(sum(in_force.values()))}
        if len(in_force) > 1:
            named["short_concurrent"] = float(in_force[self.backend])
            named["long_concurrent"] = float(in_force[self.long_backend])
        return named

    @model_validator(mode="after")
    def _socket_is_known(self) -> Self:
        if not self.managed and self.socket is None:
            raise ValueError(
                "an existing router (managed = false) needs the path of its admin socket: set socket"
            )
        return self


def render_config(
    host: RoutedHost,
    router: HaproxySettings,
    *,
    lua: Sequence[Path],
    limited: frozenset[str],
    in_force: BackPressure,
    socket: Path | None = None,
) -> str:
    """Return the text of haproxy.cfg. `limited` names the servers under back-pressure, `in_force` is theirs.

    Raises RouterError for what a managed router cannot do: TLS towards clients, an engine below a path, names that
    HAProxy refuses, a share of 0 for long contexts.
    """
    from jinja2 import Environment, StrictUndefined

    pressure = router.back_pressure
    for name in (router.backend, router.long_backend):
        if not PROXY_NAME.fullmatch(name):
            raise RouterError(f"{name!r} cannot be a backend's name: use letters, digits and _ . : -")
    if router.backend == router.long_backend:
        raise RouterError(
            f"router.backend and router.long_backend are both {router.backend!r}: they must differ"
        )
    judged = min(pressure.long_body_bytes, LARGEST_BUFFER_BYTES - HEADER_ROOM_BYTES)
    values: dict[str, Any] = {
        "host": host.name,
        "socket": _socket_word(socket),
        "lua": [_word(path) for path in lua],
        "answers_lua": _word(ANSWERS_LUA) if router.check_answers else "",
        "map": MAP_NAME,
        "hold_map": HOLD_NAME,
        "bufsize": max(DEFAULT_BUFFER_BYTES, judged + HEADER_ROOM_BYTES),
        "judged_bytes": judged,
        "queue_timeout_ms": round(pressure.queue_timeout_s * 1000),
        "client_timeout_ms": round(router.client_timeout_s * 1000),
        "pressure": pressure,
        "errors": [
            {"status": status, "retry": retry, "body": _error_body(kind, code, message)}
            for status, retry, kind, code, message in ERRORS
        ],
        "bind": _bind(router.url),
        "log_format": LOG_FORMAT,
        "mark_path": MARK_PATH,
        "mark_status": MARK_STATUS,
        "client_left_status": CLIENT_LEFT_STATUS,
        "own_agent": OWN_AGENT,
        "server_header": SERVER_HEADER,
        "backend": router.backend,
        "long_backend": router.long_backend,
        "servers": [
            {
                "name": tier.server,
                "weight": tier.weight if name == "tp" else 0,
                "address": _address(tier.engine.url),
                "tls": " ssl verify required ca-file @system-ca"
                if tier.engine.url.startswith("https:")
                else "",
            }
            for name, tier in host.every_tier.items()
        ],
        "pools": [
            {"name": backend, "number": number, "limits": dict.fromkeys(limited, limit)}
            for number, (backend, limit) in enumerate(router.concurrency(in_force).items())
        ],
    }
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701
    template = environment.from_string(Path(__file__).with_name("haproxy.cfg.j2").read_text())
    return template.render(values, fingerprint=configuration_fingerprint(host))


def configuration_fingerprint(host: RoutedHost) -> str:
    """Return a short hash of all settings in the file, without the limits in force."""
    parts = {
        "router": host.router.model_dump(mode="json", exclude={"kind"}),
        "tiers": {
            name: [tier.server, tier.weight, tier.engine.url] for name, tier in host.every_tier.items()
        },
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def render_map(host: RoutedHost, limited: frozenset[str], in_force: BackPressure) -> str:
    """Return the text of the back-pressure map: two keys per server, 0 if no limit is in force."""
    lines = [
        f"{key} {value}"
        for tier in host.every_tier.values()
        for key, value in map_entries(tier.server, in_force if tier.server in limited else None).items()
    ]
    return "\n".join(lines) + "\n"


def render_hold(entries: Mapping[str, int]) -> str:
    """Return the text of the map with the hold of new requests."""
    return "".join(f"{key} {value}\n" for key, value in entries.items())


NO_HOLD = {"until_ms": 0, "limit": 0, "wait_ms": 0}


def map_entries(server: str, pressure: BackPressure | None) -> dict[str, int]:
    """Return a server's entries in the map. Without `pressure` they lift its limits."""
    return {
        f"{server}.window_ms": 0 if pressure is None else round(pressure.long_window_s * 1000),
        f"{server}.max_queue": 0 if pressure is None else pressure.max_queue,
    }


def _error_body(kind: str, code: str, message: str) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def _bind(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "http":
        raise RouterError(
            f"router.url is {url}: the managed router serves plain http; put TLS in front of it or use an existing router"
        )
    if parts.path not in ("", "/"):
        raise RouterError(f"router.url {url} has a path: use only scheme, host and port")
    return _host_port(url)


def with_ports(state: str, host: RoutedHost) -> str:
    """Return a server-state file with the ports of the settings: HAProxy prefers the file's to its configuration's."""
    lines = state.splitlines()
    names = lines[1].removeprefix("# ").split() if len(lines) > 1 else []
    if "srv_port" not in names:
        return state
    ports = {tier.server: str(port_of(tier.engine.url)) for tier in host.every_tier.values()}
    server, port = names.index("srv_name"), names.index("srv_port")
    changed = lines[:2]
    for line in lines[2:]:
        fields = line.split()
        if len(fields) > max(server, port):
            fields[port] = ports.get(fields[server], fields[port])
        changed.append(" ".join(fields))
    return "\n".join(changed) + "\n"


def _address(url: str) -> str:
    if urlsplit(url).path not in ("", "/"):
        raise RouterError(f"the engine {url} has a path: the managed router needs scheme, host and port only")
    return _host_port(url)


def _host_port(url: str) -> str:
    host = urlsplit(url).hostname or ""
    port = port_of(url)
    if not re.fullmatch(r"[A-Za-z0-9.:_-]+", host):
        raise RouterError(f"{url} has no usable host")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _socket_word(socket: Path | None) -> str:
    if socket is None:
        return f"unix@{SOCKET_NAME}"
    if len(str(socket)) > LARGEST_BIND_PATH:
        raise RouterError(
            f"router.socket is {len(str(socket))} characters long and HAProxy can bind {LARGEST_BIND_PATH}: "
            "use a shorter path, or omit it"
        )
    return _word(socket)


def _word(path: Path) -> str:
    """Return a path quoted as one word of the configuration."""
    if re.search(r"['\x00-\x1f]", str(path)):
        raise RouterError(f"the path {path} holds a quote or a control character, which HAProxy cannot take")
    return f"'{path}'"
