"""Short-lived permissions that an interaction gives to the app: trigger ids and response addresses.

Slack's terms: a trigger id opens one view within 3 s; a response address takes 5 answers within 30 minutes.
"""

import secrets
import time
from dataclasses import dataclass

TRIGGER_LIFE_S = 3.0
RESPONSE_URL_LIFE_S = 30 * 60.0
RESPONSE_URL_USES = 5


class GrantError(Exception):
    """A grant that cannot be used; `code` is the word that Slack answers with."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(slots=True)
class ResponseGrant:
    """Where an answer through a response address goes: who asked, in which channel, about which message (if any)."""

    user: str
    channel: str
    message_ts: str | None
    expires: float
    uses_left: int = RESPONSE_URL_USES


@dataclass(slots=True)
class _Trigger:
    user: str
    expires: float
    used: bool = False


class Grants:
    """All live grants of a workspace. They are not kept over a restart."""

    def __init__(self) -> None:
        self._triggers: dict[str, _Trigger] = {}
        self._responses: dict[str, ResponseGrant] = {}

    def new_trigger(self, user: str) -> str:
        """A trigger id for a thing that `user` just did."""
        now = time.monotonic()
        self._triggers = {key: entry for key, entry in self._triggers.items() if entry.expires > now - 60}
        trigger_id = f"{secrets.randbelow(10**12)}.{secrets.randbelow(10**12)}.{secrets.token_hex(16)}"
        self._triggers[trigger_id] = _Trigger(user, now + TRIGGER_LIFE_S)
        return trigger_id

    def use_trigger(self, trigger_id: str) -> str:
        """The user behind a trigger id, once. Raises GrantError with Slack's word for what is wrong."""
        trigger = self._triggers.get(trigger_id)
        if trigger is None:
            raise GrantError("invalid_trigger_id")
        if trigger.used:
            raise GrantError("exchanged_trigger_id")
        if trigger.expires < time.monotonic():
            raise GrantError("expired_trigger_id")
        trigger.used = True
        return trigger.user

    def new_response(self, *, user: str, channel: str, message_ts: str | None) -> str:
        """The key of a new response address."""
        now = time.monotonic()
        self._responses = {key: entry for key, entry in self._responses.items() if entry.expires > now - 600}
        key = secrets.token_urlsafe(24)
        self._responses[key] = ResponseGrant(user, channel, message_ts, now + RESPONSE_URL_LIFE_S)
        return key

    def response(self, key: str) -> ResponseGrant:
        """The grant behind a response address, not yet counted. Raises GrantError (`used_url`, `expired_url`)."""
        grant = self._responses.get(key)
        if grant is None or grant.expires < time.monotonic():
            raise GrantError("expired_url")
        if grant.uses_left <= 0:
            raise GrantError("used_url")
        return grant
