"""The real vLLM on the CPU, through the same unit and adapter as in production: `make test-vllm` (minutes, 3 GB of downloads).

What the adapter assumes of vLLM is asked of vLLM itself: its metric names, that readiness is a token, that /health stays 200
while it drains, that SIGTERM with a shutdown time-out lets a stream finish, and that its profiler is found.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest
import pytest_asyncio

from gpu_actions.config.host import EngineConfig
from gpu_actions.serving.golden.judgement import GoldenOutcome, judge_golden
from gpu_actions.serving.golden.reading import read_golden
from gpu_actions.serving.golden.recording import record_golden
from gpu_actions.serving.interfaces import Engine, EngineError, Unit
from gpu_actions.serving.registry import build_engine
from gpu_actions.serving.units.process import ProcessUnit
from tests.ports import free_port
from tests.scenarios.vllm import VLLM, make_tiny_llama, vllm_argv, vllm_environment

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not VLLM, reason="vLLM is not installed: make test-vllm"),
    pytest.mark.asyncio(loop_scope="module"),
]
READY_TIMEOUT_S = 400
RECORDED = Path(__file__).parents[1] / "data" / "engines"
DRAIN_S = 60


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def tier(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Unit, Engine]]:
    """A vLLM that has generated a token, as a supervised process unit."""
    folder = tmp_path_factory.mktemp("vllm")
    model, traces, port = folder / "tiny-llama", folder / "traces", free_port()
    await asyncio.to_thread(make_tiny_llama, VLLM, model)
    argv = (
        *vllm_argv(model, name="tiny", port=port, batch=4), "--shutdown-timeout", str(DRAIN_S),
        "--profiler-config", f'{{"profiler": "torch", "torch_profiler_dir": "{traces}"}}',
    )  # fmt: skip
    env = vllm_environment(folder)
    unit = ProcessUnit(argv=argv, env=env, restart=False).build("vllm", state_dir=folder / "units")
    engine = build_engine(EngineConfig(kind="vllm", url=f"http://127.0.0.1:{port}", model="tiny"))
    await unit.start()

    async def alive() -> bool:
        return (await unit.state()).active

    try:
        await engine.wait_ready(timeout_s=READY_TIMEOUT_S, still_starting=alive)
    except EngineError as error:
        pytest.fail(f"{error}\n{await unit.log_tail()}")
    yield unit, engine
    await unit.unfreeze()
    await unit.stop(grace_s=5)


async def test_every_figure_of_the_table_is_on_vllms_page(tier: tuple[Unit, Engine]) -> None:
    _, engine = tier
    before = await engine.metrics()
    done = await engine.complete("How are the links?", max_tokens=12, timeout_s=60)
    assert (done.completion_tokens, done.finish_reason) == (12, "length")
    after = await engine.metrics()
    assert after.missing == ()
    assert (before.generation_tokens, before.requests_finished) != (None, None)
    assert (after.generation_tokens or 0) - (before.generation_tokens or 0) == 12
    assert (after.requests_finished or 0) - (before.requests_finished or 0) == 1


async def test_what_it_answers_is_recorded_for_the_tests_that_run_without_it(
    tier: tuple[Unit, Engine],
) -> None:
    """Write its pages, idle and under a stream, and its process titles to tests/data/engines."""
    unit, engine = tier
    main = (await unit.state()).main_pid
    assert main is not None
    async with aiohttp.ClientSession(engine.url) as session:

        async def page(path: str) -> tuple[int, str]:
            async with session.get(path) as response:
                return response.status, await response.text()

        _, idle = await page("/metrics")
        stream = asyncio.create_task(engine.complete("x", max_tokens=400, timeout_s=120))
        while not (await engine.metrics()).running:
            await asyncio.sleep(0.02)
        _, busy = await page("/metrics")
        await stream
        version = json.loads((await page("/version"))[1])["version"]
        pages = {path: await page(path) for path in ("/health", "/version", "/server_info")}
    titles = [
        Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        for pid in (main, *(child.pid for child in psutil.Process(main).children(recursive=True)))
    ]
    shown = [title for title in titles if title.startswith("VLLM::")]
    assert shown, titles
    RECORDED.mkdir(exist_ok=True)
    record = {
        "engine": "vllm",
        "version": version,
        "origin": "recorded by make test-vllm, on the CPU",
        "titles": shown,
        "pages": pages,
        "metrics": {"idle": idle.splitlines(), "busy": busy.splitlines()},
    }
    (RECORDED / f"vllm-{version}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


async def test_a_running_request_is_seen_and_the_batch_limit_holds(tier: tuple[Unit, Engine]) -> None:
    _, engine = tier
    requests = [asyncio.create_task(engine.complete("x", max_tokens=400, timeout_s=120)) for _ in range(6)]
    seen = [await engine.metrics() for _ in range(20) if await asyncio.sleep(0.05) is None]
    await asyncio.gather(*requests)
    assert max(figures.running or 0 for figures in seen) == 4
    assert max(figures.waiting or 0 for figures in seen) == 2
    idle = await engine.metrics()
    assert (idle.running, idle.waiting) == (0, 0)


async def test_golden_prompts_are_recorded_scored_by_their_ids_and_match(tier: tuple[Unit, Engine]) -> None:
    _, engine = tier
    record = await record_golden(engine, host="h", tier="tp", repeats=2, concurrency=3, timeout_s=120)
    assert record.engine_version.startswith("0.")
    assert all(len(golden.token_ids) == len(golden.texts) for golden in record.prompts)
    assert all(golden.prompt_token_ids for golden in record.prompts)
    reading = await read_golden(engine, record, budget_s=120)
    judgement = judge_golden(record, reading)
    assert judgement.outcome is GoldenOutcome.MATCHES, judgement
    wrong = record.prompts[0].model_copy(
        update={"forced_logprobs": tuple(value - 5 for value in record.prompts[0].forced_logprobs)}
    )
    lie = record.model_copy(update={"prompts": (wrong,)})
    assert judge_golden(lie, await read_golden(engine, lie, budget_s=120)).outcome is GoldenOutcome.DIFFERS


async def test_a_wrong_model_name_is_refused_for_good(tier: tuple[Unit, Engine]) -> None:
    _, engine = tier
    other = build_engine(EngineConfig(kind="vllm", url=engine.url, model="llama-70b"))
    with pytest.raises(EngineError, match="refuses to serve"):
        await other.wait_ready(timeout_s=30)


async def test_the_profiler_leaves_a_trace_that_is_found(tier: tuple[Unit, Engine]) -> None:
    _, engine = tier
    await engine.start_profile(max_iterations=50)
    await engine.complete("x", max_tokens=5, timeout_s=60)
    files = await engine.stop_profile()
    assert files
    assert all(path.stat().st_size > 1000 for path in files)


async def test_sigterm_lets_a_stream_finish_and_health_is_no_proof_of_service(
    tier: tuple[Unit, Engine],
) -> None:
    """The last one: it ends the tier. With --shutdown-timeout the stream finishes; meanwhile new requests fail."""
    unit, engine = tier
    stream = asyncio.create_task(engine.complete("x", max_tokens=900, timeout_s=120))
    while not (await engine.metrics()).running:
        await asyncio.sleep(0.02)
    pid = (await unit.state()).main_pid
    assert pid is not None
    stopping = asyncio.create_task(unit.stop(grace_s=DRAIN_S))
    healths, refusals = [], []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while not stream.done():
            await asyncio.sleep(0.1)
            try:
                async with session.get(f"{engine.url}/health") as answer:
                    healths.append(answer.status)
                async with session.post(
                    f"{engine.url}/v1/completions", json={"model": "tiny", "prompt": "y", "max_tokens": 1}
                ) as answer:
                    refusals.append(answer.status)
            except (aiohttp.ClientError, TimeoutError) as error:
                refusals.append(type(error).__name__)
    finished = await stream
    report = await stopping
    print(f"during the drain: /health {healths}, new requests {refusals}; gone after {report.seconds:.1f} s")
    assert finished.completion_tokens == 900
    assert not report.killed
    assert not (await unit.state()).active
