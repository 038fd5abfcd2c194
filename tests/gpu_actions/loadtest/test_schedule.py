"""Schedules and prompts follow from the seed alone."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gpu_actions.loadtest.prompts import PromptMaker
from gpu_actions.loadtest.schedule import BadTrace, make_schedule
from gpu_actions.loadtest.spec import LoadSpec, explain_invalid


def spec(**fields: object) -> LoadSpec:
    return LoadSpec.model_validate({"url": "http://127.0.0.1:1", "model": "m", **fields})


@given(
    arrival=st.sampled_from(["poisson", "constant", "burst", "ramp"]),
    seed=st.integers(0, 2**31),
    rate=st.floats(1, 200),
    warmup_s=st.floats(0, 3),
)
@settings(max_examples=60)
def test_a_schedule_is_ordered_repeatable_and_within_its_time(
    arrival: str, seed: int, rate: float, warmup_s: float
) -> None:
    wanted = spec(arrival=arrival, seed=seed, target_qps=rate, duration_s=5, warmup_s=warmup_s, burst_size=3)
    schedule = make_schedule(wanted)
    assert schedule == make_schedule(wanted)
    due = list(schedule.due_s)
    assert due == sorted(due)
    assert all(-warmup_s <= at < 0 for at in due[: schedule.warmup])
    assert all(0 <= at < 5 for at in due[schedule.warmup :])
    assert all(32 <= length <= 64 for length in schedule.prompt_len)
    assert len(due) > schedule.warmup


@given(
    arrival=st.sampled_from(["poisson", "constant", "burst"]),
    rate=st.floats(0.5, 200),
    seconds=st.floats(2, 20),
    seed=st.integers(0, 2**31),
    size=st.integers(1, 50),
)
@settings(max_examples=80)
def test_the_number_of_requests_is_the_rate_times_the_duration_whatever_the_seed(
    arrival: str, rate: float, seconds: float, seed: int, size: int
) -> None:
    fields = {"arrival": arrival, "target_qps": rate, "duration_s": seconds, "burst_size": size}
    schedule = make_schedule(spec(**fields, seed=seed, warmup_s=0))
    assert abs(len(schedule) - rate * seconds) <= 0.5
    assert all(0 <= at < seconds for at in schedule.due_s)


@pytest.mark.parametrize("seed", range(20))
def test_three_a_second_for_twenty_seconds_are_sixty_requests(seed: int) -> None:
    schedule = make_schedule(spec(target_qps=3, duration_s=20, warmup_s=2, seed=seed))
    assert (len(schedule) - schedule.warmup, schedule.warmup) == (60, 6)


def test_the_arrivals_of_many_seeds_are_uniform_over_the_run() -> None:
    """The counts of ten equal parts, over 200 seeds of 60 requests, against chi-squared with 9 degrees (0.1 %: 27.9)."""
    parts = [0] * 10
    for seed in range(200):
        for at in make_schedule(spec(seed=seed, warmup_s=0)).due_s:
            parts[int(at / 2)] += 1
    expected = 200 * 60 / 10
    assert sum((count - expected) ** 2 / expected for count in parts) < 27.9


def test_poisson_gaps_have_the_variance_of_a_poisson_process() -> None:
    due = list(make_schedule(spec(target_qps=50, duration_s=400, warmup_s=0)).due_s)
    gaps = [right - left for left, right in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance**0.5 == pytest.approx(mean, rel=0.05)


def test_a_ramp_offers_the_integral_of_its_rate() -> None:
    due = list(
        make_schedule(spec(arrival="ramp", ramp_from_qps=10, target_qps=30, duration_s=10, warmup_s=0)).due_s
    )
    assert len(due) == pytest.approx(200, abs=1)
    assert sum(at < 5 for at in due) == pytest.approx(75, abs=1)


def test_another_seed_makes_another_schedule() -> None:
    assert make_schedule(spec(seed=1)).due_s != make_schedule(spec(seed=2)).due_s


def test_a_recorded_trace_is_replayed_with_its_lengths(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 1000, "input_length": 10, "output_length": 3},
        {"at_s": 1.5, "prompt_len": 20, "max_new_tokens": 4},
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    schedule = make_schedule(spec(arrival="replay", trace_file=path))
    assert list(schedule.due_s) == [0.0, 0.5]
    assert (list(schedule.prompt_len), list(schedule.new_tokens)) == ([10, 20], [3, 4])
    assert schedule.trace_sha256 is not None
    table = tmp_path / "trace.csv"
    table.write_text("at_s,prompt_len\n2,7\n1,5\n")
    assert list(make_schedule(spec(arrival="replay", trace_file=table)).prompt_len) == [5, 7]


@pytest.mark.parametrize("text", ["not json", '{"when": 3}', '{"at_s": -1}', "", "[1]"])
def test_a_trace_that_cannot_be_replayed_names_file_and_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(BadTrace, match=r"trace\.jsonl"):
        make_schedule(spec(arrival="replay", trace_file=path))


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"target_qps": 0}, "target_qps", "0"),
        ({"target_qps": -3}, "target_qps", "-3"),
        ({"target_qps": 1e9}, "target_qps", "1000000000"),
        ({"target_qps": float("nan")}, "target_qps", "nan"),
        ({"target_qps": 90_000, "duration_s": 80_000}, "target_qps", "90000"),
        ({"target_qps": 0.01, "duration_s": 5}, "target_qps", "0.01"),
        ({"prompt_len_min": 65}, "prompt_len_min", "65"),
        ({"url": "localhost:8000"}, "url", "localhost:8000"),
        ({"url": "http://me:pw@h:1"}, "url", "http"),
        ({"arrival": "replay"}, "trace_file", "None"),
        ({"max_new_tokens": 0}, "max_new_tokens", "0"),
        ({"model": ""}, "model", "''"),
        ({"duration_s": float("inf")}, "duration_s", "inf"),
    ],
)
def test_the_error_for_a_wrong_option_names_the_field_the_value_and_the_fix(
    fields: dict[str, object], field: str, value: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        spec(**fields)
    (line,) = explain_invalid(caught.value)
    assert field in line
    assert value in line
    assert ";" in line or "must" in line or "for example" in line


@given(row=st.integers(0, 10**7), length=st.integers(1, 20_000), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=80)
def test_a_prompt_has_exactly_its_length_in_bytes_and_needs_no_escape(
    row: int, length: int, seed: int
) -> None:
    maker = PromptMaker(spec(seed=seed % 3), "bytes")
    prompt = maker.prompt(row, length)
    assert len(prompt) == length
    body = json.loads(maker.body(row, length, 5))
    assert body["prompt"] == prompt.decode()
    assert (body["max_tokens"], body["ignore_eos"], body["stream"]) == (5, True, True)


def test_prompts_differ_by_row_and_repeat_by_seed() -> None:
    maker = PromptMaker(spec(), "bytes")
    prompts = [maker.prompt(row, 64) for row in range(2000)]
    assert len({prompt[:12] for prompt in prompts}) == 2000, "no shared prefix that a cache could keep"
    again = PromptMaker(spec(), "bytes")
    assert prompts == [again.prompt(row, 64) for row in range(2000)]


def test_a_prompt_in_words_has_about_one_word_per_token() -> None:
    prompt = PromptMaker(spec(), "words").prompt(3, 200)
    assert 185 <= len(prompt.split()) <= 200
