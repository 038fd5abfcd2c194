"""The scheduler alone, with a clock of the test's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.engine.options import Options, parse_options
from demo.engine.request import Parameters, Request, State
from demo.engine.scheduler import QueueFull, Scheduler
from demo.engine.step_plan import (
    DecodeRow,
    Operation,
    PrefillChunk,
    StepPlan,
    decode_plan,
    encode_plan,
    wire_size,
)

LONG = ("--max-num-seqs", "4", "--long-prompt-tokens", "10", "--max-long-seqs", "2", "--long-window-s", "4")


def make(*arguments: str) -> tuple[Options, Scheduler]:
    options = parse_options(list(arguments))
    return options, Scheduler(options, slots=options.max_num_seqs, epoch_s=0.0)


def request(tokens: int = 3, *, at_s: float = 0.0) -> Request:
    return Request(tuple(range(tokens)), Parameters(max_tokens=4), at_s)


def test_requests_join_and_leave_at_each_step() -> None:
    _, scheduler = make("--max-num-seqs", "2")
    first, second, third = (request() for _ in range(3))
    for each in (first, second, third):
        scheduler.submit(each)
    assert scheduler.admit(0.0) == [first, second]
    assert scheduler.waiting == 1
    scheduler.end(first)
    assert scheduler.admit(0.1) == [third]
    assert third.slot == first.slot


def test_a_long_prompt_goes_in_by_its_own_chunks_while_others_decode() -> None:
    _, scheduler = make("--prefill-chunk", "4")
    short, long = request(3), request(10)
    scheduler.submit(short)
    scheduler.submit(long)
    scheduler.admit(0.0)
    seen = []
    for _ in range(5):
        step = scheduler.step()
        assert step is not None
        seen += [(chunk.start, len(chunk.tokens)) for chunk in step.plan.prefill if chunk.slot == long.slot]
        for each in step.outputs:
            each.generated.append(7)
    assert seen == [(0, 4), (4, 4), (8, 2)]


def test_a_full_queue_refuses_but_not_while_the_batch_has_places() -> None:
    _, scheduler = make("--max-num-seqs", "2", "--max-num-queued-reqs", "1")
    for _ in range(3):  # two will run, one may wait
        scheduler.submit(request())
    with pytest.raises(QueueFull):
        scheduler.submit(request())
    scheduler.admit(0.0)
    with pytest.raises(QueueFull):
        scheduler.submit(request())


def test_an_abandoned_request_frees_its_slot_before_the_next_step() -> None:
    _, scheduler = make("--max-num-seqs", "1")
    gone, next_one = request(), request()
    scheduler.submit(gone)
    scheduler.admit(0.0)
    scheduler.submit(next_one)
    assert scheduler.withdraw(gone) is False
    assert scheduler.drop_abandoned() == [gone]
    assert scheduler.admit(0.1) == [next_one]
    assert gone.state is State.ENDED


def test_long_prompts_start_together_at_the_window_boundary_and_short_ones_at_once() -> None:
    _, scheduler = make(*LONG)
    scheduler.admit(0.5)
    early, late, short = request(20, at_s=1.0), request(20, at_s=3.5), request(3, at_s=1.0)
    for each in (early, late, short):
        scheduler.submit(each)
    assert scheduler.admit(3.6) == [short]
    assert scheduler.seconds_to_window(3.6) == pytest.approx(0.4)
    assert scheduler.admit(4.01) == [early, late]


def test_a_long_prompt_that_arrives_in_an_idle_window_waits_for_the_next() -> None:
    _, scheduler = make(*LONG)
    scheduler.submit(request(20, at_s=9.0))
    assert scheduler.admit(9.0) == []
    assert len(scheduler.admit(12.0)) == 1


def test_long_and_short_prompts_cannot_take_each_others_share() -> None:
    _, scheduler = make(*LONG)
    for _ in range(5):
        scheduler.submit(request(20))
        scheduler.submit(request(3))
    assert [scheduler.is_long(each) for each in scheduler.admit(4.0)] == [False, False, True, True]
    scheduler.end(next(each for each in scheduler.running if scheduler.is_long(each)))
    assert scheduler.admit(5.0) == []  # a place that gets free waits for the next boundary
    assert len(scheduler.admit(8.0)) == 1


@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from(["submit", "step", "leave"])), max_size=60),
    st.booleans(),
)
def test_slots_are_never_shared_or_lost_and_every_plan_fits_the_wire(
    actions: list[tuple[int, str]], windows: bool
) -> None:
    options, scheduler = make(*(LONG if windows else LONG[:2]), "--prefill-chunk", "8")
    alive: list[Request] = []
    for clock, (size, action) in enumerate(actions):
        if action == "submit":
            alive.append(request(size, at_s=float(clock)))
            scheduler.submit(alive[-1])
        elif action == "leave" and alive:
            scheduler.withdraw(alive.pop(size % len(alive)))
        scheduler.drop_abandoned()
        scheduler.admit(float(clock))
        slots = [each.slot for each in scheduler.running]
        assert len(set(slots)) == len(slots) <= options.max_num_seqs
        assert all(0 <= slot < options.max_num_seqs for slot in slots)
        assert sum(scheduler.is_long(each) for each in scheduler.running) <= (2 if windows else 0)
        assert 0 <= scheduler.cache_usage <= 1
        step = scheduler.step()
        if step is None:
            assert not scheduler.running
            continue
        words = encode_plan(step.plan)
        assert len(words) <= wire_size(options.max_num_seqs, options.prefill_chunk)
        assert decode_plan(words) == step.plan
        for each in step.outputs:
            each.generated.append(1)
            if len(each.generated) == each.parameters.max_tokens:
                scheduler.end(each)
                if each in alive:
                    alive.remove(each)


@given(
    st.builds(
        StepPlan,
        operation=st.sampled_from(Operation),
        decode=st.lists(st.builds(DecodeRow, *[st.integers(0, 9)] * 3), max_size=5).map(tuple),
        prefill=st.lists(
            st.builds(
                PrefillChunk,
                st.integers(0, 9),
                st.integers(0, 9),
                st.lists(st.integers(0, 256), max_size=5).map(tuple),
                st.booleans(),
            ),
            max_size=4,
        ).map(tuple),
        value=st.integers(0, 10**6),
        stamp=st.integers(0, 2**50),
    )
)
def test_a_plan_comes_back_from_the_wire_as_it_was(plan: StepPlan) -> None:
    assert decode_plan([*encode_plan(plan), 0, 0, 0]) == plan


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--num-heads", "3"], "must split into 3 heads"),
        (["--tensor-parallel-size", "3"], "must divide --num-heads"),
        (["--max-num-seqs", "0"], "--max-num-seqs must be above 0"),
        (["--long-prompt-tokens", "9", "--max-long-seqs", "32"], "below --max-num-seqs"),
        (["--long-prompt-tokens", "9", "--queue-timeout-s", "3"], "must be above --long-window-s"),
        (["--max-model-len", "1"], "at least 2"),
        (["--drill-sleep-rank", "1"], "outside --tensor-parallel-size"),
        (["--rank", "2"], "outside --tensor-parallel-size"),
        (["--shutdown-timeout", "-1"], "must not be below 0"),
    ],
)
def test_wrong_options_are_refused_in_one_line_that_names_them(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]
