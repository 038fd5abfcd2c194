"""Two real ranks over gloo: the same numbers as one, a frozen rank, a rank that dies or sleeps, traces of both."""

import asyncio
import gzip
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.demo.engine.conftest import MakeEngine
from tests.demo.engine.running import RunningEngine, events, stream, wait_for

LOGPROB_TOLERANCE = 1e-4
"""Row-split sums add up in another order than whole ones: float32 rounding over 4 layers, logits of spread 2."""


def test_two_ranks_give_the_logits_of_one(single: RunningEngine, pair: RunningEngine) -> None:
    for prompt in ("a", "The quick brown fox jumps over the lazy dog. " * 12):
        asked: dict[str, Any] = {"prompt": prompt, "max_tokens": 12, "logprobs": 257}
        one, two = (engine.complete(**asked)["choices"][0] for engine in (single, pair))
        assert two["text"] == one["text"]
        for left, right in zip(one["logprobs"]["top_logprobs"], two["logprobs"]["top_logprobs"], strict=True):
            assert len(left) == 257
            assert max(abs(left[token] - right[token]) for token in left) < LOGPROB_TOLERANCE


def test_a_rank_is_a_child_process_in_the_same_session(pair: RunningEngine) -> None:
    (rank,) = pair.ranks()
    assert "--rank 1" in " ".join(rank.cmdline())
    assert os.getsid(rank.pid) == os.getsid(pair.process.pid) == pair.process.pid


async def test_a_frozen_rank_stalls_requests_while_http_answers_and_requests_continue_once_it_is_thawed(
    pair: RunningEngine, single: RunningEngine
) -> None:
    (rank,) = pair.ranks()
    async with stream(pair, prompt="hello", max_tokens=60) as response:
        await response.content.readline()
        rank.suspend()
        try:
            last = -1.0
            while (
                made := pair.metric("vllm:generation_tokens_total")
            ) != last:  # until the step in flight hangs
                last = made
                await asyncio.sleep(0.3)
            assert rank.status() == psutil.STATUS_STOPPED
            assert (pair.status("/health"), pair.running) == (200, 1)
            second = asyncio.create_task(asyncio.to_thread(pair.complete, "other", 4))
            await asyncio.to_thread(wait_for, lambda: pair.running + pair.waiting == 2)
            await asyncio.sleep(0.3)
            assert not second.done()
            assert pair.metric("vllm:generation_tokens_total") == last
        finally:
            rank.resume()
        *chunks, done = await events(response)
        assert done == "[DONE]"
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert (await second)["usage"]["completion_tokens"] == 4
    assert pair.text("hello", 60) == single.text("hello", 60)


def test_a_profile_writes_a_trace_of_every_rank_and_ends_by_itself(pair: RunningEngine) -> None:
    assert pair.post("/stop_profile", {})[0] == 409
    status, started = pair.post("/start_profile", {"max_iterations": 3})
    assert (status, started["max_iterations"]) == (200, 3)
    assert pair.post("/start_profile", {})[0] == 409
    pair.complete("hello", 12)
    status, stopped = pair.post("/stop_profile", {})
    assert status == 200
    files = [Path(name) for name in stopped["files"]]
    assert ["rank0" in files[0].name, "rank1" in files[1].name] == [True, True]
    for path in files:
        with gzip.open(path) as trace:
            names = [event.get("name", "") for event in json.load(trace)["traceEvents"]]
        # three steps (a prompt, two tokens) of 4 layers with 2 all-reduces, and no more: the profile ended itself
        assert sum(name == "c10d::allreduce_" for name in names) == 3 * 4 * 2
    assert {path.name for path in files[0].parent.iterdir()} == {path.name for path in files}
    assert pair.complete("hello", 4)["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("body", [{"max_iterations": 0}, {"max_iterations": "many"}])
def test_a_profile_with_a_wrong_limit_is_refused(pair: RunningEngine, body: dict[str, Any]) -> None:
    status, answer = pair.post("/start_profile", body)
    assert (status, answer["error"]["param"]) == (400, "max_iterations")


def test_a_rank_that_dies_ends_the_engine_which_reports_it_to_clients_and_in_its_log(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("--tensor-parallel-size", "2").ready()
    (rank,) = engine.ranks()
    answers: list[Any] = []
    body = {"prompt": "hello", "max_tokens": 2000, "ignore_eos": True}
    asking = threading.Thread(target=lambda: answers.append(engine.post("/v1/completions", body)))
    asking.start()
    wait_for(lambda: engine.running == 1)
    rank.kill()
    assert engine.process.wait(10) == 1
    asking.join()
    assert f"rank 1 (pid {rank.pid}) died: killed by SIGKILL" in engine.log
    status, answer = answers[0]
    assert (status, answer["error"]["code"]) == (500, "engine_failed")


def test_ranks_die_with_rank_0_even_when_frozen(make_engine: MakeEngine) -> None:
    engine = make_engine("--tensor-parallel-size", "2").ready()
    (rank,) = engine.ranks()
    rank.suspend()
    engine.process.send_signal(signal.SIGKILL)
    engine.process.wait(10)
    wait_for(lambda: not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE)


def test_a_rank_that_sleeps_before_its_collective_stalls_the_engine_until_it_wakes(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(
        "--tensor-parallel-size",
        "2",
        "--drill-sleep-rank",
        "1",
        "--drill-sleep-after-s",
        "0",
        "--drill-sleep-s",
        "1.5",
    )
    engine.wait_for_log("rank 1 sleeps 1.5 s before its all-reduce")
    assert engine.ready().complete("hello", 4)["usage"]["completion_tokens"] == 4
    assert "rank 1 continues" in engine.log


def test_a_collective_that_exceeds_its_timeout_ends_the_engine(make_engine: MakeEngine) -> None:
    engine = make_engine("--tensor-parallel-size", "2", "--collective-timeout-s", "2").ready()
    (rank,) = engine.ranks()
    rank.suspend()
    assert engine.post("/v1/completions", {"prompt": "hello", "max_tokens": 4})[0] == 500
    assert engine.process.wait(10) == 1
    assert "the engine has failed" in engine.log
    assert not rank.is_running()
