"""The benchmark of acknowledgements reports a missed goal instead of ending with an error."""

import math

import pytest

from benchmarks.ack import AT_ONCE, GOAL_P99_MS, report


@pytest.mark.parametrize(
    ("waited_ms", "is_met"),
    [
        ([10.0] * AT_ONCE, True),
        ([10.0] * (AT_ONCE - 1) + [math.inf], False),
        ([math.inf] * AT_ONCE, False),
        ([GOAL_P99_MS + 1.0] * AT_ONCE, False),
    ],
)
def test_a_goal_is_met_only_if_every_command_was_acknowledged_in_time(
    waited_ms: list[float], is_met: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (report(waited_ms) == 0) is is_met
    assert ("MISSED" in capsys.readouterr().out) is not is_met
