"""The connection on Slack's bad days: each fault is real, over real sockets, and the bot answers again when it is over."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bot.app import running
from bot.cli.doctor.slack import check_slack
from bot.slack import connection, identity, self_event, socket
from bot.slack.self_event import CAME_BACK
from bot.store.records import RunStatus
from demo.workspace import Workspace, WorkspaceClient
from demo.workspace.webapi import ApiError
from tests.bot.desk import Desk, desk_settings, sitting_down, toy_product
from tests.bot.toys import effects, hurry, store_of


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RED_S", 1.0)
    monkeypatch.setattr(connection, "RETRY_S", 0.05)
    monkeypatch.setattr(connection, "RETRY_MAX_S", 0.2)
    monkeypatch.setattr(connection, "FIRST_S", 1.0)
    monkeypatch.setattr(connection, "TICK_S", 0.1)
    monkeypatch.setattr(socket, "PING_S", 0.3)
    monkeypatch.setattr(socket, "SILENT_S", 3.0)
    monkeypatch.setattr(socket, "HELLO_S", 3.0)
    monkeypatch.setattr(identity, "CHECK_S", 0.2)
    monkeypatch.setattr(identity, "RETRY_S", 0.2)
    monkeypatch.setattr(identity, "RETRY_MAX_S", 0.2)
    hurry()


@pytest.fixture
async def workspace() -> AsyncIterator[Workspace]:
    async with Workspace(port=0) as made:
        yield made


async def health(it: Desk) -> tuple[int, dict[str, Any]]:
    web = it.bot.settings.web
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{web.host}:{web.port}/health") as answer,
    ):
        return answer.status, await answer.json()


async def turns(it: Desk, status: int, reason: str = "") -> dict[str, Any]:
    """Wait until the health answers with a status and a reason."""
    deadline = time.monotonic() + 30
    while True:
        found, body = await health(it)
        if found == status and reason in str(body["reason"]):
            return body
        assert time.monotonic() < deadline, (found, body)
        await asyncio.sleep(0.05)


async def answers_again(it: Desk) -> None:
    """Wait until the bot is connected, then run a command to its end; its message comes once."""
    await turns(it, 200)
    await it.workspace.socket_mode.wait_connected(30)
    await it.say("/fallback start")
    run = await it.run("fallback")
    assert run.status is RunStatus.SUCCEEDED
    await it.hears("Fallback on toy: done")
    assert len(await it.message_of(run.id)) == 1
    assert effects(it.state_dir, "a") == [""]


async def cut(workspace: Workspace) -> None:
    """Break the app's sockets without a word."""
    for ws in list(workspace.socket_mode._connections):
        with contextlib.suppress(ConnectionError):
            await ws.close()


async def test_a_refused_handshake_is_tried_again_at_a_new_address(
    tmp_path: Path, workspace: Workspace
) -> None:
    async with sitting_down(tmp_path, workspace) as it:
        workspace.faults.refuse_socket = 409
        await cut(workspace)
        await turns(it, 503, "refused the socket with status 409")
        workspace.faults.refuse_socket = 0
        await answers_again(it)


async def test_a_socket_that_is_accepted_and_stays_silent_turns_the_health_red_and_is_replaced(
    tmp_path: Path, workspace: Workspace
) -> None:
    async with sitting_down(tmp_path, workspace) as it:
        workspace.faults.silent_socket = True
        await cut(workspace)
        await turns(it, 503, "never greeted")
        workspace.faults.silent_socket = False
        await answers_again(it)


async def test_a_socket_that_flaps_is_counted_and_said_on_health(
    tmp_path: Path, workspace: Workspace
) -> None:
    async with sitting_down(tmp_path, workspace) as it:
        for _ in range(connection.FLAPS):
            assert (await health(it))[1]["warnings"] == []
            await cut(workspace)
            deadline = time.monotonic() + 30
            while workspace.socket_mode._connections:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            await workspace.socket_mode.wait_connected(30)
            await turns(it, 200)
        _, body = await health(it)
        assert f"was lost {connection.FLAPS} times in 10 minutes" in str(body["warnings"])


async def until_replaced(workspace: Workspace, old: object) -> None:
    deadline = time.monotonic() + 30
    while old in workspace.socket_mode._connections or not workspace.socket_mode._connections:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_event, "ARRIVES_S", 0.6)
    monkeypatch.setattr(connection, "PROBE_S", 0.4)
    monkeypatch.setattr(connection, "RENEW_RETRY_S", 2.0)


def test_a_deaf_socket_turns_the_health_red_within_a_minute() -> None:
    tries_s = self_event.PROBES * self_event.ARRIVES_S
    assert connection.PROBE_S + connection.TICK_S + tries_s <= 60


async def test_a_socket_that_answers_pings_and_delivers_nothing_is_noticed_by_an_event_of_our_own(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_probes(monkeypatch)
    async with sitting_down(tmp_path, workspace) as it:
        await answers_again(it)
        (message,) = await it.message_of((await it.run("fallback")).id)
        while not await asyncio.to_thread(it.bot.store.deliveries.seen, CAME_BACK):
            await asyncio.sleep(0.05)
        assert (await health(it))[0] == 200
        (deaf,) = workspace.socket_mode._connections
        workspace.faults.deaf = True
        await turns(it, 503, "deaf")
        await until_replaced(workspace, deaf)
        workspace.faults.deaf = False
        body = await turns(it, 200)
        assert body["warnings"] == [], "the second socket of a replacement is no second bot"
        # A slow start shows its progress to the person who asked.
        public = [one for one in await it.messages() if one.visible_to is None]
        assert len(public) == 1 + len(message.replies), "nobody was told anything"
        deadline = time.monotonic() + 10
        while (await it.message_of((await it.run("fallback")).id))[0].reactions:
            assert time.monotonic() < deadline, "the reaction stays"
            await asyncio.sleep(0.01)


async def test_a_bot_whose_new_sockets_are_deaf_too_ends_for_its_supervisor(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_probes(monkeypatch)
    monkeypatch.setattr(connection, "END_S", 3.0)
    async with sitting_down(tmp_path, workspace) as it:
        await answers_again(it)
    store_of(tmp_path).deliveries.first_time(CAME_BACK)
    workspace.faults.deaf = True
    stop = asyncio.Event()
    async with running(desk_settings(tmp_path, workspace), stop=stop, role="bot"):
        await asyncio.wait_for(stop.wait(), 30)


async def test_an_app_that_does_not_get_its_own_events_is_warned_and_not_called_deaf(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_probes(monkeypatch)
    team = workspace.state.team
    workspace.state.team = replace(team, app=replace(team.app, events=("app_mention",)))
    async with sitting_down(tmp_path, workspace) as it:
        await answers_again(it)
        deadline = time.monotonic() + 30
        while "and none ever did" not in str((await health(it))[1]["warnings"]):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert (await health(it))[0] == 200


async def test_a_socket_that_cannot_be_tried_is_replaced_after_a_while(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sitting_down(tmp_path, workspace) as it:
        (deaf,) = workspace.socket_mode._connections
        monkeypatch.setattr(connection, "RENEW_S", 0.5)
        await until_replaced(workspace, deaf)
        monkeypatch.setattr(connection, "RENEW_S", 900.0)
        await answers_again(it)


async def test_a_revoked_bot_token_is_said_on_health_and_a_failing_slack_is_not_called_a_revoked_token(
    tmp_path: Path, workspace: Workspace
) -> None:
    async with sitting_down(tmp_path, workspace) as it:
        workspace.faults.errors["auth.test"] = ApiError("token_revoked")
        await turns(it, 503, "refuses the bot token (token_revoked)")
        workspace.faults.errors["auth.test"] = ApiError("service_unavailable", status=503)
        body = await turns(it, 503, "service_unavailable")
        assert "refuses" not in body["reason"]
        workspace.faults.errors.clear()
        await answers_again(it)


async def test_a_refused_app_token_is_said_on_health_and_by_doctor(
    tmp_path: Path, workspace: Workspace
) -> None:
    workspace.faults.errors["apps.connections.open"] = ApiError("invalid_auth")
    async with sitting_down(tmp_path, workspace) as it:
        await turns(it, 503, "refuses the app token (invalid_auth)")
        report = {check.name: check for check in await check_slack(it.bot.settings)}
        assert "invalid_auth" in report["slack.app_token"].detail
        workspace.faults.errors.clear()
        await answers_again(it)


async def test_the_bot_starts_and_recovers_runs_while_slack_is_away(
    tmp_path: Path, workspace: Workspace
) -> None:
    scripts = {"fallback": "hold:a count:b"}
    async with sitting_down(tmp_path, workspace, scripts=scripts) as it:
        await it.say("/fallback start")
        run = await it.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
        await it.hears("hold a")
    workspace.faults.errors["*"] = ApiError("service_unavailable", status=503)
    settings = desk_settings(tmp_path, workspace)
    async with running(settings, specs=toy_product(scripts)) as bot, WorkspaceClient(workspace.url) as people:
        it = Desk(bot, workspace, people, tmp_path)
        it.release()
        done = await it.run("fallback")
        assert (done.id, done.status) == (run.id, RunStatus.SUCCEEDED)
        await turns(it, 503, "service_unavailable")
        workspace.faults.errors.clear()
        await it.hears("Fallback on toy: done", timeout_s=30)
        assert len(await it.message_of(run.id)) == 1
        await turns(it, 200)


async def test_the_first_command_waits_for_no_auth_test_of_bolt(tmp_path: Path, workspace: Workspace) -> None:
    async with sitting_down(tmp_path, workspace) as it:
        workspace.faults.slow_s["auth.test"] = 8
        result = await it.say("/fallback start")
        assert result.waited_ms < 3000
        await it.hears("Fallback on toy: done", timeout_s=7)


async def test_a_duplicate_or_late_envelope_starts_one_run(tmp_path: Path, workspace: Workspace) -> None:
    async with sitting_down(tmp_path, workspace) as it:
        workspace.faults.duplicate, workspace.faults.late_s = True, 0.5
        await answers_again(it)
        assert len(it.bot.runs.list()) == 1


async def test_a_clock_half_an_hour_off_doubles_nothing_refuses_no_mention_and_is_said_on_health(
    tmp_path: Path, workspace: Workspace
) -> None:
    workspace.faults.clock_s = -1800
    async with sitting_down(tmp_path, workspace) as it:
        workspace.faults.lost["chat.postMessage"] = 1
        await it.say("@gpu-oncall fallback start")
        run = await it.run("fallback")
        await it.hears("Fallback on toy: done", timeout_s=20)
        assert workspace.faults.lost["chat.postMessage"] == 0
        assert len(await it.message_of(run.id)) == 1
        assert "s ahead of Slack's" in str((await health(it))[1]["warnings"])


async def test_a_new_connection_that_slack_asks_for_is_no_loss(tmp_path: Path, workspace: Workspace) -> None:
    async with sitting_down(tmp_path, workspace) as it:
        for _ in range(connection.FLAPS):
            (old,) = workspace.socket_mode._connections
            await workspace.socket_mode.close()
            await until_replaced(workspace, old)
            await turns(it, 200)
        assert (await health(it))[1]["warnings"] == []
        await answers_again(it)


async def test_a_second_bot_on_the_app_token_is_noticed(tmp_path: Path, workspace: Workspace) -> None:
    async with (
        sitting_down(tmp_path / "one", workspace),
        sitting_down(tmp_path / "two", workspace) as second,
    ):
        _, body = await health(second)
        assert "another bot uses this app token" in str(body["warnings"])
