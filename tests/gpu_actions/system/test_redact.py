"""Redaction: secrets that must not leave the host, and text that must stay readable."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.system.redact import redact


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("token xoxb-123456-abcdef in a log", "xoxb-123456-abcdef"),
        ("xoxe-1-aaaaaaaa xoxp-22222222", "xoxp-22222222"),
        ("app xapp-1-A0000-111", "xapp-1-A0000-111"),
        ("key sk-proj-abcdefgh1234", "sk-proj-abcdefgh1234"),
        ("AKIAIOSFODNN7EXAMPLE is one", "AKIAIOSFODNN7EXAMPLE"),
        ("Authorization: Bearer abc.def-ghi_jkl=", "abc.def-ghi_jkl="),
        ("authorization: bearer ABCDEFGHIJ", "ABCDEFGHIJ"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----", "MIIEow"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEcut", "MIIEcut"),
        ("huggingface hf_abcdefghijklmnop", "hf_abcdefghijklmnop"),
        ("push with ghp_abcdefghijklmnop1234", "ghp_abcdefghijklmnop1234"),
        ("github_pat_11AAAAAAA0abcdef", "github_pat_11AAAAAAA0abcdef"),
        ("postgresql://bot:hunter2@db:5432/x", "hunter2"),
        ("redis://:hunter2@db", "hunter2"),
        ("HF_TOKEN=verysecret", "verysecret"),
        ("OPENAI_API_KEY='with space in it'", "with space in it"),
        ('{"password": "hunter2", "user": "x"}', "hunter2"),
        ("--api-key hunter2 --port 1", "hunter2"),
        ("--api-key=hunter2", "hunter2"),
        ("--api-key 'hunter2 and more'", "and more"),
        ('password="hunter2 is cut off', "hunter2"),
        ("aws_secret_access_key = abc/def+ghi", "abc/def+ghi"),
        ("client_secret: hunter2", "hunter2"),
    ],
)
def test_a_secret_is_removed_and_counted(text: str, secret: str) -> None:
    result = redact(text)
    assert secret not in result.text
    assert "[redacted:" in result.text
    assert result.total >= 1
    assert redact(result.text).text == result.text


@pytest.mark.parametrize(
    "text",
    [
        "vllm:generation_tokens_total 1234.0",
        'vllm:prompt_tokens_total{model_name="demo"} 5',
        "max_tokens=16, prompt_tokens=5, total_tokens: 21",
        '{"usage": {"completion_tokens": 7, "prompt_tokens": 3}}',
        "NCCL_P2P_DISABLE=1",
        "GPU-12345678-aaaa-bbbb-cccc-1234567890ab",
        "http://127.0.0.1:8000/v1/completions",
        'File "/srv/engine.py", line 3, in all_reduce',
        "tokenizer: loaded",
        "vllm serve m --max-num-batched-tokens 8192 --port 1",
    ],
)
def test_text_that_an_engineer_needs_stays(text: str) -> None:
    assert redact(text).text == text
    assert redact(text).total == 0


def test_a_megabyte_of_hostile_text_takes_no_noticeable_time() -> None:
    started = time.monotonic()
    parts = (
        "-",
        "a-",
        "key",
        "x.y",
        "://",
        "eyJ",
        "A\n",
        "key=",
        'key="',
        "key=[",
        "key=a(",
        'key \\"',
        "--key ",
        "http://a:",
    )
    for part in (*parts, "@", "-----END ", "login -p", " -u a:", "$1$", "authorization: ", "1234 "):
        redact(part * (300_000 // len(part)))
    assert time.monotonic() - started < 10


@given(st.text(max_size=300))
def test_redacting_twice_equals_redacting_once(text: str) -> None:
    once = redact(text).text
    assert redact(once).text == once


@given(
    before=st.text(max_size=40),
    secret=st.from_regex(r"[A-Za-z0-9]{12,30}", fullmatch=True),
    after=st.text(max_size=40),
)
def test_no_surrounding_text_lets_a_slack_token_through(before: str, secret: str, after: str) -> None:
    assert f"xoxb-{secret}" not in redact(f"{before} xoxb-{secret} {after}").text
