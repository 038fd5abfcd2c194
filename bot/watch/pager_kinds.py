"""What a page looks like to each kind of pager. A kind is one class here and one entry in `PAGERS`."""

import re
from datetime import UTC, datetime
from typing import Protocol

from gpu_actions.models import Frozen, JsonObject

SUMMARY_MAX = 1024
DEDUP_MAX = 255
"""Limits of PagerDuty; the generic webhook gets the same."""


class Page(Frozen):
    """What the on-call is told. `dedup_key` names the fault: a second page about it opens nothing new."""

    dedup_key: str
    host: str
    cause: str
    summary: str
    next_action: str
    at_s: float


class Pager(Protocol):
    """How to speak to one kind of pager."""

    default_url: str

    def headers(self, key: str) -> dict[str, str]:
        """Return the headers of each request."""

    def key_problem(self, key: str) -> str:
        """Return what is wrong with a key, as far as its form tells, or an empty string."""

    def trigger(self, page: Page, key: str) -> JsonObject:
        """Return the body that pages the on-call."""

    def resolve(self, dedup_key: str, key: str) -> JsonObject:
        """Return the body that closes the page."""


class PagerDuty:
    """Events API v2; the key is the routing key of the service. Source: developer.pagerduty.com/docs/send-alert-event."""

    default_url = "https://events.pagerduty.com/v2/enqueue"

    def headers(self, key: str) -> dict[str, str]:
        return {}

    def key_problem(self, key: str) -> str:
        if re.fullmatch(r"[0-9A-Za-z]{32}", key):
            return ""
        return "paging.key is no routing key of PagerDuty (32 letters and digits)"

    def trigger(self, page: Page, key: str) -> JsonObject:
        return {
            **self._event("trigger", page.dedup_key, key),
            "client": "gpu-oncall",
            "payload": {
                "summary": page.summary[:SUMMARY_MAX],
                "source": page.host,
                "severity": "critical",
                "timestamp": datetime.fromtimestamp(page.at_s, UTC).isoformat(),
                "class": page.cause,
                "custom_details": {"next": page.next_action},
            },
        }

    def resolve(self, dedup_key: str, key: str) -> JsonObject:
        return self._event("resolve", dedup_key, key)

    def _event(self, action: str, dedup_key: str, key: str) -> JsonObject:
        return {"routing_key": key, "event_action": action, "dedup_key": dedup_key[:DEDUP_MAX]}


class Webhook:
    """A JSON object posted to any address; the key, if there is one, is its bearer token."""

    default_url = ""

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}

    def key_problem(self, key: str) -> str:
        return ""

    def trigger(self, page: Page, key: str) -> JsonObject:
        return {"event": "trigger", **page.model_dump(), "summary": page.summary[:SUMMARY_MAX]}

    def resolve(self, dedup_key: str, key: str) -> JsonObject:
        return {"event": "resolve", "dedup_key": dedup_key[:DEDUP_MAX]}


PAGERS: dict[str, Pager] = {"pagerduty": PagerDuty(), "webhook": Webhook()}
