"""The HTTP side of a real engine: OpenAI's shapes, refusals, metrics, and clients that leave."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.demo.engine.running import RunningEngine, events, stream, wait_for


def test_a_completion_has_openai_shape_and_counts_its_tokens(single: RunningEngine) -> None:
    answer = single.complete("hello", 6, model="tiny")
    (choice,) = answer["choices"]
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    assert choice["finish_reason"] == "length"
    assert len(choice["text"]) == 6  # one token is one printable character
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}


async def test_a_stream_ends_with_its_finish_reason_its_usage_and_done(single: RunningEngine) -> None:
    body = {"prompt": "hello", "max_tokens": 6, "stream_options": {"include_usage": True}}
    async with stream(single, **body) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        *chunks, usage, done = await events(response)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 5 + ["length"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == single.text("hello", 6)
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1


async def test_a_chat_streams_its_role_first_and_says_what_the_whole_answer_says(
    single: RunningEngine,
) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    body = {"messages": messages, "max_completion_tokens": 5, "ignore_eos": True}
    status, whole = await asyncio.to_thread(single.post, "/v1/chat/completions", body)
    assert status == 200
    assert whole["object"] == "chat.completion"
    assert whole["usage"]["prompt_tokens"] == len("user: hi\nassistant: ")
    async with stream(single, path="/v1/chat/completions", **body) as response:
        first, *chunks, done = await events(response)
    assert done == "[DONE]"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]


def test_the_same_prompt_gets_the_same_text_also_as_token_ids(single: RunningEngine) -> None:
    assert single.text("abc", 20) == single.text("abc", 20) == single.text([97, 98, 99], 20)


def test_tokens_do_not_depend_on_what_else_is_in_the_batch(single: RunningEngine) -> None:
    prompts = [f"request {number} " * (1 + number * 3) for number in range(12)]

    def ask(number: int) -> Any:
        return single.complete(prompts[number], 10 + 5 * number, logprobs=3)["choices"]

    alone = [ask(number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(ask, range(12)))
    assert together == alone  # text, and log-probabilities to the last digit


def test_log_probabilities_are_of_the_whole_vocabulary_and_sum_to_one(single: RunningEngine) -> None:
    logprobs = single.complete("abc", 2, logprobs=257)["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == 2
    total = sum(math.exp(value) for value in logprobs["top_logprobs"][0].values())
    assert total == pytest.approx(1, abs=1e-5)
    assert logprobs["top_logprobs"][0][logprobs["tokens"][0]] == logprobs["token_logprobs"][0]


def test_echo_scores_the_prompt_as_the_generation_scored_its_tokens(single: RunningEngine) -> None:
    asked = {"logprobs": 1, "return_token_ids": True}
    whole = single.complete("The quick", 8, **asked)["choices"][0]
    ids = [*whole["prompt_token_ids"], *whole["token_ids"]]
    assert whole["prompt_token_ids"] == list(b"The quick")
    forced = single.complete(ids, 1, echo=True, **asked)["choices"][0]
    assert forced["text"].startswith("The quick" + whole["text"])
    assert forced["logprobs"]["token_logprobs"][0] is None
    assert len(forced["logprobs"]["tokens"]) == len(ids) + 1
    scored = forced["logprobs"]["token_logprobs"][9:-1]
    assert scored == pytest.approx(whole["logprobs"]["token_logprobs"], abs=1e-4)


def test_echo_of_a_prompt_in_several_chunks_scores_each_token_once(single: RunningEngine) -> None:
    prompt = "a long prompt, " * 20
    long = single.complete(prompt, 1, logprobs=0, echo=True)["choices"][0]["logprobs"]
    assert len(long["token_logprobs"]) == len(prompt) + 1
    assert "".join(long["tokens"][:-1]) == prompt
    short = single.complete(prompt[:100], 1, logprobs=0, echo=True)["choices"][0]["logprobs"]
    assert long["token_logprobs"][1:100] == pytest.approx(short["token_logprobs"][1:100], abs=1e-4)


async def test_a_stream_carries_the_echo_in_its_first_chunk(single: RunningEngine) -> None:
    async with stream(single, prompt="abc", max_tokens=2, logprobs=0, echo=True) as response:
        first, last, done = await events(response)
    assert done == "[DONE]"
    assert first["choices"][0]["text"][:3] == "abc"
    assert first["choices"][0]["logprobs"]["tokens"][:3] == ["a", "b", "c"]
    assert len(last["choices"][0]["logprobs"]["tokens"]) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/completions", b"{not json", 400, None),
        ("/v1/completions", b"[" * 100_000, 400, None),
        ("/v1/completions", [1], 400, None),
        ("/v1/completions", {}, 400, "prompt"),
        ("/v1/completions", {"prompt": ""}, 400, "prompt"),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400, "prompt"),
        ("/v1/completions", {"prompt": [300]}, 400, "prompt"),
        ("/v1/completions", {"prompt": "a", "model": "gpt-4"}, 404, "model"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": "a", "max_tokens": True}, 400, "max_tokens"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1 << 20}, 400, "prompt"),
        ("/v1/completions", {"prompt": "a" * 3000}, 400, "prompt"),
        ("/v1/completions", {"prompt": "a", "temperature": "hot"}, 400, "temperature"),
        ("/v1/completions", {"prompt": "a", "temperature": -1}, 400, "temperature"),
        ("/v1/completions", b'{"prompt": "a", "temperature": NaN}', 400, "temperature"),
        ("/v1/completions", {"prompt": "a", "n": 2}, 400, "n"),
        ("/v1/completions", {"prompt": "a", "echo": 1}, 400, "echo"),
        ("/v1/completions", {"prompt": "a", "stream": "yes"}, 400, "stream"),
        ("/v1/completions", {"prompt": "a", "stream_options": {}}, 400, "stream_options"),
        ("/v1/completions", {"prompt": "a", "stop": [""]}, 400, "stop"),
        ("/v1/completions", {"prompt": "a", "temperature": 1, "seed": 5}, 400, "temperature"),
        ("/v1/completions", {"prompt": "a", "top_p": 0.5}, 400, "top_p"),
        ("/v1/completions", {"prompt": "a", "stop": ["END"]}, 400, "stop"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"999": 1}}, 400, "logit_bias"),
        ("/v1/completions", {"prompt": "a", "logit_bias": 5}, 400, "logit_bias"),
        ("/v1/completions", {"prompt": "a", "logprobs": -1}, 400, "logprobs"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2, "min_tokens": 3}, 400, "min_tokens"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"messages": ["hi"]}, 400, "messages[0]"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"image": 1}]}]},
            400,
            "messages[0]",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "u", "content": "a"}], "logprobs": True},
            400,
            "logprobs",
        ),
        ("/v1/embeddings", {}, 404, None),
        ("/v1/models", {}, 405, None),
        ("/start_profile", {}, 404, None),
        ("/stop_profile", {}, 404, None),
    ],
)
def test_a_bad_or_unsupported_request_gets_openais_error_object(
    single: RunningEngine, path: str, body: Any, status: int, param: str | None
) -> None:
    found, answer = single.post(path, body)
    assert (found, answer["error"]["param"]) == (status, param)
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]
    assert answer["error"]["code"]


def test_a_body_that_is_too_large_gets_openais_error_object(single: RunningEngine) -> None:
    status, answer = single.post("/v1/completions", b" " * (17 * 1024 * 1024))
    assert status == 413
    assert answer["error"]["code"] == "request_entity_too_large"


async def test_health_readiness_and_models_answer(single: RunningEngine) -> None:
    assert (single.status("/health"), single.status("/ready")) == (200, 200)
    async with aiohttp.ClientSession() as session, session.get(f"{single.url}/v1/models") as response:
        body = await response.json()
    assert [model["id"] for model in body["data"]] == ["tiny"]


async def test_metrics_have_vllms_names_parse_as_prometheus_and_count_what_was_served(
    single: RunningEngine,
) -> None:
    async def scrape() -> dict[str, float]:
        async with aiohttp.ClientSession() as session, session.get(f"{single.url}/metrics") as response:
            families = list(text_string_to_metric_families(await response.text()))
        samples = [sample for family in families for sample in family.samples]
        assert all(sample.labels["model_name"] == "tiny" for sample in samples)
        return {
            sample.name + sample.labels.get("finished_reason", "") + sample.labels.get("le", ""): sample.value
            for sample in samples
        }

    before = await scrape()
    await asyncio.to_thread(single.complete, "hello", 6)
    after = await scrape()
    grown = {name: after[name] - before[name] for name in after}
    assert grown["vllm:prompt_tokens_total"] == 5
    assert grown["vllm:generation_tokens_total"] == 6
    assert grown["vllm:request_success_totallength"] == 1
    assert grown["vllm:request_success_totalstop"] == 0
    for name, count in {
        "vllm:time_to_first_token_seconds": 1,
        "vllm:inter_token_latency_seconds": 5,
        "vllm:e2e_request_latency_seconds": 1,
        "vllm:request_queue_time_seconds": 1,
    }.items():
        assert grown[f"{name}_count"] == grown[f"{name}_bucket+Inf"] == count
    assert (
        0 < grown["vllm:time_to_first_token_seconds_sum"] < grown["vllm:e2e_request_latency_seconds_sum"] < 30
    )
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    assert after["vllm:kv_cache_usage_perc"] == 0


async def test_a_client_that_leaves_frees_its_slot(single: RunningEngine) -> None:
    aborted = single.metric("vllm:request_success_total", "abort")
    async with stream(single, prompt="hello", max_tokens=2000) as response:
        await response.content.readline()
        assert single.running == 1
        assert single.metric("vllm:kv_cache_usage_perc") > 0
    await asyncio.to_thread(wait_for, lambda: single.running == 0)
    assert single.metric("vllm:request_success_total", "abort") == aborted + 1
    made = single.metric("vllm:generation_tokens_total")
    await asyncio.sleep(0.1)
    assert single.metric("vllm:generation_tokens_total") == made


async def test_a_client_that_leaves_before_its_whole_answer_frees_its_slot(single: RunningEngine) -> None:
    body = {"prompt": "hello", "max_tokens": 2000, "ignore_eos": True}
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(f"{single.url}/v1/completions", json=body))
        await asyncio.to_thread(wait_for, lambda: single.running == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.to_thread(wait_for, lambda: single.running == 0)
