"""Golden prompts: what matches, what differs, and what stays unknown."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.serving.golden.judgement import GoldenOutcome, judge_golden
from gpu_actions.serving.golden.reading import GoldenReading
from gpu_actions.serving.golden.record import LIMIT_NATS, GoldenRecord
from tests.gpu_actions.serving.golden.builders import (
    golden_answer,
    golden_prompt,
    golden_reading,
    golden_record,
    said,
)

MATCHES, DIFFERS, UNKNOWN = GoldenOutcome.MATCHES, GoldenOutcome.DIFFERS, GoldenOutcome.UNKNOWN
CLOSE = said(" one", " 2", " three")
WRONG = CLOSE.model_copy(update={"logprobs": (-0.1, -1.5, -0.1)})
SHORT = said(" one", " two")


@pytest.mark.parametrize(
    ("reading", "outcome", "words"),
    [
        pytest.param(
            golden_reading(), MATCHES, "2 of 2 golden prompts match, 2 with equal tokens", id="same"
        ),
        pytest.param(
            golden_reading(golden_answer(generated=None), golden_answer(1, generated=None), idle=False),
            MATCHES,
            "2 of 2 golden prompts match; log-probabilities moved by 0.000",
            id="busy, not generated",
        ),
        pytest.param(
            golden_reading(golden_answer(moved=0.25), golden_answer(1), idle=False),
            MATCHES,
            "moved by 0.250 nats at most (limit 0.26)",
            id="busy, within the limit and the spread under load",
        ),
        pytest.param(
            golden_reading(golden_answer(moved=0.25), golden_answer(1)),
            DIFFERS,
            "golden prompt 1, token 1: the log-probability of ' one' moved by 0.25 nats, the limit is 0.20",
            id="idle, the spread under load does not count",
        ),
        pytest.param(
            golden_reading(golden_answer(), golden_answer(1, moved=-4, at=2), idle=False),
            DIFFERS,
            "golden prompt 2, token 3: the log-probability of ' three' moved by 4.00 nats, the limit is 0.26",
            id="busy, far off",
        ),
        pytest.param(
            golden_reading(golden_answer(), golden_answer(1, generated=WRONG)),
            DIFFERS,
            "golden prompt 2, token 2: it generated ' 2' instead of ' two'",
            id="idle, another token",
        ),
        pytest.param(
            golden_reading(golden_answer(), golden_answer(1, generated=CLOSE)),
            MATCHES,
            "2 of 2 golden prompts match, 1 with equal tokens, 1 with a close choice made otherwise",
            id="idle, another token that is about as likely: another TP size rounds so",
        ),
        pytest.param(
            golden_reading(golden_answer(generated=SHORT), golden_answer(1)),
            DIFFERS,
            "token 3: it generated the end instead of ' three'",
            id="idle, ended early",
        ),
        pytest.param(
            golden_reading(golden_answer(), golden_answer(1, generated=WRONG), idle=False),
            MATCHES,
            "2 of 2",
            id="busy, tokens are not compared",
        ),
        pytest.param(golden_reading(model="n"), UNKNOWN, "the model is n, recorded with m", id="model"),
        pytest.param(
            golden_reading(engine_kind="sglang"), UNKNOWN, "engine is sglang, recorded with vllm", id="kind"
        ),
        pytest.param(
            golden_reading(golden_answer(moved=9), engine_version="0.33.0"),
            UNKNOWN,
            "the engine version is 0.33.0, recorded with 0.32.0",
            id="version",
        ),
        pytest.param(golden_reading(engine_version=""), MATCHES, "2 of 2", id="version is not reported"),
        pytest.param(
            golden_reading(answers=(), error="the engine timed out"),
            UNKNOWN,
            "correctness is unknown: the engine timed out",
            id="no answer",
        ),
        pytest.param(
            golden_reading(golden_answer(), error="only 1 of 2"), UNKNOWN, "only 1 of 2", id="half answered"
        ),
        pytest.param(
            golden_reading(golden_answer(moved=9), error="only 1 of 2"),
            DIFFERS,
            "moved by 9.00",
            id="half answered, and wrongly",
        ),
        pytest.param(
            golden_reading(golden_answer(forced_logprobs=(-0.1,))), UNKNOWN, "another number", id="count"
        ),
        pytest.param(golden_reading(golden_answer(7)), UNKNOWN, "not of these", id="another record"),
    ],
)
def test_a_reading_is_judged_by_its_record(
    reading: GoldenReading, outcome: GoldenOutcome, words: str
) -> None:
    judgement = judge_golden(golden_record(), reading)
    assert judgement.outcome is outcome, judgement
    assert words in judgement.summary
    assert bool(judgement.action) == (outcome is not MATCHES)


def test_without_a_record_correctness_is_unknown_and_the_action_says_how_to_record() -> None:
    judgement = judge_golden(None, golden_reading())
    assert judgement.outcome is UNKNOWN
    assert "gpu-oncall golden record" in judgement.action


def test_an_engine_without_log_probabilities_is_unknown_and_the_action_names_the_proxy() -> None:
    reading = golden_reading(answers=(), error="no logprobs", cannot_score=True)
    judgement = judge_golden(golden_record(), reading)
    assert judgement.outcome is UNKNOWN
    assert "proxy" in judgement.action


def test_half_the_prompts_are_enough_where_not_all_are_needed() -> None:
    reading = golden_reading(golden_answer(), error="only 1 of 2")
    assert judge_golden(golden_record(), reading, need_all=False).outcome is MATCHES
    nothing = golden_reading(answers=(), error="nothing")
    assert judge_golden(golden_record(), nothing, need_all=False).outcome is UNKNOWN


def test_tokens_are_not_compared_where_the_engine_itself_did_not_repeat_them() -> None:
    reading = golden_reading(golden_answer(generated=WRONG), golden_answer(1))
    assert judge_golden(golden_record(exact=False), reading).outcome is MATCHES


def test_ids_decide_where_both_have_them() -> None:
    record = golden_record(prompts=(golden_prompt(token_ids=(1, 2, 3), prompt_token_ids=(9,)),))
    same = said(" one", " two", " three").model_copy(
        update={"token_ids": (1, 2, 4), "logprobs": (-0.1, -0.1, -2)}
    )
    judgement = judge_golden(record, golden_reading(golden_answer(generated=same)))
    assert (judgement.outcome, judgement.token) == (DIFFERS, 3)
    other_text = said(" one", "\ufffd", " three").model_copy(update={"token_ids": (1, 2, 3)})
    assert judge_golden(record, golden_reading(golden_answer(generated=other_text))).outcome is MATCHES


def test_a_figure_that_is_not_a_number_differs() -> None:
    reading = golden_reading(golden_answer(forced_logprobs=(math.nan, -0.2, -0.3)), golden_answer(1))
    assert judge_golden(golden_record(), reading).outcome is DIFFERS


@given(
    moved=st.floats(min_value=-20, max_value=20),
    at=st.integers(0, 2),
    prompt=st.integers(0, 1),
    idle=st.booleans(),
    idle_spread=st.floats(min_value=0, max_value=1),
    load_spread=st.floats(min_value=0, max_value=1),
)
def test_exactly_a_move_beyond_the_limit_and_the_spread_differs(
    moved: float, at: int, prompt: int, idle: bool, idle_spread: float, load_spread: float
) -> None:
    record = golden_record(idle_spread_nats=idle_spread, load_spread_nats=load_spread)
    answers = [golden_answer(0), golden_answer(1)]
    answers[prompt] = golden_answer(prompt, moved=moved, at=at)
    judgement = judge_golden(record, golden_reading(*answers, idle=idle))
    allowed = LIMIT_NATS + (idle_spread if idle else max(idle_spread, load_spread))
    then = record.prompts[prompt].forced_logprobs[at]
    expected = abs(answers[prompt].forced_logprobs[at] - then) <= allowed
    assert judgement.outcome is (MATCHES if expected else DIFFERS)
    if not expected:
        assert (judgement.prompt, judgement.token, judgement.basis) == (prompt + 1, at + 1, "logprobs")
        assert judgement.difference_nats == pytest.approx(abs(moved), abs=1e-6)


@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "model": st.sampled_from(["m", "n"]),
            "engine_kind": st.sampled_from(["vllm", "sglang"]),
            "engine_version": st.sampled_from(["", "0.32.0", "1"]),
            "error": st.sampled_from(["", "broke"]),
            "answers": st.sampled_from([(), (golden_answer(),), (golden_answer(0), golden_answer(1))]),
        },
    ),
    record=st.sampled_from([None, golden_record()]),
)
def test_missing_evidence_never_matches(changes: dict[str, Any], record: GoldenRecord | None) -> None:
    reading = golden_reading(**changes)
    known = record is not None and (reading.model, reading.engine_kind) == ("m", "vllm")
    complete = known and reading.engine_version != "1" and len(reading.answers) == 2
    assert judge_golden(record, reading).outcome is (MATCHES if complete else UNKNOWN)
