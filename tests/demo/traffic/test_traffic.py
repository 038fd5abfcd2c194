"""The traffic's account against a server that does known things to its clients."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from demo.traffic.account import Account, Ending
from demo.traffic.clients import Clients
from demo.traffic.schedule import Profile, schedule

FULL = Profile(requests_per_s=60, answer_tokens=(4, 8), slow_readers=0, hang_ups=0, patience_s=20)


def chunk(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"text": text, "finish_reason": finish_reason}
    return f"data: {json.dumps({'choices': [choice], 'system_fingerprint': 'truth'})}\n\n".encode()


class Truth:
    """A server whose `behaviour` is chosen by the test; it counts what it did."""

    def __init__(self) -> None:
        self.behaviour = "good"
        self.seen = self.open = self.peak = self.finished = 0
        self.peers: set[object] = set()
        self.url = ""

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen += 1
        self.peers.add(request.transport.get_extra_info("peername") if request.transport else None)
        self.open += 1
        self.peak = max(self.peak, self.open)
        try:
            return await self._answer(request, body["max_tokens"], is_streamed=body["stream"])
        finally:
            self.open -= 1

    async def _answer(self, request: web.Request, tokens: int, *, is_streamed: bool) -> web.StreamResponse:
        if self.behaviour == "refuse" or (self.behaviour == "refuse once" and self.seen == 1):
            return web.Response(status=429, headers={"Retry-After": "0.2"})
        if self.behaviour == "fail":
            return web.Response(status=500)
        if self.behaviour == "silent":
            await asyncio.sleep(30)
        if self.behaviour == "drop":
            assert request.transport is not None
            request.transport.close()
        if not is_streamed:
            choice = {"text": "a" * tokens, "finish_reason": "length"}
            return web.json_response({"choices": [choice], "usage": {"completion_tokens": tokens}})
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(tokens):
            if number == 2 and self.behaviour in ("abort", "stall", "error", "short"):
                if self.behaviour == "stall":
                    await asyncio.sleep(30)
                if self.behaviour == "error":
                    await response.write(b'data: {"error": {"message": "boom"}}\n\n')
                if self.behaviour == "abort":
                    assert request.transport is not None
                    request.transport.close()
                return response
            await asyncio.sleep(0.02)
            await response.write(chunk("a", "length" if number == tokens - 1 else None))
        await response.write(b"data: [DONE]\n\n")
        self.finished += 1
        return response


@pytest.fixture
async def truth() -> AsyncIterator[Truth]:
    server = Truth()
    app = web.Application()
    app.router.add_post("/v1/completions", server.completions)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = site.name
    yield server
    await runner.cleanup()


async def played(truth: Truth, profile: Profile, *, seconds: float = 0.5) -> Account:
    async with Clients(truth.url, profile, model="m").running() as account:
        await asyncio.sleep(seconds)
    return account


@pytest.mark.parametrize(
    ("behaviour", "streamed", "ending"),
    [
        ("good", 0.5, Ending.FINISHED),
        ("refuse", 0.5, Ending.REFUSED),
        ("fail", 0.5, Ending.FAILED),
        ("silent", 0.5, Ending.NEVER_ANSWERED),
        ("drop", 0.5, Ending.NEVER_ANSWERED),
        ("abort", 1, Ending.ABORTED),
        ("short", 1, Ending.ABORTED),
        ("stall", 1, Ending.STALLED),
        ("error", 1, Ending.ERROR_EVENT),
    ],
)
async def test_each_request_is_counted_once_by_how_it_ended(
    truth: Truth, behaviour: str, streamed: float, ending: Ending
) -> None:
    truth.behaviour = behaviour
    patience_s = 1 if ending in {Ending.NEVER_ANSWERED, Ending.STALLED} else 20
    account = await played(truth, FULL.model_copy(update={"streamed": streamed, "patience_s": patience_s}))
    assert account.totals == {ending: truth.seen}, account.describe()
    assert account.sent == truth.seen > 10
    assert account.open == 0
    counted = {"good": 0, "refuse": 0}.get(behaviour, truth.seen)
    assert len(account.lost) == counted
    wanted = {"good": (4, 8), "abort": (2, 2), "short": (2, 2), "stall": (2, 2), "error": (2, 2)}
    low, high = wanted.get(behaviour, (0, 0))
    assert all(low <= answer.tokens <= high for answer in account.answers)


async def test_arrivals_do_not_wait_for_answers(truth: Truth) -> None:
    truth.behaviour = "silent"
    account = await played(
        truth, FULL.model_copy(update={"requests_per_s": 120, "patience_s": 1}), seconds=0.7
    )
    assert truth.peak >= 60, "none was answered, and the next ones came all the same"
    assert account.sent >= truth.peak


async def test_a_client_that_hangs_up_and_a_slow_reader_do_what_they_say(truth: Truth) -> None:
    leaving = await played(truth, FULL.model_copy(update={"hang_ups": 1, "streamed": 1}))
    assert leaving.totals == {Ending.HUNG_UP: leaving.sent}
    assert truth.finished == 0
    assert all(answer.tokens == answer.request.tokens // 2 for answer in leaving.answers)
    slow = await played(truth, FULL.model_copy(update={"slow_readers": 1, "slow_read_s": 0.1, "streamed": 1}))
    assert slow.totals == {Ending.FINISHED: slow.sent}
    assert all((answer.ended_at or 0) - answer.sent_at > 0.1 * answer.tokens for answer in slow.answers)


async def test_kept_connections_are_used_again_and_others_are_new(truth: Truth) -> None:
    await played(truth, FULL.model_copy(update={"kept": 0}))
    assert len(truth.peers) == truth.seen
    truth.peers, truth.seen = set(), 0
    await played(truth, FULL.model_copy(update={"kept": 1}))
    assert len(truth.peers) < truth.seen


async def test_retry_after_is_honoured_where_the_profile_says_so(truth: Truth) -> None:
    truth.behaviour = "refuse once"
    account = await played(truth, FULL.model_copy(update={"honours_retry_after": True}))
    first = account.answers[0]
    assert (first.ending, first.refusals) == (Ending.FINISHED, 1)
    assert first.sent_at - first.due_at >= 0.2
    assert truth.seen == account.sent + 1


async def test_the_time_without_a_token_is_that_of_all_clients_together(truth: Truth) -> None:
    loop = asyncio.get_running_loop()
    async with Clients(truth.url, FULL, model="m").running() as account:
        await asyncio.sleep(0.5)
        truth.behaviour, began = "silent", loop.time()
        await asyncio.sleep(0.8)
        truth.behaviour, ended = "good", loop.time()
        await asyncio.sleep(0.5)
    silence = ended - began
    assert silence - 0.3 <= account.longest_silence_s(end=account.last_token_at) <= silence + 0.3
    assert account.longest_silence_s(0, began) < 0.4


def test_equal_seeds_draw_equal_requests_and_the_rate_and_shares_are_those_asked_for() -> None:
    profile = Profile(requests_per_s=10, long_prompts=0.1)
    first, again = (list(itertools.islice(schedule(profile), 4000)) for _ in range(2))
    assert first == again
    other = list(itertools.islice(schedule(profile.model_copy(update={"seed": 2})), 4000))
    assert other != first
    assert 380 < first[-1].due_s < 420
    count = Counter((request.streamed, request.kept) for request in first)
    assert abs(count[True, True] / 4000 - 0.42) < 0.04
    assert {request.tokens for request in first} == set(range(10, 41))
    assert abs(sum(len(request.prompt) == profile.long_prompt_bytes for request in first) / 4000 - 0.1) < 0.02
    assert all(request.streamed for request in first if request.slow or request.hangs_up_after)
