"""Sleep mode: the weights leave the device and come back unchanged; on a GPU the validation measures it."""

import asyncio
from pathlib import Path

from tests.demo.engine.conftest import MakeEngine
from tests.demo.engine.running import events, stream


async def test_a_sleeping_engine_refuses_requests_and_generates_the_same_after_waking(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine("--tensor-parallel-size", "2", "--enable-sleep-mode", "1").ready()
    before = await asyncio.to_thread(engine.text, "the quick brown fox", 8)
    for _ in range(2):
        assert await asyncio.to_thread(engine.post, "/sleep", {}) == (200, {"is_sleeping": True})
        status, answer = await asyncio.to_thread(engine.post, "/v1/completions", {"prompt": "hi"})
        assert (status, answer["error"]["code"]) == (503, "asleep")
        assert engine.status("/health") == 200
        assert await asyncio.to_thread(engine.post, "/wake_up", {}) == (200, {"is_sleeping": False})
        assert await asyncio.to_thread(engine.text, "the quick brown fox", 8) == before


async def test_an_engine_does_not_fall_asleep_under_a_request(make_engine: MakeEngine) -> None:
    engine = make_engine("--enable-sleep-mode", "1", "--slow-ms", "20").ready()
    async with stream(engine, prompt="hello", max_tokens=30) as response:
        await response.content.readline()
        status, answer = await asyncio.to_thread(engine.post, "/sleep", {})
        assert (status, answer["error"]["code"]) == (409, "conflict")
        assert len(await events(response)) > 1


async def test_without_the_flag_there_is_no_sleep_mode(make_engine: MakeEngine) -> None:
    engine = make_engine().ready()
    status, _ = await asyncio.to_thread(engine.post, "/sleep", {})
    assert status == 404


async def test_weights_from_a_file_are_those_that_were_drawn(make_engine: MakeEngine, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    flags = ("--tensor-parallel-size", "2", "--weights-dir", str(folder))
    drawn = await asyncio.to_thread(make_engine(*flags).ready().text, "the quick brown fox", 8)
    assert sorted(file.name for file in folder.iterdir()) == ["rank0of2.weights", "rank1of2.weights"]
    read = make_engine(*flags, "--seed", "7").ready()
    assert await asyncio.to_thread(read.text, "the quick brown fox", 8) == drawn
    (folder / "rank0of2.weights").write_bytes(b"half a file")
    (folder / "rank1of2.weights").write_bytes(b"")
    anew = make_engine(*flags).ready()
    assert await asyncio.to_thread(anew.text, "the quick brown fox", 8) == drawn
