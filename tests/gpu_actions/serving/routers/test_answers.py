"""What the router finds wrong with answers of status 200, with a real HAProxy."""

import asyncio
import json
import time

import pytest

from gpu_actions.serving.routers.haproxy_log import FAULTS
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from tests.gpu_actions.serving.conftest import MakeRouter

EVENTS, WHOLE = "text/event-stream; charset=utf-8", "application/json"
END = b"data: [DONE]\n\n"


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(said: str, reason: str | None = None) -> bytes:
    return event(choices=[{"text": said, "finish_reason": reason}])


def chat(**delta: object) -> bytes:
    return event(choices=[{"delta": delta, "finish_reason": None}])


def whole(said: str, reason: str = "stop", **more: object) -> bytes:
    return json.dumps({"choices": [{"text": said, "finish_reason": reason}], **more}).encode()


HOSTILE = 'she said: {"error": {"code": 500}}\nevent: error\n\ndata: [DONE]\n\n"finish_reason":"abort"'
BROKEN = event(error={"message": "EngineDeadError", "code": 500})

CASES: dict[str, tuple[str, str, tuple[bytes, ...]]] = {
    "a stream": ("ok", EVENTS, (text(" a"), text(" b", "length"), END)),
    "a chat": ("ok", EVENTS, (chat(role="assistant", content=""), chat(content="a"), END)),
    "a chat that only thinks": ("ok", EVENTS, (chat(reasoning_content="hm"), END)),
    "a chat that only calls": ("ok", EVENTS, (chat(tool_calls=[{"function": {"arguments": "{}"}}]), END)),
    "a stream in one piece": ("ok", EVENTS, (text(" a", "stop") + END,)),
    "a stream cut anywhere": ("ok", EVENTS, tuple(bytes([byte]) for byte in text(" a", "stop") + END)),
    "text that looks like errors": ("ok", EVENTS, (text(HOSTILE), text(HOSTILE, "stop"), END)),
    "an error that is none": ("ok", EVENTS, (event(choices=[{"text": "a"}], error=None), END)),
    "a token without text": ("ok", EVENTS, (text("", "length"), event(usage={"completion_tokens": 1}), END)),
    "a whole answer": ("ok", WHOLE, (whole(" a"),)),
    "an error event at once": ("error", EVENTS, (BROKEN, END)),
    "an error event in the middle": ("error", EVENTS, (text(" a"), BROKEN, END)),
    "an error event cut anywhere": ("error", EVENTS, tuple(bytes([byte]) for byte in text(" a") + BROKEN + END)),
    "an event named error": ("error", EVENTS, (text(" a"), b"event: error\ndata: out of memory\n\n", END)),
    "an answer given up": ("aborted", EVENTS, (text(" a"), text("", "abort"), END)),
    "no end": ("unended", EVENTS, (text(" a"), text(" b"))),
    "only an end": ("empty", EVENTS, (END,)),
    "an end without text": ("empty", EVENTS, (chat(role="assistant"), text("", "stop"), END)),
    "nothing": ("unended", EVENTS, ()),
    "a whole error": ("error", WHOLE, (json.dumps({"error": {"message": "no"}}).encode(),)),
    "a whole answer without text": ("empty", WHOLE, (whole("", usage={"completion_tokens": 0}),)),
    "a page": ("-", "text/html", (b"<p>hello",)),
}  # fmt: skip


def recorded(router: ManagedRouter) -> list[str]:
    lines = [json.loads(line) for line in router.record.path.read_text().splitlines()]
    return [line["answer"] for line in lines if "answer" in line]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions?x=1"])
async def test_an_answer_of_status_200_is_judged_as_its_client_would(
    make_router: MakeRouter, path: str
) -> None:
    site, router = await make_router(check_answers=True)
    found = {}
    for name, (_, content_type, pieces) in CASES.items():
        site.tp.answer = (content_type, pieces)
        async with site.session.post(site.url + path, data=b"x") as response:
            assert await response.read() == b"".join(pieces), "what the client gets is not touched"
        while len(lines := await asyncio.to_thread(recorded, router)) <= len(found):
            await asyncio.sleep(0.01)
        found[name] = lines[-1]
    assert found == {name: wanted for name, (wanted, _, _) in CASES.items()}
    wrong = sum(wanted in FAULTS for wanted, _, _ in CASES.values())
    account = await router.requests(0, time.time())
    assert (account.failed, account.finished) == (wrong, len(CASES) - wrong)
    answers = await router.answers(0, time.time())
    assert sum(bool(one.fault) for one in answers) == wrong
    assert sum(not one.judged for one in answers) == 1


@pytest.mark.parametrize(("path", "check_answers"), [("/v1/embeddings", True), ("/v1/completions", False)])
async def test_only_completions_are_looked_into_and_only_if_the_settings_say_so(
    make_router: MakeRouter, path: str, check_answers: bool
) -> None:
    site, router = await make_router(check_answers=check_answers)
    site.tp.answer = (EVENTS, (BROKEN,))
    async with site.session.post(site.url + path, data=b"x") as response:
        assert await response.read() == BROKEN
    while not (answers := await router.answers(0, time.time())):
        await asyncio.sleep(0.01)
    assert [(answer.fault, answer.judged) for answer in answers] == [("", False)]
