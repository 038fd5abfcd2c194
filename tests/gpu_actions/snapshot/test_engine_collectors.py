"""Engines that stall, slow down and send wrong answers, over real HTTP: readings and verdicts."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from gpu_actions.config.host import EngineConfig
from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.models import Verdict
from gpu_actions.serving.condition import Progress, judge_progress, sample_of
from gpu_actions.serving.registry import build_engine
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.collectors.engine import EngineReading, sample_of_page
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.snapshot.progress import progress_of
from gpu_actions.snapshot.replicas import hung_replicas
from gpu_actions.snapshot.target import TriageTarget
from gpu_actions.triage.judge import judge
from tests.gpu_actions.fakes import FakeEngine
from tests.gpu_actions.triage import builders as make

StartEngine = Callable[..., Awaitable[FakeEngine]]
LIMITS = TriageThresholds(
    window_s=0.3, completion_deadline_s=0.5, metrics_timeout_s=0.3, completion_slow_ms=250
)


async def triage_of(url: str, **target: object) -> tuple[Snapshot, Verdict]:
    wanted = TriageTarget.model_validate({"host": "h", "expect_gpus": 0, "engine_url": url, **target})
    snapshot = await collect(wanted, LIMITS)
    return snapshot, judge(snapshot, LIMITS)


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
async def test_an_engine_that_generates_is_healthy_in_either_dialect(
    start_engine: StartEngine, dialect: str
) -> None:
    engine = await start_engine(running=3, tokens_per_s=500, dialect=dialect)
    snapshot, verdict = await triage_of(engine.url)
    assert verdict.verdict == "healthy", verdict.findings
    assert snapshot.engine is not None and snapshot.engine.samples[0].dialect == dialect
    assert snapshot.completion is not None and snapshot.completion.tokens == 2
    assert snapshot.completion.model == "m", "the model is the first that the engine lists"


@pytest.mark.parametrize(("dialect", "state"), [("sglang", "flowing"), ("vllm", "flat")])
async def test_long_streams_of_an_engine_that_counts_tokens_at_the_end_of_a_request_are_progress(
    start_engine: StartEngine, dialect: str, state: str
) -> None:
    engine = await start_engine(
        running=3, tokens_per_s=500, dialect=dialect, counts_at_end=True, completion="hang"
    )
    snapshot, _ = await triage_of(engine.url)
    assert progress_of(snapshot).state == state
    samples = []
    tier_engine = build_engine(
        EngineConfig.model_validate({"kind": dialect, "url": engine.url, "model": "m"})
    )
    for _ in range(5):
        samples.append(sample_of(await tier_engine.metrics()))
        await asyncio.sleep(0.05)
    moving = judge_progress(samples, stall_s=0.15) is Progress.MOVING
    assert moving == (state == "flowing")


CASES = {
    "stalls": ({"running": 2, "completion": "hang"}, "unknown", ("serving.stalled", "collective.unread")),
    "stalls one request": ({"running": 2, "tokens_per_s": 300, "completion": "hang"}, "watch", ("serving.completion_late",)),
    "is slow": ({"tokens_per_s": 300, "running": 1, "completion_s": 0.35}, "watch", ("serving.completion_slow",)),
    "does not answer at all": ({"metrics": "silent", "completion": "hang"}, "unknown", ("serving.stalled",)),
    "sheds load": ({"completion": "503", "running": 4, "tokens_per_s": 300}, "watch", ("serving.overload",)),
    "queues a request": (
        {"completion": "hang", "running": 4, "waiting": 9, "tokens_per_s": 300}, "watch", ("serving.overload",)),
    "hangs and refuses for load": ({"completion": "503", "running": 4}, "unknown", ("serving.stalled",)),
    "refuses although it holds no request": ({"completion": "503"}, "unknown", ("serving.completion_error",)),
    "loads its model": ({"completion": "503:Loading model"}, "watch", ("serving.starting",)),
    "reads a long prompt": ({"completion": "hang", "running": 1, "kv_per_s": 0.1}, "healthy", ("serving.prefill",)),
    "reads a long prompt as SGLang": (
        {"completion": "hang", "running": 1, "kv_per_s": 0.1, "dialect": "sglang"}, "healthy", ("serving.prefill",)),
    "answers 500": ({"completion": "500"}, "unknown", ("serving.completion_error",)),
    "does not know our model": ({"completion": "404"}, "unknown", ("serving.completion_rejected",)),
    "sends an error event in a stream of status 200": ({"completion": "error_event"}, "unknown", ("serving.completion_error",)),
    "cuts its stream": ({"completion": "cut"}, "unknown", ("serving.completion_error",)),
    "counts 13 tokens and sends none": ({"completion": "empty"}, "unknown", ("serving.completion_error",)),
    "streams garbage": ({"completion": "garbage"}, "unknown", ("serving.completion_error",)),
    "shows a web page as metrics": ({"metrics": "html"}, "watch", ("serving.metrics_unread",)),
    "shows broken metrics": ({"metrics": "broken"}, "watch", ("serving.metrics_unread",)),
    "shows NaN and negative counters": ({"metrics": "nan"}, "watch", ("serving.metrics_unread",)),
    "answers 500 for metrics": ({"metrics": "error"}, "watch", ("serving.metrics_unread",)),
    "shows broken metrics and generates nothing": ({"metrics": "broken", "completion": "hang"}, "unknown", ("serving.unread",)),
    "restarts within the window": ({"metrics": "restarts", "running": 1}, "watch", ("serving.restarted",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_an_engine_that_misbehaves_is_detected_and_alone_never_means_fall_back(
    start_engine: StartEngine, name: str
) -> None:
    fields, verdict, rules = CASES[name]
    engine = await start_engine(**fields)
    began = time.monotonic()
    _, judged = await triage_of(engine.url)
    assert time.monotonic() - began < 3
    assert judged.verdict == verdict, [f"{row.id}: {row.summary}" for row in judged.findings]
    assert set(rules) <= {finding.id for finding in judged.findings}


async def test_a_port_where_nothing_listens_means_the_engine_is_down(free_url: str) -> None:
    _, verdict = await triage_of(free_url)
    assert (verdict.verdict, verdict.cause) == ("fall_back", "engine_down")


async def test_a_fallback_tier_that_is_down_does_not_call_for_a_fallback(free_url: str) -> None:
    _, verdict = await triage_of(free_url, tier="fallback")
    assert (verdict.verdict, verdict.cause) == ("watch", "engine_down")


async def test_a_tier_stopped_on_purpose_is_not_queried(free_url: str) -> None:
    snapshot, verdict = await triage_of(free_url, tier_expected=False)
    assert verdict.verdict == "healthy"
    assert snapshot.collectors["engine"].status == "skipped"


@pytest.fixture
async def free_url() -> str:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}"


def test_impossible_figures_count_as_missing() -> None:
    page = "vllm:num_requests_running -1\nvllm:num_requests_waiting 2\nvllm:generation_tokens_total +Inf\n"
    sample = sample_of_page(page, model=None, at_s=0)
    assert (sample.running, sample.waiting, sample.generation_tokens) == (None, 2, None)
    assert {"running", "generation_tokens"} <= set(sample.missing)


async def test_each_collector_reports_its_progress(start_engine: StartEngine) -> None:
    engine = await start_engine(tokens_per_s=10)
    lines: list[str] = []
    await collect(TriageTarget(expect_gpus=0, engine_url=engine.url), LIMITS, report=lines.append)
    assert [line for line in lines if line.startswith("engine: ok")]


@pytest.mark.parametrize(
    ("label", "running", "tokens"),
    [
        ("engine", "vllm:num_requests_running", "vllm:generation_tokens_total"),
        ("dp_rank", "sglang:num_running_reqs", "sglang:generation_tokens_total"),
    ],
)
def test_one_hung_replica_of_a_data_parallel_tier_is_seen(label: str, running: str, tokens: str) -> None:
    def page(step: int) -> str:
        rows = [f'{running}{{{label}="{n}"}} 3' for n in range(8)]
        rows += [f'{tokens}{{{label}="{n}"}} {100 + (0 if n == 5 else step)}' for n in range(8)]
        return "\n".join(rows) + "\n"

    samples = tuple(sample_of_page(page(step), model=None, at_s=3.0 * step) for step in (0, 1))
    reading = EngineReading(url="u", samples=samples)
    assert [one.name for one in hung_replicas(make.healthy(engine=reading))] == ["5"]
    verdict = judge(make.healthy(engine=reading))
    assert (verdict.verdict, verdict.cause) == ("watch", "engine_stalled")
    assert "replica 5 of 8" in verdict.summary
