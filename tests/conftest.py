"""Order of the suite: whole incidents first, since they are the longest and pytest-xdist hands files out in order."""

import pytest

FIRST = ("tests/scenarios/", "tests/chaos/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files in front; the rest stays in its order."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
