"""Golden prompts of the real reference engine on the CPU: across restarts, ranks and traffic, and of a model that is wrong."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpu_actions.config.host import EngineConfig
from gpu_actions.serving.golden.judgement import GoldenOutcome, judge_golden
from gpu_actions.serving.golden.reading import read_golden
from gpu_actions.serving.golden.record import GoldenRecord
from gpu_actions.serving.golden.recording import GoldenRefused, record_golden
from gpu_actions.serving.interfaces import Engine, EngineError
from gpu_actions.serving.registry import build_engine
from tests.demo.engine.running import RunningEngine

Start = Callable[..., Engine]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a reference engine, or return the running one with the same flags."""
    running: dict[tuple[str, ...], RunningEngine] = {}

    def begin(*flags: str) -> Engine:
        if flags not in running:
            running[flags] = RunningEngine(
                tmp_path_factory.mktemp("engine") / "log", *flags, "--max-num-seqs", "16"
            ).ready()
        config = {"kind": "reference", "url": running[flags].url, "model": "reference"}
        return build_engine(EngineConfig.model_validate(config))

    yield begin
    for engine in running.values():
        engine.close()


@pytest.fixture(scope="module")
def record(start: Start) -> GoldenRecord:
    return asyncio.run(record_golden(start(), host="test", tier="tp", concurrency=4))


def test_the_record_states_the_engine_and_that_it_repeats_its_tokens(record: GoldenRecord) -> None:
    assert (record.engine_kind, record.engine_version, record.model) == ("reference", "1", "reference")
    assert record.exact
    assert record.idle_spread_nats < 1e-3
    assert record.load_spread_nats < 1e-3
    assert len(record.prompts) == 4
    assert all(prompt.token_ids and prompt.prompt_token_ids for prompt in record.prompts)


async def test_the_same_model_matches_with_equal_tokens_after_a_restart_with_two_ranks(
    start: Start, record: GoldenRecord
) -> None:
    reading = await read_golden(start("--tensor-parallel-size", "2"), record, budget_s=30)
    judgement = judge_golden(record, reading)
    assert judgement.outcome is GoldenOutcome.MATCHES, judgement
    assert "4 with equal tokens" in judgement.summary
    assert judgement.worst_nats is not None
    assert judgement.worst_nats < 0.01


async def test_with_traffic_the_log_probabilities_decide(start: Start, record: GoldenRecord) -> None:
    engine = start()
    traffic = [
        asyncio.create_task(engine.complete(f"traffic {n}", max_tokens=400, timeout_s=60)) for n in range(3)
    ]
    try:
        while not ((await engine.metrics()).running or 0) >= 3:
            await asyncio.sleep(0.02)
        reading = await read_golden(engine, record, budget_s=30)
        judgement = judge_golden(record, reading)
        assert not reading.idle
        assert all(answer.generated is None for answer in reading.answers)
        assert judgement.outcome is GoldenOutcome.MATCHES, judgement
    finally:
        for task in traffic:
            task.cancel()
        await asyncio.gather(*traffic, return_exceptions=True)


async def test_other_weights_under_the_same_name_differ(start: Start, record: GoldenRecord) -> None:
    judgement = judge_golden(record, await read_golden(start("--seed", "1"), record, budget_s=30))
    assert judgement.outcome is GoldenOutcome.DIFFERS
    assert judgement.basis == "logprobs"
    assert judgement.difference_nats is not None
    assert judgement.difference_nats > 0.5


async def test_recording_beside_traffic_keeps_no_exact_tokens(start: Start) -> None:
    engine = start()
    traffic = asyncio.create_task(engine.complete("traffic", max_tokens=1500, timeout_s=60))
    try:
        while not (await engine.metrics()).running:
            await asyncio.sleep(0.02)
        lines: list[str] = []
        record = await record_golden(
            engine, host="t", tier="tp", repeats=1, concurrency=0, tokens=4, report=lines.append
        )
        assert not record.exact
        assert "not idle" in lines[0]
    finally:
        traffic.cancel()
        await asyncio.gather(traffic, return_exceptions=True)


async def test_a_reading_ends_within_its_budget_and_says_how_far_it_came(
    start: Start, record: GoldenRecord
) -> None:
    many = record.model_copy(update={"prompts": record.prompts * 200})
    reading = await read_golden(start(), many, budget_s=0.5)
    assert reading.seconds < 2
    assert 0 < len(reading.answers) < 800
    assert "0.5 s" in reading.error
    assert judge_golden(many, reading).outcome is GoldenOutcome.UNKNOWN
    assert judge_golden(many, reading, need_all=False).outcome is GoldenOutcome.MATCHES


async def test_an_engine_that_does_not_agree_with_itself_is_not_recorded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, drift = start(), 0.0
    right = engine.score_forced

    async def drifting(prompt: str, forced: object, *, timeout_s: float) -> tuple[float, ...]:
        nonlocal drift
        drift += 0.7
        return tuple(value - drift for value in await right(prompt, forced, timeout_s=timeout_s))  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "score_forced", drifting)
    with pytest.raises(GoldenRefused, match="does not agree with itself"):
        await record_golden(engine, host="t", tier="tp", repeats=2, concurrency=0, tokens=2)


async def test_an_engine_that_fails_is_not_recorded(tmp_path: Path) -> None:
    config = {"kind": "reference", "url": "http://127.0.0.1:9", "model": "m"}
    engine = build_engine(EngineConfig.model_validate(config))
    with pytest.raises(GoldenRefused, match="cannot be recorded"):
        await record_golden(engine, host="t", tier="tp")
    with pytest.raises(EngineError):
        await engine.complete_scored("x", max_tokens=1, timeout_s=1)
