"""The doctor in a workspace: scopes, the incident channel, and what systemd says of a unit."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.cli.doctor import examine
from bot.cli.doctor.links import judge_address
from demo.workspace import Workspace
from demo.workspace.webapi import ApiCall, Handler
from gpu_actions.models import JsonObject
from gpu_actions.serving.registry import ENGINES
from gpu_actions.serving.setup_checks import SetupCheck
from gpu_actions.serving.units.systemd import SystemdUnit
from tests.bot.desk import desk_settings


async def no_member(call: ApiCall, handler: Handler) -> JsonObject:
    answer = await handler(call)
    if call.method == "conversations.info":
        answer["channel"] = {**answer["channel"], "is_member": False}
    return answer


@pytest.fixture
async def workspace(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Workspace]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with Workspace(port=0) as running:
        yield running


async def checks_of(workspace: Workspace, folder: Path, **slack: object) -> dict[str, SetupCheck]:
    report = await examine(desk_settings(folder, workspace, slack_changes=slack))
    return {check.name: check for check in report.checks}


async def test_granted_scopes_and_the_incident_channel_pass(workspace: Workspace, tmp_path: Path) -> None:
    checks = await checks_of(workspace, tmp_path)
    assert checks["slack"].status == "ok"
    assert checks["slack.scopes"].status == "ok", checks["slack.scopes"]
    assert checks["slack.incident_channel"].status == "ok"


async def test_a_missing_channel_and_a_channel_without_the_bot_fail_by_name(
    workspace: Workspace, tmp_path: Path
) -> None:
    checks = await checks_of(workspace, tmp_path, incident_channel="fires")
    assert checks["slack.incident_channel"].status == "failed"
    assert "#fires" in checks["slack.incident_channel"].detail
    workspace.web_api.middlewares.append(no_member)
    checks = await checks_of(workspace, tmp_path)
    assert "/invite" in checks["slack.incident_channel"].fix


async def test_a_wrong_token_fails_by_name(workspace: Workspace, tmp_path: Path) -> None:
    checks = await checks_of(workspace, tmp_path, bot_token="xoxb-wrong")
    assert (checks["slack"].status, "invalid_auth" in checks["slack"].detail) == ("failed", True)


@pytest.mark.parametrize(
    ("kind", "shown", "statuses"),
    [
        ("vllm", "LoadState=loaded\nKillMode=control-group\n", ["ok", "warning"]),
        ("vllm", "LoadState=loaded\nKillMode=mixed\n", ["ok"]),
        ("reference", "LoadState=loaded\nKillMode=control-group\n", ["ok"]),
        ("vllm", "LoadState=not-found\nKillMode=control-group\n", ["failed"]),
        ("vllm", "", ["failed"]),
    ],
)
def test_a_systemd_unit_must_be_there_and_let_vllm_finish_its_streams(
    kind: str, shown: str, statuses: list[str]
) -> None:
    hazard = ENGINES[kind].group_stop_hazard
    checks = SystemdUnit(name="vllm.service").judge("h.tp", shown, "no such unit", group_stop_hazard=hazard)
    assert [check.status for check in checks] == statuses


@pytest.mark.parametrize(
    ("address", "api", "status"),
    [
        ("http://127.0.0.1:8801", "https://slack.com/api/", "failed"),
        ("http://localhost:8801", "https://slack.com/api/", "failed"),
        ("http://[::1]:8801", "https://slack.com/api/", "failed"),
        ("http://0.0.0.0:8801", "https://slack.com/api/", "failed"),
        ("https://oncall.example.com", "https://slack.com/api/", "ok"),
        ("http://10.0.0.7:8801", "https://slack.com/api/", "ok"),
        ("http://127.0.0.1:8801", "http://127.0.0.1:8800/api/", "ok"),
    ],
)
def test_links_to_this_machine_itself_fail_when_slack_is_real(address: str, api: str, status: str) -> None:
    assert judge_address(address, api).status == status
