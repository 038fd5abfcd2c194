"""Pages to the on-call over real HTTP: PagerDuty's form and the plain one, a pager on its bad day, and when nobody is paged."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import SecretStr

import bot.watch.pages
from bot.cli.doctor.paging import check_paging
from bot.settings.watch import PagingSettings
from bot.store.records import Alert
from bot.store.store import Store
from bot.watch.pages import Pages
from demo.workspace.webapi import ApiCall, ApiError, Handler
from gpu_actions.models import JsonObject
from tests.bot.desk import desk
from tests.bot.toys import store_of, toy_settings
from tests.bot.watch.test_alerts import FALLS, an_alert
from tests.ports import free_port


class Pager:
    """A pager that takes events at `url`; `bad_day` holds what it does to the next ones."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/enqueue"
        self.taken: list[JsonObject] = []
        self.headers: list[str] = []
        self.bad_day: list[int] = []
        self.asked = 0

    async def receive(self, request: web.Request) -> web.Response:
        self.asked += 1
        self.headers.append(request.headers.get("Authorization", ""))
        status = self.bad_day.pop(0) if self.bad_day else 202
        if status == 0:
            await asyncio.sleep(5)
        if status == 202:
            self.taken.append(await request.json())
        return web.json_response({"status": "success"}, status=status or 202)

    async def until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not true():
            assert time.monotonic() < deadline, (self.asked, self.taken)
            await asyncio.sleep(0.02)


@pytest.fixture
async def pager() -> AsyncIterator[Pager]:
    made = Pager()
    app = web.Application()
    app.router.add_post("/enqueue", made.receive)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", made.port).start()
    yield made
    await runner.cleanup()


@pytest.fixture
def pages(tmp_path: Path, pager: Pager, monkeypatch: pytest.MonkeyPatch) -> Pages:
    monkeypatch.setattr(bot.watch.pages, "RETRY_FIRST_S", 0.05)
    monkeypatch.setattr(bot.watch.pages, "TIMEOUT_S", 0.5)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    settings = PagingSettings(kind="pagerduty", url=pager.url, key=SecretStr("routing"), after_s=0)
    return Pages(settings, store_of(tmp_path))


async def page(pages: Pages, alert: Alert) -> None:
    if key := await pages.keep(alert, next_action="gpu-oncall triage"):
        await pages.follow(key, asyncio.Event())


async def test_pagerduty_gets_a_trigger_once_and_its_resolve(pages: Pages, pager: Pager) -> None:
    alert = an_alert()
    for _ in range(2):
        await page(pages, alert)
    (trigger,) = pager.taken
    assert trigger["routing_key"] == "routing"
    assert (trigger["event_action"], trigger["dedup_key"]) == ("trigger", "gpu-oncall/toy/nccl_hang")
    assert trigger["payload"]["summary"] == "nccl_hang on toy: 2 of the last 3 readings"
    assert (trigger["payload"]["source"], trigger["payload"]["severity"]) == ("toy", "critical")
    await pages.resolve("toy", matches=lambda source, _: source == "another watch")
    for _ in range(2):
        await pages.resolve("toy", matches=lambda source, _: source == alert.source)
    assert pager.taken[1:] == [
        {"routing_key": "routing", "event_action": "resolve", "dedup_key": "gpu-oncall/toy/nccl_hang"}
    ]


async def test_a_pager_that_refuses_fails_or_is_slow_is_asked_until_it_takes_the_page(
    pages: Pages, pager: Pager
) -> None:
    pager.bad_day = [500, 429, 400, 0]
    paging = asyncio.create_task(page(pages, an_alert()))
    await pager.until(lambda: pager.asked >= 2)
    assert "the pager answered" in pages.problem or "cannot be reached" in pages.problem
    await asyncio.wait_for(paging, 30)
    assert len(pager.taken) == 1 and pager.asked == 5 and pages.problem == ""


async def test_a_pager_that_is_not_there_is_a_warning_and_a_later_one_gets_the_page(
    pages: Pages, pager: Pager
) -> None:
    gone = pages.settings.model_copy(update={"url": f"http://127.0.0.1:{free_port()}/"})
    pages.settings = gone
    paging = asyncio.create_task(page(pages, an_alert()))
    await pager.until(lambda: "cannot be reached" in pages.problem)
    pages.settings = gone.model_copy(update={"url": pager.url})
    await asyncio.wait_for(paging, 30)
    assert len(pager.taken) == 1


async def test_a_page_that_no_pager_took_and_its_end_outlive_the_bot(pages: Pages, pager: Pager) -> None:
    """The rows are all that a `kill -9` leaves: each `Pages` below is another process on the same database."""

    def another(url: str) -> Pages:
        settings = pages.settings.model_copy(update={"url": url, "when": "always"})
        return Pages(settings, Store(str(pages.store.database.engine.url)))

    gone = f"http://127.0.0.1:{free_port()}/"
    killed = another(gone)
    following = asyncio.create_task(page(killed, an_alert()))
    await pager.until(lambda: "cannot be reached" in killed.problem)
    following.cancel()
    await another(pager.url).work()
    killed = another(gone)
    closing = asyncio.create_task(killed.resolve("toy", matches=lambda *_: True))
    await pager.until(lambda: "cannot be reached" in killed.problem)
    closing.cancel()
    for _ in range(2):
        await another(pager.url).work()
    assert [event["event_action"] for event in pager.taken] == ["trigger", "resolve"]


async def test_a_page_goes_out_although_slack_has_the_alert_and_ends_when_a_person_closes_the_incident(
    tmp_path: Path, pager: Pager
) -> None:
    paging = {"url": pager.url, "when": "always"}
    async with desk(tmp_path, scripts=FALLS, paging=paging) as it:
        it.bot.alerts.report(an_alert())
        await it.hears("ALERT: nccl_hang on toy")
        await pager.until(lambda: pager.taken)
        await it.run("triage")
        while it.bot.services.incidents.active("toy") is None:
            await asyncio.sleep(0.02)
        await it.say("<@U0GPUONCALL> incident close toy")
        await pager.until(lambda: len(pager.taken) == 2)
    assert [event["event"] for event in pager.taken] == ["trigger", "resolve"]
    assert pager.taken[1]["dedup_key"] == "gpu-oncall/toy/nccl_hang"


async def test_doctor_says_whether_the_on_call_can_be_paged(tmp_path: Path, pager: Pager) -> None:
    async def said(**paging: object) -> tuple[str, str]:
        settings = toy_settings(tmp_path).model_copy(update={"paging": PagingSettings(**paging)})  # type: ignore[arg-type]
        (check,) = await check_paging(settings)
        return check.status, check.detail

    assert await said() == ("warning", "off: while Slack is away nobody hears of an alert")
    assert (await said(kind="pagerduty"))[0] == (await said(key="k"))[0] == "failed"
    assert (await said(url=f"http://127.0.0.1:{free_port()}/secret"))[0] == "failed"
    status, detail = await said(url=pager.url)
    assert (status, "/enqueue" in detail) == ("ok", False)
    assert "routing key" in (await said(url=pager.url, kind="pagerduty", key="short"))[1]
    assert pager.taken == []


async def test_the_on_call_is_paged_while_slack_is_away_and_not_while_it_is_there(
    tmp_path: Path, pager: Pager
) -> None:
    away = {"now": False}

    async def gone(call: ApiCall, handler: Handler) -> JsonObject:
        if away["now"]:
            raise ApiError("service_unavailable", status=503)
        return await handler(call)

    paging = {"url": pager.url, "key": "secret", "after_s": 3}
    async with desk(tmp_path, scripts=FALLS, middlewares=[gone], paging=paging) as it:
        it.bot.alerts.report(an_alert(cause="nvlink_loss"))
        await it.hears("ALERT: nccl_hang on toy")
        await it.hears("FALL BACK")
        await asyncio.sleep(3.5)
        assert pager.taken == []
        away["now"] = True
        it.bot.alerts.report(an_alert(title="a second fault on toy"))
        await pager.until(lambda: pager.taken)
        (trigger,) = pager.taken
        assert (trigger["event"], trigger["dedup_key"]) == ("trigger", "gpu-oncall/toy/nccl_hang")
        assert "gpu-oncall fallback --local" in trigger["next_action"]
        assert pager.headers == ["Bearer secret"]
