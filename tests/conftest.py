"""Order of the suite: the longest files first, so that none is left alone at the end.

pytest-xdist hands files out in their order (`--no-loadscope-reorder`). Hypothesis counts no time: on a busy
machine its deadlines and its `too_slow` check say nothing about our code.
"""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

FIRST = (
    "tests/scenarios/test_whole_incident.py",
    "tests/scenarios/",
    "tests/chaos/",
    "tests/gpu_actions/restore/",
    "tests/gpu_actions/fallback/",
    "tests/gpu_actions/serving/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files in front; the rest stays in its order."""
    items.sort(
        key=lambda item: next(
            (n for n, start in enumerate(FIRST) if item.nodeid.startswith(start)), len(FIRST)
        )
    )
