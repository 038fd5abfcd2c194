"""The audit trail has every request, refusal and change of the settings, with who asked, and no secret."""

import asyncio
from pathlib import Path

from pydantic import SecretStr

from bot.incidents.settings_record import record_settings
from bot.settings.model import WebSettings
from bot.settings.watch import MonitorSettings
from bot.store.records import TimelineEntry
from bot.store.store import Store
from tests.bot.desk import Desk, desk
from tests.bot.toys import toy_settings


def entries(store: Store, kind: str) -> list[TimelineEntry]:
    import json

    rows = [json.loads(line) for line in store.audit.json_lines()]
    fields = TimelineEntry.model_fields
    return [TimelineEntry.model_validate({k: row[k] for k in fields}) for row in rows if row["kind"] == kind]


async def recorded(it: Desk, kind: str, text: str) -> TimelineEntry:
    async with asyncio.timeout(10):
        while True:
            found = [entry for entry in entries(it.bot.store, kind) if text in entry.text]
            if found:
                assert len(found) == 1, found
                return found[0]
            await asyncio.sleep(0.02)


async def test_every_request_and_refusal_is_an_entry_with_its_person(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts={"triage": "verdict:look", "fallback": "count:a"}) as it:
        await it.say("/triage toy")
        await it.run("triage")
        asked = await recorded(it, "request", "/triage toy")
        assert asked.data["name"] == "oncall"
        await it.answer("/fallback start toy", user="viewer")
        refused = await recorded(it, "request.refused", "/fallback start toy: You may not start fallback")
        assert refused.data["name"] == "viewer"
        await it.answer("/triage nohost")
        await recorded(it, "request.refused", "/triage nohost: I know no host")
        await it.press("Triage again")
        await recorded(it, "request", "the button 'Triage again'")
        await it.say("/incident note toy the key is ghp_abcdefghijklmnopqrstuvwxyz0123456789")
        noted = await recorded(it, "request", "/incident note")
        assert "ghp_" not in noted.text
        assert it.bot.store.audit.verify().problem == ""


def test_a_change_of_the_settings_is_an_entry_and_no_secret_is_in_it(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path)
    store = Store(settings.own_database_url)
    store.create()
    assert record_settings(settings, store) == ()
    assert record_settings(settings, store) == (), "an unchanged start adds nothing"
    assert len(entries(store, "settings")) == 1
    changed = settings.model_copy(
        update={
            "monitors": MonitorSettings(probe_period_s=7),
            "web": WebSettings(alert_token=SecretStr("a-secret-token-of-somebody")),
        }
    )
    assert record_settings(changed, store) == ("monitors.probe_period_s", "web.alert_token")
    last = entries(store, "settings")[-1]
    assert "monitors.probe_period_s=7" in last.text
    assert "a-secret-token" not in last.model_dump_json()
    store.close()
