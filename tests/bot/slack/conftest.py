"""Live messages that retry quickly; the length of the pause does not matter to these tests."""

import pytest

from bot.slack import live_messages as live


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "RETRY_S", 0.5)
