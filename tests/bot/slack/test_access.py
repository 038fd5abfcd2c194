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
    """Counts the calls, and refuses those of one family of methods if a test sets `error`."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.error: ApiError | None = None
        self.family = "usergroups"

    async def __call__(self, call: ApiCall, handler: Handler) -> JsonObject:
        self.calls[call.method] += 1
        if self.error is not None and call.method.startswith(self.family):
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


GUEST, PARTNER, FORMER = Person(id="U0GUEST"), Person(id="U0PARTNER"), Person(id="U0FORMER")
OUTSIDERS = (GUEST, PARTNER, FORMER, Person(id="U0GPUONCALL"))


async def test_a_channel_holds_a_role_for_its_full_members_only(client: AsyncWebClient) -> None:
    """The shared channel has a guest, a person of another organisation, a deactivated one and an app among its members."""
    for channel in ("C0INCIDENTS", "#incidents"):
        who = access(client, channel)
        assert await who.refusal(VIEWER, "responder", "start load") is None
        said = [await who.refusal(person, "responder", "start load") for person in OUTSIDERS]
        for text, why in zip(
            said, ("a guest", "another organisation", "deactivated", "is an app"), strict=True
        ):
            assert text is not None
            assert why in text
    assert await access(client, "#nowhere").refusal(VIEWER, "responder", "x") is not None


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, ()),
        ({"guests": ("U0GUEST",)}, (GUEST,)),
        ({"partner_teams": ("T0PARTNER",)}, (PARTNER,)),
        ({"partner_teams": ("T0OTHER",), "guests": ("U0PARTNER",)}, ()),
        ({"roles": {"responder": ("U0GUEST", "U0PARTNER", "U0FORMER", "U0GPUONCALL")}}, (GUEST, PARTNER)),
    ],
)
async def test_outsiders_hold_a_role_only_where_the_settings_name_them(
    client: AsyncWebClient, changes: dict[str, object], allowed: tuple[Person, ...]
) -> None:
    settings = AccessSettings.model_validate({"roles": {"responder": ("C0INCIDENTS",)}, **changes})
    who = Access(settings, client)
    may = [person for person in OUTSIDERS if await who.refusal(person, "responder", "start load") is None]
    assert may == list(allowed)


async def test_a_person_whose_profile_cannot_be_read_is_refused_unless_the_settings_name_them(
    client: AsyncWebClient, groups: Groups
) -> None:
    groups.error = ApiError("service_unavailable", status=503)
    groups.family = "users."
    assert await access(client, "U0LEAD").refusal(LEAD, "responder", "x") is None
    refusal = await access(client, "@incident-leads").refusal(LEAD, "responder", "start a fallback")
    assert refusal is not None
    assert "whether you are a member" in refusal
    assert await access(client, "U0LEAD").refusal(Person(id="shell"), "responder", "x") is not None
