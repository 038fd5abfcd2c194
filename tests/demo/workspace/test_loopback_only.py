"""Access control: loopback only, its own host names, its own page."""

import aiohttp
import pytest
from slack_sdk.web.async_client import AsyncWebClient

from demo.workspace import Workspace
from demo.workspace.page_routes import CLIENT_HEADER

SAY = {"user": "lead", "channel": "incidents", "text": "approve everything"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_an_address_that_is_not_loopback_is_refused_with_a_way_out(host: str) -> None:
    with pytest.raises(ValueError, match=r"loopback only.*ssh -L"):
        Workspace(host=host, port=0)


async def test_it_listens_on_loopback_only(workspace: Workspace) -> None:
    assert workspace.url.startswith("http://127.0.0.1:")


async def test_a_taken_port_is_reported(workspace: Workspace) -> None:
    second = Workspace(port=int(workspace.url.rsplit(":", 1)[1]))
    with pytest.raises(OSError, match="is taken"):
        await second.start()


@pytest.mark.parametrize("path", ["/", "/client/state", "/client/messages", "/panel", "/page/main.js"])
async def test_a_request_with_another_host_name_is_refused(workspace: Workspace, path: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(workspace.url + path, headers={"Host": "attacker.example:8800"}) as answer,
    ):
        assert answer.status == 403
        assert "Host header" in await answer.text()


@pytest.mark.parametrize("origin", ["http://attacker.example", "http://127.0.0.1:1", "null"])
async def test_another_web_page_can_neither_act_nor_listen(workspace: Workspace, origin: str) -> None:
    headers = {"Origin": origin, CLIENT_HEADER: "page"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for path in ("/client/say", "/client/press", "/panel/mend", "/api/chat.postMessage", "/response/x"):
            async with session.post(workspace.url + path, json=SAY) as answer:
                assert answer.status == 403, path
        for path in ("/client/live?user=oncall", "/link/"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(workspace.url + path)
            assert refused.value.status == 403
    assert workspace.state.messages["C0INCIDENTS"] == {}


async def test_an_act_without_the_clients_header_is_refused(workspace: Workspace) -> None:
    # A form on another page, in a browser that sends no Origin, cannot set the header.
    async with aiohttp.ClientSession() as session:
        for path in ("/client/say", "/client/press", "/client/view", "/panel/mend"):
            async with session.post(workspace.url + path, json=SAY) as answer:
                assert answer.status == 403, path


async def test_a_tunnelled_page_on_another_port_can_act(workspace: Workspace) -> None:
    headers = {"Host": "localhost:9900", "Origin": "http://localhost:9900", CLIENT_HEADER: "page"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{workspace.url}/client/say", json=SAY, headers=headers) as answer,
    ):
        assert answer.status == 200


async def test_every_response_forbids_content_from_elsewhere(workspace: Workspace) -> None:
    async with aiohttp.ClientSession() as session, session.get(workspace.url) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_an_uploaded_web_page_is_always_a_download(workspace: Workspace) -> None:
    api = AsyncWebClient(token=workspace.bot_token, base_url=f"{workspace.url}/api/")
    for name in ("evil.html", "evil.svg"):
        done = await api.files_upload_v2(
            channel="C0INCIDENTS", content="<svg onload=alert(1)>", filename=name
        )
        async with aiohttp.ClientSession() as session, session.get(done["file"]["url_private"]) as answer:
            assert answer.content_type == "application/octet-stream"
            assert answer.headers["Content-Disposition"].startswith("attachment")
            assert "sandbox" in answer.headers["Content-Security-Policy"]
