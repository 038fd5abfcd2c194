"""What a whole fallback says its clients saw, against what they counted: 60 streams, tp hung, the fallback saturated."""

import asyncio
import time
from collections import Counter

import aiohttp
import pytest

from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.site import data_of, summary_of

STREAMS = 60
NAMES = ("finished", "refused", "aborted", "failed", "client_left")


@pytest.mark.heavy
@pytest.mark.timeout(180)
async def test_a_fallback_says_exactly_what_sixty_clients_saw(site_with: MakeSite) -> None:
    site = await site_with(
        router={
            "back_pressure": {"max_concurrent": 9, "long_share": 1, "max_queue": 6, "queue_timeout_s": 2}
        },
        fallback={"capture_budget_s": 2},
    )
    url = f"{site.host.router.url}/v1/completions"
    ends: list[tuple[float, str]] = []
    stop = asyncio.Event()
    begun_s = time.time()

    async def stream(session: aiohttp.ClientSession, number: int) -> str:
        body = {"model": "m", "prompt": f"client {number}", "max_tokens": 20 + number % 60, "stream": True}
        try:
            async with (
                asyncio.timeout(2.5 if number % 10 == 0 else 60),
                session.post(url, json=body) as response,
            ):
                text = await response.text()
        except TimeoutError:
            return "client_left"
        except aiohttp.ClientError:
            return "aborted"
        if response.status in (429, 503):
            assert "Retry-After" in response.headers
            return "refused"
        return "finished" if response.status == 200 and "[DONE]" in text else "failed"

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        while not stop.is_set():
            ending = await stream(session, number)
            ends.append((time.time(), ending))
            await asyncio.sleep(0.2 if ending == "refused" else 0)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        tasks = [asyncio.create_task(client(session, number)) for number in range(STREAMS)]
        await asyncio.sleep(2)
        await site.freeze_rank()
        end = await site.run(await site.plan())
        stop.set()
        await asyncio.gather(*tasks)
    assert end.ended.status == "succeeded", end.ended
    last = data_of(end, "validate")["clients"]["account"]
    # Ends within 50 ms of the account's edges may be on either side: the client sees them a moment later.
    sure = Counter(name for at, name in ends if last["since_s"] + 0.05 <= at <= last["until_s"] - 0.05)
    near = Counter(name for at, name in ends if last["since_s"] - 0.05 <= at <= last["until_s"] + 0.05)
    for name in NAMES:
        assert sure[name] <= last[name] <= near[name], (name, last, sure, near)
    whole = await site.host.router.requests(begun_s, time.time())
    seen = Counter(name for _, name in ends)
    assert whole.incomplete == ""
    assert {name: getattr(whole, name) for name in NAMES} == {name: seen[name] for name in NAMES}
    assert whole.aborted == data_of(end, "drain")["cut"] > 0
    assert whole.refused > 0
    assert whole.without_answer is not None
    assert whole.without_answer.seconds > 1
    text = summary_of(end, "validate")
    assert "no request was lost" not in text
    assert f"{last['aborted']} answer" in text
    assert f"{last['refused']} requests were refused with Retry-After" in text
    assert "s without an answer" in text
    assert "refused at peak" in text


async def test_a_fallback_without_a_loss_says_that_no_request_was_lost(site_with: MakeSite) -> None:
    site = await site_with()
    end = await site.run(await site.plan())
    assert "no request was lost" in summary_of(end, "validate")


async def test_a_record_that_is_not_written_leaves_the_losses_unknown(site_with: MakeSite) -> None:
    site = await site_with()
    record = site.host.router.record.path  # type: ignore[attr-defined]
    record.unlink()
    record.mkdir()
    end = await site.run(await site.plan(skip_validation=True))
    assert end.ended.status == "succeeded"
    assert "what clients saw is not known" in summary_of(end, "drain")
    assert "no request was lost" not in summary_of(end, "drain")
