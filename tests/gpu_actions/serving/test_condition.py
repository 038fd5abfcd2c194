"""Slow, saturated, hung and dead are told apart by one judgement, from every source that can tell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.serving.condition import (
    Activity,
    Condition,
    Observation,
    Probe,
    TokenSample,
    judge_condition,
    probe_of_status,
)

STALL_S = 3.0


def samples(
    tokens: tuple[float, float] = (5, 5),
    held: float = 2,
    waiting: float = 0,
    kv: tuple[float, float] = (0.4, 0.4),
) -> tuple[TokenSample, ...]:
    return tuple(
        TokenSample(at_s=at_s, tokens=count, held=held, waiting=waiting, kv_cache_usage=used)
        for at_s, count, used in zip((0.0, STALL_S), tokens, kv, strict=True)
    )


FLAT, MOVING, IDLE = samples(), samples(tokens=(5, 9)), samples(held=0)
LATE, ANSWERED, SHED = Probe.UNANSWERED, Probe.ANSWERED, Probe.OVERLOADED
CASES: dict[str, tuple[Observation, Condition]] = {
    "tokens come": (Observation(samples=MOVING), Condition.SERVING),
    "it has no request": (Observation(samples=IDLE), Condition.SERVING),
    "its counters are flat, but a probe is answered": (
        Observation(samples=FLAT, probe=ANSWERED),
        Condition.SERVING,
    ),
    "its counters cannot be read, but a probe is answered": (
        Observation(probe=ANSWERED, mute=True),
        Condition.SERVING,
    ),
    "tokens come, and a probe is late": (Observation(samples=MOVING, probe=LATE), Condition.SLOW),
    "tokens come, requests queue, and a probe is late": (
        Observation(samples=samples(tokens=(5, 9), waiting=8), probe=LATE),
        Condition.SATURATED,
    ),
    "tokens come and it refuses": (Observation(samples=MOVING, probe=SHED), Condition.SATURATED),
    "it refuses, and its tokens cannot be read": (Observation(probe=SHED), Condition.SATURATED),
    "it refuses although it holds nothing": (Observation(samples=IDLE, probe=SHED), Condition.SILENT),
    "it loads": (Observation(samples=IDLE, probe=Probe.STARTING), Condition.STARTING),
    "nothing moves": (Observation(samples=FLAT), Condition.HUNG),
    "nothing moves, and a probe waits": (Observation(samples=FLAT, probe=LATE), Condition.HUNG),
    "nothing moves, and its full queue refuses": (Observation(samples=FLAT, probe=SHED), Condition.HUNG),
    "requests wait and none runs": (Observation(samples=samples(held=4, waiting=4)), Condition.HUNG),
    "nothing moves while its GPUs spin": (
        Observation(samples=FLAT, activity=Activity.SPINNING),
        Condition.HUNG,
    ),
    "it reports no request and lets a probe wait": (
        Observation(samples=IDLE, probe=LATE, sessions=3),
        Condition.HUNG,
    ),
    "a prompt is read chunk by chunk": (
        Observation(samples=samples(kv=(0.4, 0.5)), probe=LATE),
        Condition.SLOW,
    ),
    "a prompt is read in one piece": (Observation(samples=FLAT, activity=Activity.WORKING), Condition.SLOW),
    "its cache only empties": (Observation(samples=samples(kv=(0.5, 0.4))), Condition.HUNG),
    "it answers nothing": (Observation(mute=True, probe=LATE), Condition.SILENT),
    "it answers nothing while its GPUs work": (
        Observation(mute=True, probe=LATE, activity=Activity.WORKING),
        Condition.SLOW,
    ),
    "its process ended after it generated": (Observation(samples=MOVING, gone=True), Condition.DEAD),
    "nothing listens": (Observation(probe=Probe.REFUSED), Condition.DEAD),
}


@pytest.mark.parametrize("name", CASES)
def test_a_tier_in_this_state_has_this_condition(name: str) -> None:
    seen, condition = CASES[name]
    judged = judge_condition(seen, stall_s=STALL_S)
    assert judged.condition is condition, judged.why
    assert judged.why


@given(
    tokens=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    held=st.integers(0, 3),
    kv=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    probe=st.sampled_from(Probe),
    activity=st.sampled_from(Activity),
    mute=st.booleans(),
)
def test_no_tier_that_generates_or_works_is_called_hung_and_none_without_evidence_serves(
    tokens: tuple[int, int], held: int, kv: tuple[float, float], probe: Probe, activity: Activity, mute: bool
) -> None:
    seen = Observation(samples=samples(tokens, held, kv=kv), probe=probe, activity=activity, mute=mute)
    condition = judge_condition(seen, stall_s=STALL_S).condition
    if probe is Probe.ANSWERED or activity is Activity.WORKING or (held and tokens[0] != tokens[1]):
        assert condition is not Condition.HUNG
    if condition is Condition.HUNG:
        assert tokens[0] == tokens[1] or not held
        assert held or probe is Probe.UNANSWERED
    silent = Observation(probe=probe, activity=activity, mute=mute)
    if probe not in (Probe.ANSWERED, Probe.OVERLOADED) and activity is not Activity.WORKING:
        assert not judge_condition(silent, stall_s=STALL_S).condition.serves


@pytest.mark.parametrize(
    ("status", "text", "probe"),
    [
        (503, '{"error": {"message": "Loading model"}}', Probe.STARTING),
        (503, "Server is starting", Probe.STARTING),
        (503, "The server is not ready yet", Probe.STARTING),
        (503, "queue is full", Probe.OVERLOADED),
        (429, "too many requests while loading", Probe.OVERLOADED),
        (500, "loading failed", Probe.FAILED),
    ],
)
def test_an_error_status_is_load_only_if_the_engine_does_not_say_that_it_starts(
    status: int, text: str, probe: Probe
) -> None:
    assert probe_of_status(status, text) is probe
