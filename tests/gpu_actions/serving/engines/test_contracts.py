"""What real engines answer, kept with version and origin in tests/data/engines: the adapters read all of it.

`make test-vllm` records vLLM's; SGLang's are from its own documentation and source, because it needs a GPU.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from gpu_actions.serving.interfaces import EngineMetrics
from gpu_actions.serving.registry import ENGINES, coordinates_in_title, engine_of_page
from gpu_actions.snapshot.collectors.engine import EngineReading, EngineSample, sample_of_page
from gpu_actions.snapshot.replicas import hung_replicas
from gpu_actions.triage.judge import judge
from tests.gpu_actions.triage import builders as make

FOLDER = Path(__file__).parents[3] / "data" / "engines"
RECORDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
}
PAGES = [(name, state) for name, record in RECORDS.items() for state in record["metrics"]]
NOT_IN_THE_EXAMPLE = ("requests_finished", "queue", "prompt_lengths", "answer_lengths")


def page_of(name: str, state: str) -> str:
    return "\n".join(RECORDS[name]["metrics"][state]) + "\n"


def read(name: str, state: str) -> EngineMetrics:
    engine = ENGINES[RECORDS[name]["engine"]]
    return engine.read_page(page_of(name, state), model="", taken_at_s=1.0)


def sample(name: str, state: str, at_s: float) -> EngineSample:
    return sample_of_page(page_of(name, state), model=None, at_s=at_s)


@pytest.mark.parametrize("name", RECORDS)
def test_each_record_says_of_which_version_it_is_and_where_it_comes_from(name: str) -> None:
    record = RECORDS[name]
    assert record["version"] and record["origin"] and record["engine"] in ENGINES


@pytest.mark.parametrize(("name", "state"), PAGES)
def test_the_engine_is_known_by_its_page(name: str, state: str) -> None:
    engine = engine_of_page(page_of(name, state))
    assert engine is not None and engine.kind == RECORDS[name]["engine"]


@pytest.mark.parametrize(("name", "state"), [page for page in PAGES if page[1] != "fresh"])
def test_a_page_shows_requests_progress_and_latencies(name: str, state: str) -> None:
    metrics = read(name, state)
    assert set(metrics.missing) <= set(NOT_IN_THE_EXAMPLE)
    assert metrics.progress is not None and metrics.ttft is not None and metrics.kv_cache_usage is not None
    assert bool(metrics.running) == (state != "idle")


@pytest.mark.parametrize(
    ("name", "title"), [(name, title) for name, record in RECORDS.items() for title in record["titles"]]
)
def test_a_process_title_names_its_coordinates(name: str, title: str) -> None:
    found = coordinates_in_title(title) or coordinates_in_title(title, core=True)
    plain = title.replace("_", "")
    assert all(f"{axis}{number}" in plain for axis, number in found.items())
    assert found or title in ("VLLM::EngineCore", "VLLM::Worker")  # of a tier with a single rank


def test_a_fresh_engine_that_answered_nothing_yet_is_healthy_once_a_completion_did() -> None:
    first, last = sample("sglang-dp", "fresh", 0), sample("sglang-dp", "busy", 3)
    verdict = judge(make.healthy(engine=EngineReading(url="u", samples=(first, last))))
    assert (verdict.verdict, verdict.cause) == ("healthy", "none"), verdict.findings


def test_long_streams_of_replicas_are_progress_although_the_token_counter_is_flat() -> None:
    first, last = sample("sglang-dp", "busy", 0), sample("sglang-dp", "later", 3)
    assert first.generation_tokens == last.generation_tokens
    engine = EngineReading(url="u", samples=(first, last))
    snapshot = make.healthy(engine=engine, completion=make.completion("timeout", tokens=0))
    assert hung_replicas(snapshot) == ()
    verdict = judge(snapshot)
    assert verdict.cause == "serving_regression", verdict.findings  # one request waits in the queue
