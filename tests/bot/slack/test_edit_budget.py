"""The edit budget, with a fake clock."""

from hypothesis import given
from hypothesis import strategies as st

from bot.slack.edit_budget import EditBudget


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0, 3), min_size=1, max_size=200), st.integers(1, 120))
def test_no_minute_has_more_edits_than_the_budget(pauses: list[float], per_minute: int) -> None:
    clock = Clock()
    budget = EditBudget(per_minute, clock=clock)
    edits: list[float] = []
    for pause in pauses:
        clock.now += pause
        if budget.wait_s() <= 0:
            budget.spend()
            edits.append(clock.now)
    for start in edits:
        within = sum(start <= at < start + 60 for at in edits)
        assert within <= per_minute + 1


def test_an_edit_is_allowed_after_the_time_that_the_budget_names() -> None:
    clock = Clock()
    budget = EditBudget(30, clock=clock)
    while budget.wait_s() <= 0:
        budget.spend()
    wait_s = budget.wait_s()
    clock.now += wait_s - 0.01
    assert budget.wait_s() > 0
    clock.now += 0.02
    assert budget.wait_s() == 0


def test_retry_after_closes_the_budget_whatever_is_left() -> None:
    clock = Clock()
    budget = EditBudget(60, clock=clock)
    budget.close_for(7)
    clock.now += 6.9
    assert 0 < budget.wait_s() <= 0.1001
    clock.now += 0.2
    assert budget.wait_s() == 0
