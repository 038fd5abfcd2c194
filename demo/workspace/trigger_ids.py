"""Trigger ids: each interaction passes the app one, which opens one view within 3 s."""

import secrets
import time
from dataclasses import dataclass

TRIGGER_LIFE_S = 3.0
FORGET_AFTER_S = 60.0
"""How long an expired id is still told apart from an invalid one."""


class TriggerError(Exception):
    """Raised for a trigger id that cannot be used; `code` is Slack's error code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(slots=True)
class _Trigger:
    user: str
    expires: float
    used: bool = False


class TriggerIds:
    """All trigger ids that were issued in the last minute."""

    def __init__(self) -> None:
        self._issued: dict[str, _Trigger] = {}

    def issue(self, user: str) -> str:
        """Return a new trigger id for an interaction of `user`."""
        now = time.monotonic()
        self._issued = {
            key: trigger for key, trigger in self._issued.items() if trigger.expires > now - FORGET_AFTER_S
        }
        trigger_id = f"{secrets.randbelow(10**12)}.{secrets.randbelow(10**12)}.{secrets.token_hex(16)}"
        self._issued[trigger_id] = _Trigger(user, now + TRIGGER_LIFE_S)
        return trigger_id

    def use(self, trigger_id: str) -> str:
        """Return the user of a trigger id, once. Raises TriggerError."""
        trigger = self._issued.get(trigger_id)
        if trigger is None:
            raise TriggerError("invalid_trigger_id")
        if trigger.used:
            raise TriggerError("exchanged_trigger_id")
        if trigger.expires < time.monotonic():
            raise TriggerError("expired_trigger_id")
        trigger.used = True
        return trigger.user
