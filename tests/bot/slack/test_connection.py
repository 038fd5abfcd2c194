"""The connection on Slack's bad days: each fault is real, over real sockets, and the bot answers again when it is over."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bot.app import running
from bot.cli.doctor.slack import check_slack
from bot.slack import connection, identity, socket
from bot.store.records import RunStatus
from demo.workspace import Workspace, WorkspaceClient
from demo.workspace.webapi import ApiError
from tests.bot.desk import Desk, desk_settings, sitting_down, toy_product
from tests.bot.toys import effects, hurry


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RED_S", 1.0)
    monkeypatch.setattr(connection, "RETRY_S", 0.05)
    monkeypatch.setattr(connection, "RETRY_MAX_S", 0.2)
    monkeypatch.setattr(connection, "FIRST_S", 1.0)
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


async def test_a_deaf_socket_is_replaced_although_it_answers_pings(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sitting_down(tmp_path, workspace) as it:
        (deaf,) = workspace.socket_mode._connections
        monkeypatch.setattr(connection, "RENEW_S", 0.5)
        deadline = time.monotonic() + 30
        while deaf in workspace.socket_mode._connections or not workspace.socket_mode._connections:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
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


async def test_a_second_bot_on_the_app_token_is_noticed(tmp_path: Path, workspace: Workspace) -> None:
    async with (
        sitting_down(tmp_path / "one", workspace),
        sitting_down(tmp_path / "two", workspace) as second,
    ):
        _, body = await health(second)
        assert "another bot uses this app token" in str(body["warnings"])
