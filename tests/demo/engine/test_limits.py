"""Queue limits, queue time, start-up and the drain, on real engines."""

import asyncio
import socket
import time
from typing import Any

import aiohttp
import pytest

from tests.demo.engine.conftest import MakeEngine
from tests.demo.engine.running import events, stream, wait_for


async def test_a_full_queue_and_a_long_wait_get_503_with_retry_after(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(
        "--max-num-seqs", "1", "--max-num-queued-reqs", "1", "--queue-timeout-s", "0.5", "--retry-after-s", "7"
    ).ready()  # fmt: skip
    async with stream(engine, prompt="hello", max_tokens=1900) as running:
        await running.content.readline()
        async with aiohttp.ClientSession() as session:

            async def ask(**fields: Any) -> tuple[int, str, str, float]:
                began = time.monotonic()
                body = {"prompt": "hi", **fields}
                async with session.post(f"{engine.url}/v1/completions", json=body) as response:
                    error = (await response.json())["error"]
                    return (
                        response.status,
                        response.headers["Retry-After"],
                        error["code"],
                        time.monotonic() - began,
                    )

            waits = asyncio.create_task(ask(stream=True))
            await asyncio.to_thread(wait_for, lambda: engine.waiting == 1)
            *refused, _ = await ask()
            *expired, waited_s = await waits
        assert refused == [503, "7", "queue_full"]
        assert expired == [503, "7", "queue_timeout"]
        assert 0.4 < waited_s < 3
        assert engine.waiting == 0
        assert await running.content.readline() is not None
    await asyncio.to_thread(wait_for, lambda: engine.running == 0)
    assert await asyncio.to_thread(engine.text, "hi", 4)


async def test_sigterm_finishes_running_requests_refuses_new_ones_and_exits_0(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("--tensor-parallel-size", "2", "--shutdown-timeout", "60", "--slow-ms", "20").ready()
    (rank,) = engine.ranks()
    async with stream(engine, prompt="hello", max_tokens=40) as response:
        await response.content.readline()
        engine.terminate()
        await asyncio.to_thread(wait_for, lambda: engine.status("/health") == 503)
        assert engine.status("/ready") == 503
        status, answer = await asyncio.to_thread(engine.post, "/v1/completions", {"prompt": "hi"})
        assert (status, answer["error"]["code"]) == (503, "shutting_down")
        *chunks, done = await events(response)
    assert done == "[DONE]"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert await asyncio.to_thread(engine.process.wait, 10) == 0
    assert not rank.is_running()


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_drain_aborts_requests_that_outlast_its_limit_and_exits_1(
    make_engine: MakeEngine, frozen: bool
) -> None:
    ranks = ("--tensor-parallel-size", "2") if frozen else ()
    engine = make_engine("--shutdown-timeout", "0.5", "--slow-ms", "20", *ranks).ready()
    async with stream(engine, prompt="hello", max_tokens=1900) as response:
        await response.content.readline()
        if frozen:
            engine.ranks()[0].suspend()
        engine.terminate()
        found = await events(response)
    assert found[-1]["error"]["code"] == "shutting_down"
    assert await asyncio.to_thread(engine.process.wait, 10) == 1
    assert "1 unfinished request(s) were aborted" in engine.log


def test_an_engine_that_is_not_ready_answers_503_with_the_reason(make_engine: MakeEngine) -> None:
    engine = make_engine()
    # HTTP is up before torch is imported
    assert engine.status("/ready") == engine.status("/health") == 503
    status, answer = engine.post("/v1/completions", {"prompt": "hi"})
    assert (status, answer["error"]["code"]) == (503, "starting")
    assert engine.metric("vllm:num_requests_running") == 0
    wait_for(lambda: engine.status("/ready") == 200)
    for phase in ("import aiohttp", "import torch", "weights", "distributed init", "warm-up"):
        assert f"start-up: {phase} took" in engine.log


def test_a_taken_port_is_reported_in_one_line_and_no_rank_is_left(make_engine: MakeEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(AssertionError) as ended:
            make_engine("--port", port, "--tensor-parallel-size", "2")
    assert f"cannot listen on 127.0.0.1:{port}" in str(ended.value)
    assert "Traceback" not in str(ended.value)
