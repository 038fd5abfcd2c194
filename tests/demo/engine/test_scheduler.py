"""The scheduler and the options, without a model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.engine.options import Options, parse_options
from demo.engine.request import ApiError, Request, State
from demo.engine.scheduler import Scheduler


def make(*arguments: str) -> tuple[Options, Scheduler]:
    options = parse_options(list(arguments))
    return options, Scheduler(options)


def request(tokens: int = 3) -> Request:
    return Request(tuple(range(tokens)), max_tokens=4)


def test_requests_join_and_leave_at_each_step() -> None:
    _, scheduler = make("--max-num-seqs", "2")
    first, second, third = (request() for _ in range(3))
    for each in (first, second, third):
        scheduler.submit(each)
    assert scheduler.admit() == [first, second]
    assert scheduler.waiting == 1
    scheduler.end(first)
    assert scheduler.admit() == [third]
    assert third.slot == first.slot


def test_a_long_prompt_goes_in_by_its_own_chunks_while_others_decode() -> None:
    _, scheduler = make("--prefill-chunk", "4")
    short, long = request(3), request(10)
    scheduler.submit(short)
    scheduler.submit(long)
    scheduler.admit()
    seen = []
    for _ in range(5):
        step = scheduler.step()
        assert step is not None
        plan, outputs = step
        seen += [(chunk.start, len(chunk.tokens)) for chunk in plan.prefill if chunk.slot == long.slot]
        for each in outputs:
            each.generated.append(7)
    assert seen == [(0, 4), (4, 4), (8, 2)]


def test_a_full_queue_refuses_but_not_while_the_batch_has_places() -> None:
    _, scheduler = make("--max-num-seqs", "2", "--max-num-queued-reqs", "1")
    for _ in range(3):  # two will run, one may wait
        scheduler.submit(request())
    with pytest.raises(ApiError, match="the queue is full"):
        scheduler.submit(request())
    scheduler.admit()
    with pytest.raises(ApiError, match="the queue is full"):
        scheduler.submit(request())


def test_an_abandoned_request_frees_its_slot_before_the_next_step() -> None:
    _, scheduler = make("--max-num-seqs", "1")
    gone, next_one = request(), request()
    scheduler.submit(gone)
    scheduler.admit()
    scheduler.submit(next_one)
    assert scheduler.withdraw(gone) is False
    assert scheduler.drop_abandoned() == [gone]
    assert scheduler.admit() == [next_one]
    assert gone.state is State.ENDED


@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from(["submit", "step", "leave"])), max_size=60))
def test_slots_are_never_shared_or_lost_and_no_step_exceeds_its_prompt_budget(
    actions: list[tuple[int, str]],
) -> None:
    options, scheduler = make("--max-num-seqs", "4", "--prefill-chunk", "8")
    alive: list[Request] = []
    for size, action in actions:
        if action == "submit":
            alive.append(request(size))
            scheduler.submit(alive[-1])
        elif action == "leave" and alive:
            scheduler.withdraw(alive.pop(size % len(alive)))
        scheduler.drop_abandoned()
        scheduler.admit()
        slots = [each.slot for each in scheduler.running]
        assert len(set(slots)) == len(slots) <= options.max_num_seqs
        assert all(0 <= slot < options.max_num_seqs for slot in slots)
        assert 0 <= scheduler.cache_usage <= 1
        step = scheduler.step()
        if step is None:
            assert not scheduler.running
            continue
        plan, outputs = step
        assert sum(len(chunk.tokens) for chunk in plan.prefill) <= options.prefill_chunk
        for each in outputs:
            each.generated.append(1)
            if len(each.generated) == each.max_tokens:
                scheduler.end(each)
                if each in alive:
                    alive.remove(each)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--num-heads", "3"], "must split into 3 heads"),
        (["--tensor-parallel-size", "3"], "must divide --num-heads"),
        (["--max-num-seqs", "0"], "--max-num-seqs must be at least 1"),
        (["--max-model-len", "1"], "at least 2"),
        (["--drill-sleep-rank", "1"], "outside --tensor-parallel-size"),
        (["--rank", "2"], "outside --tensor-parallel-size"),
        (["--shutdown-timeout", "-1"], "--shutdown-timeout must be at least 0"),
    ],
)
def test_wrong_options_are_refused_in_one_line_that_names_them(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]
