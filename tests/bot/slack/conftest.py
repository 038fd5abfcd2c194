"""Live messages that try again soon: the length of the pause is no part of what these tests are about."""

import pytest

from bot.slack import live_messages as live


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "RETRY_S", 0.5)
