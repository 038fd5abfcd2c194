"""The bot's web server over real HTTP: health, metrics, and links to files that nobody can guess."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from bot.store.records import RunStatus
from tests.bot.desk import Desk, desk


@pytest.fixture
async def at_desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path, scripts={"forensics": "file:f", "fallback": "hold:h"}) as it:
        yield it
        it.release()


async def get(it: Desk, path: str) -> tuple[int, str, "dict[str, str]"]:
    url = path if path.startswith("http") else f"http://127.0.0.1:{it.bot.settings.web.port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text(), dict(answer.headers)


async def test_health_is_good_while_slack_pings(at_desk: Desk) -> None:
    while (answer := await get(at_desk, "/health"))[0] != 200:
        assert answer[0] == 503
    assert '"status": "ok"' in answer[1]


async def test_metrics_count_the_active_runs(at_desk: Desk) -> None:
    assert 'gpu_oncall_runs_active{status="running"} 0.0' in (await get(at_desk, "/metrics"))[1]
    await at_desk.say("/fallback start")
    await at_desk.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
    assert 'gpu_oncall_runs_active{status="running"} 1.0' in (await get(at_desk, "/metrics"))[1]


async def test_a_link_from_a_message_opens_the_file_and_an_altered_one_does_not(at_desk: Desk) -> None:
    await at_desk.say("/forensics")
    run = await at_desk.run("forensics")
    link = run.artifacts[0].url
    status, text, headers = await get(at_desk, link)
    assert (status, text) == (200, "evidence\n")
    assert "sandbox" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    address, _, query = link.partition("?")
    signed, _, signature = link.partition("&sig=")
    for changed in (
        address,
        signed,
        f"{signed}&sig=",
        f"{signed}&sig={signature[:-1]}x",
        f"{signed}0&sig={signature}",
        f"{address}?sig={signature}",
        link.replace("report.txt", "other.txt"),
        address.replace("/report.txt", "/..%2f..%2f..%2fbot.lock") + f"?{query}",
        f"http://127.0.0.1:{at_desk.bot.settings.web.port}/artifacts/../link-secret?{query}",
    ):
        assert (await get(at_desk, changed))[0] == 404, changed


async def test_a_link_to_a_removed_file_says_so(at_desk: Desk) -> None:
    await at_desk.say("/forensics")
    run = await at_desk.run("forensics")
    now = at_desk.bot.store.clock()
    at_desk.bot.store.clock = lambda: now + 31 * 86_400
    assert at_desk.bot.artifacts.sweep() == 1
    status, text, _ = await get(at_desk, run.artifacts[0].url)
    assert status == 404
    assert "artifacts.retention_days" in text
