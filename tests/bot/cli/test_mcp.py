"""The MCP server, read by a client of the official SDK: over stdio as a real process, and over HTTP with a token."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

from bot.cli.mcp_server import TOOLS, build_server, http_app
from bot.settings.model import McpSettings
from bot.store.records import RunStatus
from tests.bot.desk import Desk, desk, toy_product
from tests.ports import free_port

SCRIPTS = {"triage": "verdict:look", "forensics": "file:f", "fallback": "count:a"}


@pytest.fixture
async def at_desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk(tmp_path, scripts=SCRIPTS) as it:
        yield it


@contextlib.asynccontextmanager
async def client_of(it: Desk) -> AsyncIterator[Any]:
    """Connect a client to a server over the desk's database, in this process."""
    server, store = build_server(it.bot.settings, toy_product(SCRIPTS))
    try:
        async with Client(server) as client:
            yield client
    finally:
        store.close()


async def call(client: Any, tool: str, **arguments: object) -> Any:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    text = result.content[0].text
    return json.loads(text) if text.startswith(("[", "{")) else text


async def test_an_assistant_reads_hosts_runs_artifacts_and_the_report(at_desk: Desk) -> None:
    await at_desk.say("/incident open toy it is slow")
    await at_desk.say("/triage toy")
    triage = await at_desk.run("triage")
    await at_desk.say("/forensics toy")
    forensics = await at_desk.run("forensics")
    async with client_of(at_desk) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert names == {tool.__name__ for tool in TOOLS}
        (host,) = await call(client, "hosts")
        assert (host["host"], host["verdict"]["cause"]) == ("toy", "nccl_hang")
        assert host["open_incident"].startswith("inc-")
        assert (await call(client, "verdict", host="toy"))["summary"] == "it hangs"
        assert [run["id"] for run in await call(client, "list_runs")] == [forensics.id, triage.id]
        assert (await call(client, "run", run_id=triage.id))["status"] == "succeeded"
        (file,) = await call(client, "list_artifacts", run_id=forensics.id)
        assert file["name"] == "report.txt" and "&sig=" in file["link"]
        (incident,) = await call(client, "list_incidents")
        report = await call(client, "incident_report", incident_id=incident["id"])
        assert "it is slow" in report and "## Deviations" in report


async def test_wrong_arguments_are_errors_with_a_sentence(at_desk: Desk) -> None:
    async with client_of(at_desk) as client:
        for tool, arguments, says in (
            ("run", {"run_id": "fb-none"}, "no run"),
            ("verdict", {"host": "tyo"}, "did you mean toy"),
            ("verdict", {"host": "toy"}, "state is unknown"),
            ("propose_plan", {"action": "fallback", "host": "toy", "reason": " "}, "reason is empty"),
            ("propose_plan", {"action": "falback", "host": "toy", "reason": "x"}, "fallback"),
        ):
            result = await client.call_tool(tool, arguments)
            assert result.is_error and says in result.content[0].text, (tool, result)


async def test_a_proposed_plan_starts_nothing_until_a_person_presses(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts=SCRIPTS) as it, client_of(it) as client:
        said = await call(
            client, "propose_plan", action="fallback", host="toy", reason="it is slow and nobody knows why"
        )
        assert "nothing has started" in said
        proposed = await it.hears("PROPOSED: fallback on toy")
        assert "it is slow and nobody knows why" in proposed.text
        assert it.bot.runs.list() == []
        await it.press("Start", user="viewer")
        assert it.bot.runs.list() == [], "the rights of who presses count"
        await it.press("Start")
        run = await it.run("fallback")
        assert run.requester.id != "mcp" and run.status is RunStatus.SUCCEEDED


async def test_over_http_only_the_token_opens_the_door(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts=SCRIPTS) as it:
        settings = it.bot.settings.model_copy(
            update={"mcp": McpSettings(port=free_port(), token="a-long-token")}
        )
        server, store = build_server(settings)
        config = uvicorn.Config(
            http_app(server, settings), host="127.0.0.1", port=settings.mcp.port, log_level="error"
        )
        running = uvicorn.Server(config)
        task = asyncio.create_task(running.serve())
        url = f"http://127.0.0.1:{settings.mcp.port}/mcp"
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        accept = {"Accept": "application/json, text/event-stream"}
        allowed = create_mcp_http_client(headers={"Authorization": "Bearer a-long-token"})
        try:
            while not running.started:
                await asyncio.sleep(0.02)
            async with aiohttp.ClientSession(headers=accept) as session:
                for token in ("", "Bearer wrong", "a-long-token"):
                    async with session.post(url, json=body, headers={"Authorization": token}) as answer:
                        assert answer.status == 401
            async with allowed, Client(streamable_http_client(url, http_client=allowed)) as client:
                tools = {tool.name for tool in (await client.list_tools()).tools}
                assert {"propose_plan", "hosts"} <= tools
                assert await call(client, "list_runs") == []
        finally:
            running.should_exit = True
            await task
            store.close()


async def test_the_command_speaks_mcp_on_stdio(at_desk: Desk, tmp_path: Path) -> None:
    await at_desk.say("/triage toy")
    assert (await at_desk.run("triage")).status is RunStatus.SUCCEEDED
    script = (
        "import sys; from pathlib import Path; from tests.bot.toys import toy_settings; "
        "from bot.cli.mcp_server import serve; sys.exit(serve(toy_settings(Path(sys.argv[1])), http=False))"
    )
    server = StdioServerParameters(command=sys.executable, args=["-c", script, str(at_desk.state_dir)])
    async with Client(stdio_client(server)) as client:
        assert [run["action"] for run in await call(client, "list_runs")] == ["triage"]
