"""The id of the incident channel. The settings may name it; Slack edits messages only by channel id."""

import asyncio
import re

import structlog
from slack_sdk.web.async_client import AsyncWebClient

log = structlog.get_logger()

CHANNEL_ID = re.compile(r"^[CGD][A-Z0-9]{6,}$")
PAGE = 200


class ChannelUnknown(Exception):
    """No channel of that name is to be seen. The message says what to do."""


class Channels:
    """Finds channels by name, once each."""

    def __init__(self, client: AsyncWebClient) -> None:
        self._client = client
        self._ids: dict[str, str] = {}
        self._lock = asyncio.Lock()

    async def id_of(self, name: str) -> str:
        """The id of a channel by its name or id. Raises ChannelUnknown, and whatever the Slack client raises."""
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
                f"slack.incident_channel: I see no channel #{name}; create it, or invite me where it is private"
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
