"""Alerts of a host's monitors on their way to the bot: durable on the host, reported once, kept before they are read."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from aiohttp import web

import bot.watch.host_alerts
from bot.fleet.postbox import HostEnd
from bot.settings.model import Settings
from bot.settings.watch import PagingSettings
from bot.store.records import Alert, MonitorNotice
from bot.store.store import Store
from bot.watch.host_watch import HostWatch
from bot.watch.undelivered_alerts import UndeliveredAlerts
from gpu_actions.models import VerdictKind
from tests.bot.fleet.conftest import Bot, Site, bot_of, link_of, until
from tests.bot.toys import ONCALL
from tests.ports import free_port

NOW_S = time.time()


def alert(host: str = "toy", at_s: float = NOW_S, **values: object) -> Alert:
    return Alert.model_validate(
        {
            "host": host,
            "cause": "nvlink_loss",
            "title": f"nvlink_loss on {host}",
            "source": "the link monitor",
            "reason": "2 of 2 readings",
            "verdict": VerdictKind.FALL_BACK,
            "key": f"{host}:nvlink_loss",
            "at_s": at_s,
            **values,
        }
    )


class Heard:
    """What reached the bot."""

    def __init__(self, face: Bot) -> None:
        self.alerts: list[Alert] = []
        self.notices: list[MonitorNotice] = []
        self.kept = UndeliveredAlerts(face.store)

        async def keep(key: str, one: Alert) -> bool:
            return bool(await asyncio.to_thread(self.kept.keep_new, [(key, one)]))

        face.runs.keep_alert = keep
        face.runs.on_alert = self.alerts.append
        face.runs.on_notice = self.notices.append


@asynccontextmanager
async def watch_of(site: Site, **settings: object) -> AsyncIterator[HostWatch]:
    """Run the host `toy` with its watch and link; its monitors' own readings are off."""
    async with link_of(site) as (runs, link):
        own: Settings = runs.engine._settings
        own = own.model_copy(
            update={"monitors": own.monitors.model_copy(update={"enabled": False}), **settings}
        )
        watch = HostWatch(own, runs=runs, store=runs._store)
        link._send_alerts, link._acknowledge = watch.alerts.send, watch.acknowledge
        await link.start()
        watch.start()
        try:
            yield watch
        finally:
            await watch.close()


def raised(watch: HostWatch, store: Store, one: Alert) -> None:
    """Report an alert as a monitor does: it is kept first."""
    UndeliveredAlerts(store).keep([one])
    watch.alerts.report(one)


async def test_an_alert_reaches_the_bot_once_however_often_it_is_sent_and_a_notice_follows_it(
    site: Site,
) -> None:
    async with bot_of(site) as face, watch_of(site) as watch:
        heard = Heard(face)
        store = watch.monitors.store
        raised(watch, store, alert())
        await until(lambda: heard.alerts)
        assert [one.id for one in heard.kept.all()] == [alert().id]  # a bot killed now delivers it later
        assert UndeliveredAlerts(store).all() == []

        # the worker was killed before it noted that it had sent the alert
        raised(watch, store, alert())
        watch.alerts.notice(
            MonitorNotice(notice="clear", host="toy", source="the link monitor", reason="r", at_s=2)
        )
        await until(lambda: heard.notices)
        assert heard.alerts == [alert()]

        # a person acknowledges it: the host's own monitors keep quiet
        await face.runs.acknowledge("toy", "nvlink_loss", by=ONCALL)
        await until(lambda: watch.monitors.memory.acknowledged("toy", "nvlink_loss"))
        assert not watch.monitors.memory.acknowledged("toy", "ecc")


async def test_an_alert_waits_while_the_bot_or_the_database_is_away(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.fleet.postbox.RETRY_S", 0.2)
    async with watch_of(site) as watch:
        store = watch.monitors.store
        with psycopg.connect(site.admin, autocommit=True) as connection:
            connection.execute("ALTER ROLE oncall_host_toy NOLOGIN")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'oncall_host_toy'"
            )
            raised(watch, store, alert())
            await asyncio.sleep(0.5)
            assert UndeliveredAlerts(store).all() == [alert()]
            connection.execute("ALTER ROLE oncall_host_toy LOGIN")
            await until(lambda: UndeliveredAlerts(store).all() == [])
            waiting = connection.execute("SELECT host, kind, key FROM fleet.reports").fetchall()
            assert waiting == [("toy", "alert", alert().id)]
        async with bot_of(site) as face:
            heard = Heard(face)
            await until(lambda: heard.alerts)
            assert heard.alerts == [alert()]


async def test_the_host_pages_the_on_call_if_the_bot_does_not_read_its_alert(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot.watch.host_alerts, "LOOK_S", 0.1)
    taken: list[dict[str, object]] = []

    async def take(request: web.Request) -> web.Response:
        taken.append(await request.json())
        return web.json_response({}, status=202)

    application, port = web.Application(), free_port()
    application.router.add_post("/{tail:.*}", take)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        paging = PagingSettings(url=f"http://127.0.0.1:{port}/page", after_s=1.0)
        async with watch_of(site, paging=paging) as watch:
            raised(watch, watch.monitors.store, alert())
            await until(lambda: taken)
            assert "nvlink_loss" in str(taken[0])
            taken.clear()
            async with bot_of(site) as face:
                heard = Heard(face)
                await until(lambda: heard.alerts)
                slow = paging.model_copy(update={"after_s": 30.0})
                watch.alerts._pages.settings = slow
                later = alert(at_s=NOW_S + 1, cause="ecc")
                raised(watch, watch.monitors.store, later)
                # it was read, so its page is dropped instead of sent
                await until(lambda: later in heard.alerts and not watch.alerts._unread)
                await until(lambda: not watch.alerts._tasks)
                assert taken == []
    finally:
        await runner.cleanup()


async def test_an_alert_about_another_host_is_dropped(site: Site) -> None:
    async with bot_of(site) as face:
        heard = Heard(face)
        end = HostEnd(site.host_url("toy"), host="toy")
        await end.report("alert", "x", alert("other").model_dump(mode="json"))
        lie = MonitorNotice(notice="clear", host="other", source="s", at_s=1)
        await end.report("alert", "y", lie.model_dump(mode="json"))
        await end.report("alert", "z", alert().model_dump(mode="json"))
        await until(lambda: heard.alerts)
        await end.close()
        assert (heard.alerts, heard.notices) == ([alert()], [])
