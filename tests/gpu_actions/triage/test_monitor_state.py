"""Monitors: N of M, two sources, hysteresis, one incident for a burst, quiet after an acknowledgement, blindness."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.models import Verdict, VerdictKind
from gpu_actions.triage.judge import judge
from gpu_actions.triage.monitor_state import MonitorPolicy, MonitorState, Signal, family_of
from tests.gpu_actions.triage import builders as make

POLICY = MonitorPolicy(needed=2, of=3, clear_after=3, stalled_s=30, hold_s=60, burst_s=300, quiet_s=1000)
GOOD = judge(make.healthy())
LINK = judge(make.healthy(nvml=make.links_down({0: (3,)})))
LOST = judge(make.healthy(nvml=make.with_gpu(0, error="gpu_is_lost")))
FLAT = make.engine(tokens=(9, 9))
HUNG = make.completion("timeout", tokens=0)
HANG = judge(make.healthy(engine=FLAT, completion=HUNG, ranks=make.ranks(8, r1="T")))
STALL = judge(make.healthy(engine=FLAT, completion=HUNG))
assert (LINK.cause, LOST.cause, HANG.cause, STALL.cause) == (
    "nvlink_partial",
    "gpu_lost",
    "nccl_hang",
    "engine_stalled",
)


def run(
    *verdicts: Verdict | None, every_s: float = 5, policy: MonitorPolicy = POLICY
) -> tuple[MonitorState, list[Signal]]:
    state, signals = MonitorState(host="h1"), []
    for number, verdict in enumerate(verdicts):
        state, new = state.observe(verdict, now_s=number * every_s, policy=policy)
        signals += new
    return state, signals


def test_one_bad_verdict_does_not_alert_and_two_of_three_do() -> None:
    assert run(GOOD, LINK, GOOD)[1] == []
    state, signals = run(LINK, GOOD, LINK)
    assert [(signal.kind, signal.cause, signal.verdict) for signal in signals] == [
        ("open", "nvlink_partial", VerdictKind.FALL_BACK)
    ]
    assert (state.verdict, state.cause) == (VerdictKind.FALL_BACK, "nvlink_partial")


def test_an_alert_is_not_repeated_while_it_lasts() -> None:
    assert len(run(*[LINK] * 20)[1]) == 1


def test_a_hang_is_confirmed_within_thirty_seconds_at_the_default_periods() -> None:
    state, signals = MonitorState(host="h1"), []
    for number in range(10):  # a check every 5 s that takes 4.5 s itself
        state, new = state.observe(HANG, now_s=number * 5 + 4.5, policy=MonitorPolicy())
        signals += [(number * 5 + 4.5, signal.kind) for signal in new]
    assert signals == [(9.5, "open")]


def test_a_hang_with_one_source_is_never_confirmed() -> None:
    findings = tuple(
        finding.model_copy(update={"evidence": {**finding.evidence, "sources": ["token counter"]}})
        if finding.id == "collective.hang"
        else finding
        for finding in HANG.findings
    )
    assert run(*[HANG.model_copy(update={"findings": findings})] * 5)[1] == []


def test_a_lasting_stall_becomes_a_fallback_even_without_a_hung_collective() -> None:
    state, signals = run(*[STALL] * 9)
    assert [(signal.kind, signal.verdict) for signal in signals] == [
        ("open", VerdictKind.UNKNOWN),
        ("join", VerdictKind.FALL_BACK),
    ]
    assert state.cause == "engine_stalled"
    assert state.stalled_since_s == 0


def test_a_stall_that_ended_in_between_counts_from_its_new_start() -> None:
    _, signals = run(STALL, STALL, STALL, GOOD, STALL, STALL, STALL)
    assert all(signal.verdict is not VerdictKind.FALL_BACK for signal in signals)


def test_an_alert_clears_only_after_several_healthy_verdicts_in_a_row() -> None:
    state, signals = run(LINK, LINK, GOOD, GOOD, LINK, GOOD, GOOD)
    assert [signal.kind for signal in signals] == ["open"] and state.cause == "nvlink_partial"
    state, signals = run(LINK, LINK, GOOD, GOOD, GOOD)
    assert [signal.kind for signal in signals] == ["open", "clear"] and state.verdict is VerdictKind.HEALTHY


HOT = judge(make.healthy(nvml=make.with_gpu(5, slowdown_temperature_c=50)))
LOST_AND_HOT = judge(
    make.healthy(
        nvml=make.nvml(
            gpus=tuple(
                one.model_copy(
                    update={"error": "gpu_is_lost"} if one.index == 0 else {"slowdown_temperature_c": 50}
                )
                for one in make.nvml().gpus
            )
        )
    )
)
UNREAD = judge(make.healthy(nvml=make.with_gpu(3, unread={"temperature_c": "unknown"})))
UNKNOWN = judge(make.healthy(nvml=make.with_gpu(3, unread={"ecc_uncorrected": "unknown"})))


def test_an_alert_clears_although_another_check_stays_at_watch() -> None:
    assert (HOT.verdict, HOT.cause, LOST_AND_HOT.cause) == (VerdictKind.WATCH, "thermal", "gpu_lost")
    state, signals = run(LOST_AND_HOT, LOST_AND_HOT, HOT, HOT, HOT)
    assert [(signal.kind, signal.cause) for signal in signals] == [
        ("open", "gpu_lost"),
        ("join", "thermal"),
        ("ease", "gpu_lost"),
    ]
    assert "without gpu_lost; thermal remains" in signals[-1].reason
    assert (state.verdict, state.cause) == (VerdictKind.WATCH, "thermal")
    assert [signal.kind for signal in run(LOST, LOST, HOT, GOOD, GOOD)[1]] == ["open", "clear"]


def test_an_alert_does_not_clear_while_what_could_show_its_cause_is_unread() -> None:
    assert UNREAD.verdict is VerdictKind.WATCH and "gpu" in UNREAD.unread
    state, signals = run(LOST, LOST, *[UNREAD] * 6)
    assert "gpu_lost" in state.confirmed
    assert all(signal.kind not in ("ease", "clear") for signal in signals)
    state, signals = run(HANG, HANG, *[UNREAD] * 6)
    assert "nccl_hang" not in state.confirmed, "its own evidence was read"
    assert "nccl_hang" in run(HANG, HANG, *[UNKNOWN] * 6)[0].confirmed


def test_a_prefill_does_not_alert_unless_it_lasts_for_minutes() -> None:
    reading = make.engine(tokens=(9, 9)).samples
    later = reading[1].model_copy(update={"kv_cache_usage": 0.5})
    first = reading[0].model_copy(update={"kv_cache_usage": 0.4})
    engine = make.engine().model_copy(update={"samples": (first, later)})
    prefill = judge(make.healthy(engine=engine, completion=HUNG))
    assert prefill.verdict is VerdictKind.HEALTHY
    assert run(*[prefill] * 30)[1] == [], "145 s"
    _, signals = run(*[prefill] * 50)
    assert [(signal.kind, signal.cause, signal.verdict) for signal in signals] == [
        ("open", "engine_stalled", VerdictKind.WATCH),
        ("join", "engine_stalled", VerdictKind.FALL_BACK),
    ]


def test_a_burst_of_causes_is_one_incident() -> None:
    state, signals = run(LINK, LINK, LOST, LOST, HANG, HANG)
    assert [signal.kind for signal in signals] == ["open", "join", "join"]
    assert len({signal.key for signal in signals}) == 1
    assert state.cause == "gpu_lost", "the root cause names the incident"


def test_a_fault_long_after_a_cleared_alert_is_a_new_incident() -> None:
    policy = POLICY.model_copy(update={"burst_s": 10})
    _, signals = run(LINK, LINK, GOOD, GOOD, GOOD, LINK, LINK, policy=policy)
    assert [signal.kind for signal in signals] == ["open", "clear", "open"]
    assert signals[0].key != signals[2].key


def test_an_acknowledged_cause_stays_quiet_and_a_worse_one_does_not() -> None:
    state = MonitorState(host="h1").acknowledge("nvlink_partial", now_s=0, policy=POLICY)
    signals: list[Signal] = []
    for number, verdict in enumerate([LINK, LINK, LINK, LOST, LOST]):
        state, new = state.observe(verdict, now_s=number * 5, policy=POLICY)
        signals += new
    assert [signal.cause for signal in signals] == ["gpu_lost"]


def test_an_acknowledgement_expires() -> None:
    state = MonitorState(host="h1").acknowledge("nvlink_partial", now_s=0, policy=POLICY)
    for number in range(2):
        state, signals = state.observe(LINK, now_s=2000 + number * 5, policy=POLICY)
    assert [signal.kind for signal in signals] == ["open"]


def test_failing_probes_keep_the_last_state_and_report_blindness_once() -> None:
    state, signals = run(LINK, LINK, *[None] * 20)
    assert [signal.kind for signal in signals] == ["open", "blind"]
    assert state.cause == "nvlink_partial", "the state is kept"
    state, more = state.observe(LINK, now_s=500, policy=POLICY)
    assert [signal.kind for signal in more] == ["sighted"] and not state.blind


def test_a_monitor_that_never_saw_anything_is_blind_not_healthy() -> None:
    state, signals = run(*[None] * 20)
    assert [signal.kind for signal in signals] == ["blind"]
    assert state.verdict is VerdictKind.UNKNOWN


def test_time_without_checks_is_not_blindness() -> None:
    state, _ = MonitorState(host="h1").observe(GOOD, now_s=0, policy=POLICY)
    state, signals = state.observe(None, now_s=5000, policy=POLICY)
    assert signals == (), "one failed check after a long run must not page anyone"
    _, signals = state.observe(None, now_s=5060, policy=POLICY)
    assert [signal.kind for signal in signals] == ["blind"]


def test_each_blind_period_has_its_own_key() -> None:
    """With one key for all, the second card would be a repeat of the first."""
    dark: list[Verdict | None] = [None] * 20
    _, signals = run(LINK, LINK, GOOD, GOOD, GOOD, *dark, GOOD, *dark)
    assert len({signal.key for signal in signals if signal.kind == "blind"}) == 2


def test_a_watch_that_becomes_a_fallback_alerts_again() -> None:
    watch = LINK.model_copy(update={"verdict": VerdictKind.WATCH})
    _, signals = run(watch, watch, LINK, LINK)
    assert [signal.verdict for signal in signals] == [VerdictKind.WATCH, VerdictKind.FALL_BACK]


@pytest.mark.parametrize(
    ("cause", "family"), [("nvlink_loss", "links"), ("gpu_lost", "gpu"), ("environment", "environment")]
)
def test_causes_of_one_fault_share_a_family(cause: str, family: str) -> None:
    assert family_of(cause) == family


def test_a_state_that_an_older_version_wrote_is_read() -> None:
    state, _ = run(LINK, LINK)
    document = state.model_dump(mode="json")
    document["looks"] = document.pop("verdicts")
    assert MonitorState.model_validate(document) == state


@given(st.lists(st.sampled_from([GOOD, LINK, LOST, HANG, STALL, None]), max_size=40))
def test_any_sequence_is_handled_and_every_clear_follows_an_open(verdicts: list[Verdict | None]) -> None:
    state, signals = run(*verdicts)
    is_open = False
    for signal in signals:
        if signal.kind == "open":
            assert not is_open
            is_open = True
        if signal.kind == "clear":
            assert is_open
            is_open = False
        if signal.kind == "join":
            assert is_open or signal.key
    assert MonitorState.model_validate_json(state.model_dump_json()) == state


@given(st.lists(st.sampled_from([LINK, LOST, HANG]), max_size=1), st.lists(st.just(GOOD), max_size=20))
def test_a_single_bad_verdict_never_alerts(bad: list[Verdict], good: list[Verdict]) -> None:
    assert run(*good, *bad, *good)[1] == []
