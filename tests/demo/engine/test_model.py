"""The model in this process: its numbers must not depend on the batch."""

import random

import pytest
import torch
from torch import Tensor

from demo.engine.model import TILE_ROWS, pick_tokens
from demo.engine.options import parse_options
from demo.engine.request import DecodeRow, PrefillChunk, StepPlan
from demo.engine.worker import Worker

SMALL = ("--device", "cpu", "--num-layers", "2", "--max-model-len", "256", "--max-num-seqs", "24")


def make_worker(*arguments: str) -> Worker:
    worker = Worker(parse_options([*SMALL, *arguments]), rank=0)
    worker.load()
    return worker


@pytest.fixture(scope="module")
def worker() -> Worker:
    return make_worker()


def run(
    worker: Worker, *, decode: tuple[DecodeRow, ...] = (), prefill: tuple[PrefillChunk, ...] = ()
) -> Tensor:
    logits = worker.execute(StepPlan(decode=decode, prefill=prefill))
    assert logits is not None
    return logits


def tokens_of(count: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).randrange(256) for _ in range(count))


def test_logits_are_the_same_to_the_bit_whatever_else_is_in_the_batch(worker: Worker) -> None:
    prompt, follow = tokens_of(37, 0), tokens_of(12, 1)
    alone = [run(worker, prefill=(PrefillChunk(0, 0, prompt, True),))[0]]
    alone += [run(worker, decode=(DecodeRow(0, 37 + n, token),))[0] for n, token in enumerate(follow)]

    dice = random.Random(2)
    slot = 17
    others = list(range(16))
    for other in others:
        run(worker, prefill=(PrefillChunk(other, 0, tokens_of(5 + other, other), True),))
    chunks = (PrefillChunk(20, 0, tokens_of(50, 3), True), PrefillChunk(slot, 0, prompt, True))
    beside = [run(worker, decode=(DecodeRow(1, 6, 9),), prefill=chunks)[2]]
    places = []
    for n, token in enumerate(follow):
        company = dice.sample(others, dice.randrange(len(others)))
        rows = [DecodeRow(other, 30 + n, dice.randrange(256)) for other in company]
        place = dice.randrange(len(rows) + 1)
        rows.insert(place, DecodeRow(slot, 37 + n, token))
        places.append((len(rows), place))
        beside.append(run(worker, decode=tuple(rows))[place])

    assert max(size for size, _ in places) > TILE_ROWS  # more than one tile was in play
    assert len({place % TILE_ROWS for _, place in places}) > 4
    for step, (expected, found) in enumerate(zip(alone, beside, strict=True)):
        assert torch.equal(expected, found), f"step {step}"


def test_a_prompt_in_chunks_or_token_by_token_has_the_same_logits_as_in_one_piece(worker: Worker) -> None:
    """Within 1e-3 of logits whose spread is about 2: the products have other shapes, so rounding differs."""
    prompt = tokens_of(60, 5)
    whole = run(worker, prefill=(PrefillChunk(0, 0, prompt, True),))[0]
    assert worker.execute(StepPlan(prefill=(PrefillChunk(1, 0, prompt[:40], False),))) is None
    chunked = run(worker, prefill=(PrefillChunk(1, 40, prompt[40:], True),))[0]
    run(worker, prefill=(PrefillChunk(2, 0, prompt[:1], True),))
    for position in range(1, 60):
        single = run(worker, decode=(DecodeRow(2, position, prompt[position]),))[0]
    torch.testing.assert_close(chunked, whole, atol=1e-3, rtol=0)
    torch.testing.assert_close(single, whole, atol=1e-3, rtol=0)


def test_a_later_token_cannot_change_an_earlier_one_but_an_earlier_one_counts(worker: Worker) -> None:
    prompt = tokens_of(20, 6)
    run(worker, prefill=(PrefillChunk(0, 0, prompt, True),))
    again = run(worker, decode=(DecodeRow(0, 10, prompt[10]),))[
        0
    ]  # the cache holds positions 11 and up as well
    run(worker, prefill=(PrefillChunk(1, 0, prompt[:11], True),))
    torch.testing.assert_close(
        again, run(worker, decode=(DecodeRow(1, 10, prompt[10]),))[0], atol=1e-3, rtol=0
    )
    changed = ((prompt[0] + 1) % 256, *prompt[1:11])
    assert not torch.allclose(run(worker, prefill=(PrefillChunk(2, 0, changed, True),))[0], again, atol=1e-2)


def test_bfloat16_runs_too() -> None:
    logits = run(make_worker("--dtype", "bfloat16"), prefill=(PrefillChunk(0, 0, (1, 2, 3), True),))
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())


def test_the_end_of_the_text_is_picked_only_where_it_is_allowed_and_unprintable_tokens_never() -> None:
    logits = torch.zeros(2, 257)
    logits[:, 7], logits[:, 256], logits[:, 65] = 3.0, 2.0, 1.0
    assert pick_tokens(logits, [True, False]) == [256, 65]
