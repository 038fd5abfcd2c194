"""Find the id of the incident channel: the settings may give its name, but Slack edits messages only by channel id."""

import asyncio
import re

import structlog
from slack_sdk.web.async_client import AsyncWebClient

log = structlog.get_logger()

CHANNEL_ID = re.compile(r"^[CGD][A-Z0-9]{6,}$")
PAGE = 200


class ChannelUnknown(Exception):
    """Raised if the bot sees no channel of that name. The message says what to do."""


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
