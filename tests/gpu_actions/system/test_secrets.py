"""No secret leaves the host by any output, and no prompt leaves it in an engine's log."""

import io
import json
import logging
import re
import sys
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.presenter.message import header, section
from bot.presenter.mrkdwn import code, code_block, escape, one_line
from bot.settings.logs import configure_logging
from gpu_actions.forensics.bundle import make_bundle
from gpu_actions.forensics.item import Collected, Item
from gpu_actions.loadtest.page import page_html
from gpu_actions.loadtest.report import summary_text
from gpu_actions.serving.engine_log import read_engine_log, without_prompts
from gpu_actions.serving.interfaces import Unit
from gpu_actions.snapshot.model import load_snapshot, save_snapshot
from gpu_actions.system.redact import redact, redact_data, redacted_head, redacted_json, redacted_tail
from gpu_actions.trace.analysis import summarise_rank
from gpu_actions.trace.summary import TraceSummary, table
from tests.bot.toys import toy_settings
from tests.gpu_actions.loadtest.test_baseline import a_result
from tests.gpu_actions.system.secret_forms import FORMS, ORDINARY, Form
from tests.gpu_actions.triage.builders import healthy


async def message(text: str, folder: Path) -> str:
    """Return what each way of putting a text into a Slack message shows."""
    shown = [escape(text), one_line(text), code(text), code_block(text)]
    return "\n".join([*shown, str(section(escape(text))), str(header(text))])


async def log(text: str, folder: Path) -> str:
    """Return the lines of the bot's log, as text and as JSON, of our own events, of errors and of libraries."""
    kept, structure, root = io.StringIO(), structlog.get_config(), logging.getLogger()
    handlers, level, stderr = list(root.handlers), root.level, sys.stderr
    try:
        sys.stderr = kept
        for as_json in (False, True):
            root.handlers = []
            configure_logging(toy_settings(folder).model_copy(update={"log_json": as_json}))
            logger = structlog.get_logger()
            logger.error("an event", detail=text, nested={"lines": [text]}, error=ValueError(text))
            try:
                raise ValueError(text)
            except ValueError:
                logger.exception(text)
                logging.getLogger("a.library").exception("it says %s", text)
    finally:
        sys.stderr = stderr
        structlog.configure(**structure)
        root.handlers, root.level = handlers, level
    assert kept.getvalue().count("an event") == 2
    return kept.getvalue()


async def bundle(text: str, folder: Path) -> str:
    """Return all files of a bundle with its manifest: one item has the text, one fails with it."""

    async def collect() -> Collected:
        return Collected(text=f"before\n{text}\nafter\n")

    async def fail() -> Collected:
        raise OSError(text)

    items = [Item(path="a.txt", source=text, collect=collect), Item(path="b.txt", source=text, collect=fail)]
    made = await make_bundle(
        items, path=folder / "b.tar.gz", host="h", run_id="r", budget_s=5, report=lambda *_: None
    )
    with tarfile.open(made.path) as tar:
        files = [tar.extractfile(member) for member in tar.getmembers()]
        return "\n".join(file.read().decode() for file in files if file is not None)


async def trace(text: str, folder: Path) -> str:
    """Return a trace's table and its figures, where the name of a kernel holds the text."""
    events = [{"ph": "X", "cat": "kernel", "name": text, "ts": 0, "dur": 5}]
    summary = TraceSummary(ranks=(summarise_rank(events, rank=0, top=5),), skipped=(text,))
    return table(summary) + redacted_json(summary.model_dump_json())


async def html(text: str, folder: Path) -> str:
    """Return a load test's page and summary."""
    result = a_result(1)
    told = result.model_copy(
        update={
            "name": text,
            "reasons": (text,),
            "warnings": (text,),
            "engine": result.engine.model_copy(update={"url": text}),
            "workload": result.workload.model_copy(update={"model": text}),
        }
    )
    return page_html(told, [text]) + summary_text(told)


async def snapshot(text: str, folder: Path) -> str:
    """Return a saved snapshot, which still can be read."""
    taken = healthy(completion=None)
    taken = taken.model_copy(
        update={
            "host": text,
            "collectors": {
                name: outcome.model_copy(update={"reason": text})
                for name, outcome in taken.collectors.items()
            },
        }
    )
    path = save_snapshot(taken, folder / "snapshot.json")
    assert load_snapshot(path).collectors.keys() == taken.collectors.keys()
    return path.read_text()


WAYS_OUT: tuple[Callable[[str, Path], Awaitable[str]], ...] = (message, log, bundle, trace, html, snapshot)


@pytest.mark.parametrize("way_out", WAYS_OUT, ids=lambda way: way.__name__)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
async def test_no_secret_leaves(
    form: Form, way_out: Callable[[str, Path], Awaitable[str]], tmp_path: Path
) -> None:
    left = await way_out(form.text, tmp_path)
    assert [secret for secret in form.secrets if secret in left] == []
    assert "[redacted:" in left


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_removed_secret_is_counted_and_removed_once(form: Form) -> None:
    result = redact(form.text)
    assert result.total >= 1
    assert redact(result.text).text == result.text


@pytest.mark.parametrize("text", ORDINARY)
async def test_ordinary_text_stays(text: str) -> None:
    assert redact(text).text == text
    assert redact(f"{text}\n{text}\n").text == f"{text}\n{text}\n"


def test_the_value_of_a_secretly_named_field_is_removed_from_data() -> None:
    data = {"api_key": "hunter2", "keys": ["hunter3"], "output_tokens": "x", "n": 3, "token": None}
    assert redact_data(data) == {
        "api_key": "[redacted:assignment]",
        "keys": ["[redacted:assignment]"],
        "output_tokens": "x",
        "n": 3,
        "token": None,
    }
    assert json.loads(redacted_json('{"a": "password=\\"x y\\"", "b": 1.5}'))["b"] == 1.5


@pytest.mark.parametrize(
    "form", [form for form in FORMS if form.name.startswith("PEM")], ids=lambda form: form.name
)
def test_a_pem_block_is_removed_from_lists_of_lines_and_the_lines_around_it_stay(form: Form) -> None:
    rows = ["INFO before", *form.text.split("\n"), *(["INFO after"] if "-----END" in form.text else [])]
    for data in (rows, tuple(rows), {"log": {"lines": rows}}):
        left = json.dumps(redact_data(data))
        assert [secret for secret in form.secrets if secret in left] == []
        assert "INFO before" in left and ("INFO after" in left or "-----END" not in form.text)


def test_a_line_from_the_middle_of_a_key_is_removed_alone_and_hashes_stay() -> None:
    line = "MIIEowIBAAKCAQEAq7XwZq8Lw3Rt6Yp1Vb4Nm7KdZq8Lw3Rt6Yp1Vb4Nm7Kd+/Ab"
    assert redact(f"Nov 26 02:40:18 h vllm[7]: {line}").text.endswith("[redacted:pem]")
    for ordinary in (
        "a" * 64,
        "0123456789abcdef" * 4,
        f"/{line[:40]}/model.safetensors",
        f"sha384-{line}",
        line + line,
    ):
        assert redact(ordinary).text == ordinary


ONLY_WHOLE = ("JSON list", "PEM without its end", "PEM without its start")
"""Forms of several lines that a cut may leave with no line that says what they are."""

SPLIT = [form for form in FORMS if form.name not in ONLY_WHOLE]


@settings(deadline=None)
@given(
    form=st.sampled_from(SPLIT),
    limit=st.integers(min_value=1, max_value=200),
    before=st.text(alphabet="ab ./", max_size=60),
    after=st.text(alphabet="ab ./", max_size=60),
)
def test_a_secret_split_by_truncation_never_leaves(form: Form, limit: int, before: str, after: str) -> None:
    text = f"{before} {form.text} {after}"
    for left in (redacted_head(text, limit), redacted_tail(text, limit)):
        assert not _has_part(left, form)


@settings(deadline=None)
@given(form=st.sampled_from(SPLIT), limit=st.integers(min_value=1, max_value=400), keep=st.booleans())
async def test_a_bundle_cut_inside_a_secret_never_holds_half_of_it(
    form: Form, limit: int, keep: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "".join(f"plain line {number}\n{form.text}\n" for number in range(5))
    folder = tmp_path_factory.mktemp("cut")

    async def collect() -> Collected:
        return Collected(text=text[len(text) - limit :] if keep else text[:limit], truncated=True)

    items = [
        Item(path="source.txt", source="x", collect=collect, keep="tail" if keep else "head"),
        Item(
            path="cap.txt", source="x", collect=_whole(text), keep="tail" if keep else "head", cap_bytes=limit
        ),
    ]
    made = await make_bundle(
        items, path=folder / "b.tar.gz", host="h", run_id="r", budget_s=5, report=lambda *_: None
    )
    with tarfile.open(made.path) as tar:
        for name in ("source.txt", "cap.txt"):
            file = tar.extractfile(f"bundle/{name}")
            assert file is not None
            assert not _has_part(file.read().decode(), form)


def _whole(text: str) -> Callable[[], Awaitable[Collected]]:
    async def collect() -> Collected:
        return Collected(text=text)

    return collect


def _has_part(left: str, form: Form) -> bool:
    """Return True if four characters of a secret, or all of a shorter one, are in a text."""
    # The kinds in their place are no part of a secret, although "aut" may be.
    left = re.sub(r"\[redacted:\w*\]?", "", left)
    parts = {secret[at : at + 4] for secret in form.secrets for at in range(max(1, len(secret) - 3))}
    return any(part in left for part in parts)


PROMPT = "my name is Jane Doe, params: none, prompt_token_ids: x"
PROMPT_LINES = (
    f"INFO 11-26 02:40:18 [logger.py:39] Received request cmpl-1: prompt: '{PROMPT}', params: SamplingParams(n=1), "
    "prompt_token_ids: [1, 2], lora_request: None.",
    f"(APIServer pid=7) DEBUG 11-26 02:40:18 [logger.py:52] Request cmpl-1 details: prompt: '{PROMPT}', "
    "prompt_token_ids: [1, 2], prompt_embeds shape: None.",
    f"(APIServer pid=7) INFO 11-26 02:40:18 [logger.py:88] Generated response cmpl-1 (streaming delta): output: '{PROMPT}', "
    "output_token_ids: [1, 2], finish_reason: stop",
    f'Nov 26 02:40:18 h vllm[7]: INFO 11-26 02:40:18 [logger.py:88] Generated response cmpl-1: output: "{PROMPT}", '
    "finish_reason: stop",
    f"[2026-11-26 02:40:18] Receive: obj=GenerateReqInput(rid='abc', text='{PROMPT}', input_ids=[1, 2])",
    f"[2026-11-26 02:40:18] Receive OpenAI: obj=ChatCompletionRequest(messages=[{{'content': '{PROMPT}'}}], ids=[1, 2])",
    f"[2026-11-26 02:40:18 TP0] Finish: obj=GenerateReqInput(rid='abc'), out={{'text': '{PROMPT}', 'ids': [1, 2]}}",
    f'{{"timestamp": "x", "event": "request.received", "rid": "abc", "obj": {{"text": "{PROMPT}", "ids": [1, 2]}}}}',
)


@pytest.mark.parametrize("line", PROMPT_LINES)
def test_a_prompt_in_an_engines_log_is_removed_and_its_line_stays(line: str) -> None:
    before, after = (
        "INFO 11-26 02:40:17 before",
        "Traceback (most recent call last):\n  File x\nRuntimeError: y",
    )
    shown = without_prompts(f"{before}\n{line}\n{after}\n")
    assert "Jane" not in shown
    assert "[1, 2]" not in shown
    assert shown.startswith(before)
    assert shown.endswith(f"[prompt removed]\n{after}\n")


def test_the_pieces_of_a_split_prompt_are_removed_up_to_the_next_line_of_the_log() -> None:
    piece = "Jane " * 4000
    first = f"h vllm[7]: INFO 11-26 02:40:18 [logger.py:39] Received request cmpl-1: prompt: '{piece}"
    log = f"{first}\nh vllm[7]: {piece}\nh vllm[7]: the end of Jane', params: x\nh vllm[7]: INFO 11-26 02:40:19 well\n"
    shown = without_prompts(log)
    assert "Jane" not in shown
    assert shown.endswith("INFO 11-26 02:40:19 well\n")
    # a tail that begins in the middle of a prompt
    assert "Jane" not in without_prompts(log.partition("\n")[2])


@pytest.mark.parametrize(
    "line",
    [
        "INFO 11-26 02:40:18 [logger.py:39] Received request cmpl-1: params: SamplingParams(n=1), lora_request: None.",
        "INFO 11-26 02:40:18 [loggers.py:127] Engine 000: Avg prompt throughput: 103.5 tokens/s, Running: 12 reqs",
        'INFO:     10.0.0.1:5544 - "POST /v1/chat/completions HTTP/1.1" 200 OK',
        "[2026-11-26 02:40:18 TP0] Prefill batch. #new-seq: 1, #new-token: 7, #cached-token: 0",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_other_lines_of_an_engines_log_stay(line: str) -> None:
    assert without_prompts(f"{line}\n") == f"{line}\n"


class ALog:
    """A unit that has only a log."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def log_tail(self, max_bytes: int = 65536) -> str:
        return self.text.encode()[-max_bytes:].decode(errors="replace")


@settings(deadline=None)
@given(limit=st.integers(min_value=1, max_value=400), form=st.sampled_from(SPLIT))
async def test_the_end_of_an_engines_log_never_begins_with_half_a_secret(limit: int, form: Form) -> None:
    text = f"{PROMPT_LINES[0]}\nfirst {form.text}\nsecond {form.text}\nINFO: well\n"
    left, _ = await read_engine_log(cast(Unit, ALog(text)), limit)
    assert not _has_part(redact(left).text, form)
    assert "Jane" not in left
