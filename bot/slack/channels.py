"""What is known about channels: the id of a name in the settings, and whether people would see the bot's messages there."""

import asyncio
import re

import structlog
from aiohttp import ClientError
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

log = structlog.get_logger()

CHANNEL_ID = re.compile(r"^[CGD][A-Z0-9]{6,}$")
PAGE = 200
LOOKUP_S = 3.0
NOT_IN_CHANNEL = frozenset(
    {"channel_not_found", "not_in_channel", "is_archived", "method_not_supported_for_channel_type"}
    | {"missing_scope", "restricted_action", "no_permission"}
)
"""Slack's answers that mean that the bot is not in a channel and cannot join it."""


class ChannelUnknown(Exception):
    """Raised if the bot sees no channel of that name. The message says what to do."""


async def why_unseen(client: AsyncWebClient, channel: str, bot_name: str) -> str:
    """Return why nobody would see the bot's messages in a channel, or an empty string. A public channel is joined.

    If Slack cannot say it now, the answer is empty: a fallback does not wait for Slack.
    """
    try:
        async with asyncio.timeout(LOOKUP_S):
            found = (await client.conversations_info(channel=channel))["channel"]
            if not found.get("is_member") and not found.get("is_im"):
                await client.conversations_join(channel=channel)
    except SlackApiError as error:
        code = error.response.get("error")
        if code not in NOT_IN_CHANNEL:
            log.warning("membership of a channel is unknown", channel=channel, error=code)
            return ""
        if channel.startswith("D"):
            return (
                "I am not in this conversation, so you would not see the answer, and nothing was started. "
                f"Ask in a channel, or write to me alone: @{bot_name}."
            )
        return (
            "I am not in this channel, so nobody would see what happens, and nothing was started. "
            f"Write `/invite @{bot_name}` here, then ask again. (Slack says {code}.)"
        )
    except (SlackClientError, ClientError, OSError, TimeoutError) as error:
        log.warning("membership of a channel is unknown", channel=channel, error=type(error).__name__)
    return ""


class Channels:
    """Looks channels up by name and remembers them."""

    def __init__(self, client: AsyncWebClient) -> None:
        self._client = client
        self._ids: dict[str, str] = {}
        self._lock = asyncio.Lock()

    async def id_of(self, name: str) -> str:
        """Return the id of a channel given its name or id. Raises ChannelUnknown, and whatever the Slack client raises."""
        name = name.removeprefix("#")
        if CHANNEL_ID.match(name):
            return name
        async with self._lock:
            if name not in self._ids:
                await self._read()
        try:
            return self._ids[name]
        except KeyError:
            raise ChannelUnknown(
                f"slack.incident_channel: there is no channel #{name} that I can see; create it, or invite me if it is private"
            ) from None

    async def _read(self) -> None:
        cursor = ""
        while True:
            answer = await self._client.conversations_list(
                types="public_channel,private_channel", exclude_archived=True, limit=PAGE, cursor=cursor
            )
            for channel in answer.get("channels") or ():
                self._ids[str(channel["name"])] = str(channel["id"])
            cursor = str((answer.get("response_metadata") or {}).get("next_cursor") or "")
            if not cursor:
                return
