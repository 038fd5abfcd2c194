"""Alertmanager's webhook: `POST /alerts`, payload version 4, with a bearer token and a size limit.

It stores the alerts, answers, and works afterwards. Alertmanager repeats a notification that got no 2xx; a repeated one
(same alert, same start) starts nothing new. Source: prometheus.io/docs/alerting/latest/configuration/#webhook_config.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

import structlog
from aiohttp import web
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from bot.settings.model import WebSettings
from bot.store.records import Alert
from bot.store.store import Store
from bot.watch.alerts import Alerts
from gpu_actions.models import VerdictKind
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

MAX_ALERTS = 500
QUIET_SEVERITIES = frozenset({"info", "none", "warning"})
"""Severities that bring only a verdict card; any other severity, and none at all, opens an incident."""

Label = Annotated[str, StringConstraints(max_length=4096)]


class _Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class PayloadAlert(_Payload):
    """One alert of a notification."""

    status: Literal["firing", "resolved"]
    labels: dict[str, Label] = Field(max_length=100)
    annotations: dict[str, Label] = Field(default_factory=dict, max_length=100)
    starts_at: AwareDatetime = Field(alias="startsAt")
    fingerprint: str = Field(default="", max_length=64)


class Payload(_Payload):
    """A notification. Fields that are not used here are ignored."""

    version: Literal["4"]
    group_key: str = Field(alias="groupKey", max_length=16_384)
    alerts: tuple[PayloadAlert, ...] = Field(max_length=MAX_ALERTS)


@dataclass(eq=False)
class Webhook:
    """Handles the route. `hosts` returns the names of the known hosts."""

    settings: WebSettings
    _: KW_ONLY
    hosts: Callable[[], Sequence[str]]
    alerts: Alerts
    store: Store

    async def receive(self, request: web.Request) -> web.Response:
        """Answer 202, or say what is wrong: 401 token, 404 off, 413 size, 400 field, 422 no known host in the labels."""
        token = self.settings.alert_token.get_secret_value()
        if not token:
            return _refused(404, "POST /alerts is off: set web.alert_token in the settings")
        given = request.headers.get("Authorization", "")
        # aiohttp decodes bytes that are not UTF-8 as surrogates
        if not hmac.compare_digest(given.encode(errors="surrogateescape"), f"Bearer {token}".encode()):
            return _refused(401, "the bearer token is missing or wrong (web.alert_token)")
        limit = self.settings.alert_max_bytes
        try:
            body = await request.clone(client_max_size=limit).read()
        except web.HTTPRequestEntityTooLarge:
            return _refused(413, f"the body is larger than {limit} bytes (web.alert_max_bytes)")
        try:
            payload = Payload.model_validate(json.loads(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            return _refused(400, f"{where}: {first['msg']}")
        except (ValueError, RecursionError) as error:
            return _refused(400, f"the body is not JSON: {redacted_head(str(error), 200)}")
        return await self._take(payload)

    async def _take(self, payload: Payload) -> web.Response:
        accepted, unknown, received = 0, [], []
        for alert in payload.alerts:
            host = self.host_of(alert)
            if host is None:
                unknown.append(alert)
                continue
            accepted += 1
            key = alert.fingerprint or _labels_key(alert)
            once = f"alert:{key}:{alert.starts_at.isoformat()}:{alert.status}"[:255]
            received.append((once, self._alert_of(alert, host, key)))
        # Kept before the answer, with their delivery keys: Alertmanager does not repeat what got a 202.
        for one in await self.alerts.keep_new(received):
            self.alerts.report(one)
        if unknown:
            labels = ", ".join(self.settings.alert_host_labels)
            names = ", ".join(sorted({alert.labels.get("alertname", "?") for alert in unknown})[:5])
            log.warning("an alert names no known host", alerts=names, labels=labels)
            if not accepted:
                known = ", ".join(self.hosts())
                return _refused(422, f"{names}: none of the labels {labels} names a host; hosts: {known}")
        return web.json_response({"accepted": accepted, "without_host": len(unknown)}, status=202)

    def host_of(self, alert: PayloadAlert) -> str | None:
        """Return the host that the labels name: `serve1`, `serve1:9400` and `serve1.rack2.example` are all `serve1`."""
        for label in self.settings.alert_host_labels:
            value = alert.labels.get(label, "").lower()
            for name in (value, value.partition(":")[0], value.partition(":")[0].partition(".")[0]):
                if name in self.hosts():
                    return name
        return None

    def _alert_of(self, alert: PayloadAlert, host: str, key: str) -> Alert:
        name = alert.labels.get("alertname", "alert")
        words = alert.annotations.get("summary") or alert.annotations.get("description") or name
        quiet = alert.labels.get("severity", "").lower() in QUIET_SEVERITIES
        return Alert(
            host=host,
            cause=name[:64],
            title=redacted_head(f"{name} on {host}", 150),
            source="Alertmanager",
            reason=redacted_head(" ".join(words.split()), 300),
            verdict=VerdictKind.WATCH if quiet else VerdictKind.FALL_BACK,
            key=f"{key}:{alert.starts_at.isoformat()}",
            at_s=self.store.clock(),
            fingerprint=key,
            resolved=alert.status == "resolved",
        )


def _labels_key(alert: PayloadAlert) -> str:
    return hashlib.sha256(json.dumps(alert.labels, sort_keys=True).encode()).hexdigest()[:16]


def _refused(status: int, reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=status)
