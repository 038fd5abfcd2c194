"""Roles, user groups and refusals, against a workspace that sometimes does not answer."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from slack_sdk.web.async_client import AsyncWebClient

from bot.settings.model import AccessSettings
from bot.slack.access import Access
from bot.store.records import Person, UserError
from demo.workspace import Workspace
from demo.workspace.webapi import ApiCall, ApiError, Handler
from gpu_actions.models import JsonObject

ONCALL, LEAD, VIEWER = Person(id="U0ONCALL"), Person(id="U0LEAD"), Person(id="U0VIEWER")


class Groups:
    """Counts the lookups of user groups, and refuses them if a test sets `error`."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.error: ApiError | None = None

    async def __call__(self, call: ApiCall, handler: Handler) -> JsonObject:
        self.calls[call.method] += 1
        if self.error is not None and call.method.startswith("usergroups"):
            raise self.error
        return await handler(call)


@pytest.fixture
def groups() -> Groups:
    return Groups()


@pytest.fixture
async def client(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncWebClient]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with Workspace(port=0, api_middlewares=[groups]) as workspace:
        yield AsyncWebClient(token=workspace.bot_token, base_url=f"{workspace.url}/api/")


def access(client: AsyncWebClient, *members: str, clock: list[float] | None = None) -> Access:
    now = clock or [0.0]
    return Access(AccessSettings(roles={"responder": members}), client, clock=lambda: now[0])


@pytest.mark.parametrize(
    ("members", "person", "allowed"),
    [
        (("U0ONCALL",), ONCALL, True),
        (("U0ONCALL",), LEAD, False),
        (("@incident-leads",), LEAD, True),
        (("@incident-leads",), ONCALL, False),
        (("@Incident-Leads",), LEAD, True),
        (("U0VIEWER", "@incident-leads"), VIEWER, True),
        (("@nobody-has-this-handle",), LEAD, False),
    ],
)
async def test_roles_are_held_by_ids_and_by_groups(
    client: AsyncWebClient, members: tuple[str, ...], person: Person, allowed: bool
) -> None:
    refusal = await access(client, *members).refusal(person, "responder", "start a fallback")
    assert (refusal is None) is allowed


async def test_a_role_without_members_lets_nobody_in_and_names_the_setting(client: AsyncWebClient) -> None:
    with pytest.raises(UserError, match=r"access\.roles\.approver"):
        await access(client, "U0ONCALL").require(ONCALL, "approver", "approve")


async def test_a_group_that_cannot_be_read_lets_nobody_in_and_the_refusal_says_so(
    client: AsyncWebClient, groups: Groups
) -> None:
    groups.error = ApiError("service_unavailable", status=503)
    refusal = await access(client, "@incident-leads").refusal(LEAD, "responder", "start a fallback")
    assert refusal is not None
    assert "I cannot tell whether you may start a fallback" in refusal
    assert "U0LEAD" in refusal


async def test_members_are_cached_for_their_time_and_then_read_again(
    client: AsyncWebClient, groups: Groups
) -> None:
    clock = [0.0]
    who = access(client, "@incident-leads", clock=clock)
    await asyncio.gather(*(who.refusal(LEAD, "responder", "x") for _ in range(20)))
    assert groups.calls["usergroups.users.list"] == 1
    clock[0] = 299
    groups.error = ApiError("service_unavailable", status=503)
    assert await who.refusal(LEAD, "responder", "x") is None
    clock[0] = 301
    assert await who.refusal(LEAD, "responder", "x") is not None


async def test_a_mention_of_a_role_notifies_its_group(client: AsyncWebClient, tmp_path: Path) -> None:
    who = access(client, "@incident-leads", "U0VIEWER")
    assert who.mention("responder") == "@incident-leads <@U0VIEWER>"
    await who.warm()
    assert who.mention("responder").startswith("<!subteam^S")
