"""Roles, user groups and refusals, against a workspace that sometimes does not answer."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from slack_sdk.web.async_client import AsyncWebClient
from structlog.testing import capture_logs

from bot.settings.model import AccessSettings
from bot.slack.access import Access
from bot.store.records import Person, UserError
from demo.workspace import Workspace
from demo.workspace.webapi import ApiCall, ApiError, Handler
from gpu_actions.models import JsonObject

ONCALL, LEAD, VIEWER = Person(id="U0ONCALL"), Person(id="U0LEAD"), Person(id="U0VIEWER")
GUEST, PARTNER, FORMER = Person(id="U0GUEST"), Person(id="U0PARTNER"), Person(id="U0FORMER")
OUTSIDERS = (GUEST, PARTNER, FORMER, Person(id="U0GPUONCALL"))
SHELL = Person(id="shell")


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


async def test_a_refusal_says_why_and_whom_to_ask(client: AsyncWebClient, groups: Groups) -> None:
    two = access(client, "@incident-leads", "C0INCIDENTS", "W0CHIEF")
    assert await two.refusal(GUEST, "responder", "start load") == (
        "You may not start load: you are a guest here. To allow it, add U0GUEST to access.guests."
    )
    assert await access(client, "@incident-leads", "W0CHIEF").refusal(ONCALL, "responder", "start load") == (
        "You may not start load: that needs the role 'responder', held by @incident-leads, W0CHIEF. "
        "Ask one of them, or have your user id U0ONCALL added to access.roles.responder."
    )
    with pytest.raises(UserError, match=r"^You may not start load: that needs the role 'responder'"):
        await access(client, "W0CHIEF").require(ONCALL, "responder", "start load")
    await access(client, "U0ONCALL").require(ONCALL, "responder", "start load")
    groups.error = ApiError("service_unavailable", status=503)
    assert await access(client, "@incident-leads", "S0X").refusal(ONCALL, "responder", "start load") == (
        "I cannot tell whether you may start load: I could not read the members of "
        "@incident-leads (service_unavailable), S0X (service_unavailable) from Slack. "
        "Try again, or have your user id U0ONCALL added to access.roles.responder."
    )
    groups.error = None
    nobody = await access(client, "@gone", "#gone").refusal(SHELL, "responder", "start load")
    assert nobody == (
        "I cannot tell whether you may start load: I could not read the members of "
        "@gone (no user group has this handle), #gone (I see no such channel) from Slack. "
        "Try again, or have your user id shell added to access.roles.responder."
    )


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
    clock[0] = 300
    assert await who.refusal(LEAD, "responder", "x") is not None


async def test_a_mention_of_a_role_notifies_its_group(client: AsyncWebClient, tmp_path: Path) -> None:
    who = access(client, "@incident-leads", "U0VIEWER")
    assert who.mention("responder") == "@incident-leads <@U0VIEWER>"
    await who.warm()
    assert who.mention("responder").startswith("<!subteam^S")


@pytest.mark.parametrize(
    ("member", "mention"),
    [
        ("S0LEADS", "<!subteam^S0LEADS>"),
        ("C0INCIDENTS", "<#C0INCIDENTS>"),
        ("G0PRIVATE", "<#G0PRIVATE>"),
        ("U0LEAD", "<@U0LEAD>"),
        ("W0LEAD", "<@W0LEAD>"),
        ("#incidents", "#incidents"),
        ("@incident-leads", "@incident-leads"),
    ],
)
async def test_each_kind_of_member_has_its_mention(member: str, mention: str) -> None:
    who = access(AsyncWebClient(), member)
    assert who.mention("responder") == mention
    assert who.mention("approver") == ""


async def test_a_handle_is_mentioned_with_its_group_once_it_is_known(client: AsyncWebClient) -> None:
    who = access(client, "@Incident-Leads", "@gone")
    await who.warm()
    assert who.mention("responder") == "<!subteam^S0INCIDENTLEADS|@Incident-Leads> @gone"


async def test_a_group_that_cannot_be_read_is_logged_and_the_others_are_read(client: AsyncWebClient) -> None:
    who = access(client, "@gone", "@incident-leads")
    with capture_logs() as logs:
        await who.warm()
    assert logs == [
        {
            "event": "user group cannot be read",
            "log_level": "warning",
            "group": "@gone",
            "reason": "no user group has this handle",
        }
    ]
    assert await who.members_of("responder") == ["U0LEAD"]


async def test_a_channel_of_many_pages_is_read_to_its_end(
    client: AsyncWebClient, groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = await access(client, "C0INCIDENTS").members_of("responder")
    monkeypatch.setattr("bot.slack.access.PAGE", 2)
    assert len(at_once) > 4
    groups.calls.clear()
    assert await access(client, "C0INCIDENTS").members_of("responder") == at_once
    assert groups.calls["conversations.members"] == math.ceil(len(at_once) / 2)


PEOPLE: dict[str, tuple[Person, str, str, str]] = {
    # who, what they are here, how they hold the role, and whether they may start what only reads
    "a member of a group": (LEAD, "a full member", "as a member of @incident-leads", ""),
    "a member of a channel": (VIEWER, "a full member", "as a member of C0INCIDENTS", ""),
    "a person named": (ONCALL, "a full member", "named in the settings", ""),
    "a guest": (GUEST, "a guest", "as a member of C0INCIDENTS", ""),
    "a person of another organisation": (
        PARTNER, "a member of another organisation (T0PARTNER)", "as a member of C0INCIDENTS",
        "You may not read: you belong to another organisation (T0PARTNER). "
        "To allow it, add T0PARTNER to access.partner_teams.",
    ),
    "a deactivated account": (
        FORMER, "deactivated", "as a member of C0INCIDENTS", "The account U0FORMER is deactivated, so it may not read."
    ),
    "an app": (OUTSIDERS[3], "bot", "as a member of C0INCIDENTS", "U0GPUONCALL is an app, and apps may not read."),
    "a shell": (SHELL, "unknown to me (user_not_found)", "", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", PEOPLE)
async def test_what_a_person_is_and_through_what_they_hold_a_role(client: AsyncWebClient, name: str) -> None:
    person, kind, through, refusal = PEOPLE[name]
    who = access(client, "U0ONCALL", "@gone", "@incident-leads", "C0INCIDENTS")
    assert await who.kind(person) == kind
    assert await who.through(person, "responder") == through
    assert await who.through(person, "approver") == ""
    assert await who.reader_refusal(person, "read") == refusal


@pytest.mark.parametrize(
    ("members", "people"),
    [
        (("U0B", "W0A", "U0B", "@incident-leads", "S0INCIDENTLEADS", "@gone"), ["U0B", "W0A", "U0LEAD"]),
        (("G0GONE", "#gone", "nobody"), []),
    ],
)
async def test_the_people_of_a_role_are_each_listed_once(
    client: AsyncWebClient, members: tuple[str, ...], people: list[str]
) -> None:
    who = access(client, *members)
    assert await who.members_of("responder") == people
    assert await who.members_of("approver") == []


@pytest.mark.parametrize(
    ("member", "why"),
    [("G0GONE", "I see no such channel"), ("C0GONE", "I see no such channel"), ("S0GONE", "no_such_subteam")],
)
async def test_a_group_or_channel_that_slack_does_not_know_is_named(
    client: AsyncWebClient, member: str, why: str
) -> None:
    refusal = await access(client, member).refusal(LEAD, "responder", "x")
    assert refusal is not None
    assert f"I could not read the members of {member} ({why})" in refusal


async def test_the_workspace_that_the_bot_belongs_to_decides_who_is_of_another(
    client: AsyncWebClient,
) -> None:
    elsewhere = Access(AccessSettings(), client, home_team=lambda: "T0ELSEWHERE")
    assert (await elsewhere.kind(LEAD)).startswith("a member of another organisation (T0")


async def test_a_persons_standing_lists_every_role_of_the_settings(client: AsyncWebClient) -> None:
    settings = AccessSettings(roles={"responder": ("U0ONCALL",), "approver": ("U0LEAD",)})
    assert await Access(settings, client).standing(ONCALL) == {
        "responder": "",
        "approver": "You may not act as approver: that needs the role 'approver', held by U0LEAD. "
        "Ask one of them, or have your user id U0ONCALL added to access.roles.approver.",
    }


@pytest.mark.parametrize(
    ("person", "allowed"),
    [
        (Person(id="U0-LEAD"), True),  # no id of Slack: a monitor or a shell of that name
        (Person(id="shell"), True),
        (Person(id="W0NOBODY"), False),
        (Person(id="U0NOBODY"), False),
    ],
)
async def test_a_name_of_no_slack_user_is_not_asked_of_slack(
    client: AsyncWebClient, groups: Groups, person: Person, allowed: bool
) -> None:
    named = access(client, person.id, "@incident-leads")
    assert await named.refusal(person, "responder", "x") is None
    assert (groups.calls["users.info"] == 0) is allowed
    assert await named.reader_refusal(person, "x") == ""


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
