"""A workspace on a free port, and a real Bolt app connected to it over Socket Mode."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from slack_bolt.adapter.socket_mode.aiohttp import AsyncSocketModeHandler
from slack_bolt.app.async_app import AsyncApp
from slack_sdk.web.async_client import AsyncWebClient

from demo.workspace import Workspace, WorkspaceClient

BoltStarter = Callable[[AsyncApp], Awaitable[AsyncSocketModeHandler]]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the proxy variables: slack_sdk would send even loopback requests through a proxy."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def workspace() -> AsyncIterator[Workspace]:
    async with Workspace(port=0, ack_timeout_s=1.0, redeliver_after_s=1.3) as running:
        yield running


@pytest.fixture
async def api(workspace: Workspace) -> AsyncWebClient:
    return AsyncWebClient(token=workspace.bot_token, base_url=f"{workspace.url}/api/")


@pytest.fixture
async def people(workspace: Workspace) -> AsyncIterator[WorkspaceClient]:
    async with WorkspaceClient(workspace.url) as client:
        yield client


@pytest.fixture
def bolt_app(api: AsyncWebClient) -> AsyncApp:
    return AsyncApp(client=api, token=api.token, process_before_response=False)


@pytest.fixture
async def start_bolt(workspace: Workspace) -> AsyncIterator[BoltStarter]:
    """Return a function that connects an app; all apps are closed after the test."""
    handlers: list[AsyncSocketModeHandler] = []

    async def start(app: AsyncApp) -> AsyncSocketModeHandler:
        wanted = workspace.socket_mode.connection_count + 1
        handler = AsyncSocketModeHandler(app, workspace.app_token, ping_interval=0.5)
        handlers.append(handler)
        await handler.connect_async()
        await until(lambda: workspace.socket_mode.connection_count >= wanted)
        return handler

    yield start
    for handler in handlers:
        await handler.close_async()
        handler.client.message_processor.cancel()
        await handler.client.aiohttp_client_session.close()


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until the condition (a function, plain or async) is true. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while True:
            held = condition()
            if await held if inspect.isawaitable(held) else held:
                return
            await asyncio.sleep(0.01)
