"""Log-probabilities over the completions API: what is sent, and answers that lack what was asked for."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from gpu_actions.config.host import EngineConfig
from gpu_actions.serving.engines.base import HttpEngine
from gpu_actions.serving.engines.logprobs import (
    LEAST_LOGPROB,
    LogprobsUnavailable,
    forced_request,
    read_forced,
    read_scored,
    scored_request,
)
from gpu_actions.serving.interfaces import EngineError, ScoredTokens
from gpu_actions.serving.registry import build_engine
from tests.ports import free_port

WITH_IDS = ScoredTokens(texts=(" a", " b"), logprobs=(-0.1, -0.2), token_ids=(7, 8), prompt_token_ids=(1, 2))
BY_TEXT = ScoredTokens(texts=(" a", " b"), logprobs=(-0.1, -0.2))


def answer(texts: list[str], values: list[Any], **choice: Any) -> dict[str, Any]:
    return {"choices": [{"logprobs": {"tokens": texts, "token_logprobs": values}, **choice}]}


def test_forced_tokens_are_sent_as_ids_where_the_engine_reported_them() -> None:
    body = forced_request("m", "hello", WITH_IDS)
    assert body["prompt"] == [1, 2, 7, 8]
    assert (body["echo"], body["logprobs"], body["stream"], body["max_tokens"]) == (True, 1, False, 1)
    assert forced_request("m", "hello", BY_TEXT)["prompt"] == "hello a b"


def test_a_scored_completion_is_greedy_with_a_fixed_seed() -> None:
    body = scored_request("m", "hello", max_tokens=5)
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0, 0, 5)
    assert "echo" not in body


def test_ids_are_kept_only_if_there_is_one_for_each_token() -> None:
    document = answer([" a"], [-0.5], token_ids=[7], prompt_token_ids=[1])
    assert read_scored("u", document) == ScoredTokens(
        texts=(" a",), logprobs=(-0.5,), token_ids=(7,), prompt_token_ids=(1,)
    )
    short = answer([" a", " b"], [-0.5, -1], token_ids=[7], prompt_token_ids=[1])
    assert read_scored("u", short).token_ids == ()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"choices": [{"text": "a"}]}, "returns no log-probabilities"),
        ({"choices": [{"logprobs": None}]}, "returns no log-probabilities"),
        (answer(["a"], [None]), "no log-probability of the token 'a'"),
        (answer(["a"], []), "returns no log-probabilities"),
        (answer([], []), "generated no token"),
    ],
)
def test_an_answer_without_log_probabilities_is_named(document: Any, message: str) -> None:
    with pytest.raises(LogprobsUnavailable, match=message):
        read_scored("u", document)


@pytest.mark.parametrize("document", [None, [], {}, {"choices": []}, {"choices": ["x"]}])
def test_an_answer_of_another_shape_is_an_engine_error(document: Any) -> None:
    with pytest.raises(EngineError, match="without a choice"):
        read_scored("u", document)


def test_forced_tokens_are_found_behind_the_prompt_and_before_the_generated_token() -> None:
    document = answer(["x", "y", " a", " b", " c"], [None, -3, -0.1, -0.2, -9])
    assert read_forced("u", document, WITH_IDS) == (-0.1, -0.2)
    assert read_forced("u", document, BY_TEXT) == (-0.1, -0.2)
    counted = document | {"usage": {"prompt_tokens": 4}}
    assert read_forced("u", counted, BY_TEXT) == (-0.1, -0.2)


def test_a_figure_that_is_not_a_number_counts_as_impossible() -> None:
    document = json.loads(
        json.dumps(answer(["x", "y", " a", " b", " c"], [None, -3, float("nan"), -0.2, -9]))
    )
    assert read_forced("u", document, WITH_IDS) == (LEAST_LOGPROB, -0.2)


def test_an_engine_that_ignores_echo_or_splits_text_differently_is_named() -> None:
    with pytest.raises(LogprobsUnavailable, match="does not score the prompt"):
        read_forced("u", answer([" c"], [-1]), WITH_IDS)
    with pytest.raises(LogprobsUnavailable, match="does not score the prompt"):
        read_forced("u", answer([" c"], [-1]), BY_TEXT)
    with pytest.raises(LogprobsUnavailable, match="other tokens"):
        read_forced("u", answer(["x", " a b", " c", "d"], [None, -1, -1, -1]), BY_TEXT)


@pytest.fixture
async def server() -> AsyncIterator[tuple[dict[str, Any], str]]:
    """A server whose answers by path are set in a dictionary: a status with a body."""
    answers: dict[str, Any] = {}

    async def handle(request: web.Request) -> web.Response:
        status, body = answers.get(request.path, (404, {}))
        return web.Response(status=status, text=json.dumps(body), content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner, port = web.AppRunner(app, shutdown_timeout=0.1), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield answers, f"http://127.0.0.1:{port}"
    await runner.cleanup()


def adapter(url: str, kind: str = "vllm") -> HttpEngine:
    return build_engine(EngineConfig.model_validate({"kind": kind, "url": url, "model": "m"}))


async def test_the_adapter_scores_and_a_refusal_of_the_parameters_is_named(
    server: tuple[dict[str, Any], str],
) -> None:
    answers, url = server
    answers["/v1/completions"] = (200, answer([" a"], [-0.5]))
    scored = await adapter(url).complete_scored("x", max_tokens=1, timeout_s=5)
    assert scored.texts == (" a",)
    answers["/v1/completions"] = (400, {"error": "logprobs are disabled"})
    with pytest.raises(LogprobsUnavailable, match="logprobs are disabled"):
        await adapter(url).score_forced("x", scored, timeout_s=5)
    answers["/v1/completions"] = (500, {})
    with pytest.raises(EngineError) as raised:
        await adapter(url).score_forced("x", scored, timeout_s=5)
    assert not isinstance(raised.value, LogprobsUnavailable)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("vllm", "/version"),
        ("sglang", "/server_info"),
        ("sglang", "/get_server_info"),
        ("openai", "/version"),
    ],
)
async def test_the_version_comes_from_the_page_of_each_kind(
    server: tuple[dict[str, Any], str], kind: str, path: str
) -> None:
    answers, url = server
    assert await adapter(url, kind).version() == ""
    answers[path] = (200, {"version": "1.2.3"})
    assert await adapter(url, kind).version() == "1.2.3"
    answers[path] = (200, ["not", "an", "object"])
    assert await adapter(url, kind).version() == ""
