"""What a workspace holds (channels, messages, files) as mutable records, and their JSON as Slack's API returns it."""

import mimetypes
import time
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

JsonObject = dict[str, Any]
"""A JSON object as Python data."""

INLINE_IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""Media types that the page shows inline. SVG is left out because it can carry scripts."""


def _now_s() -> int:
    return int(time.time())


@dataclass(slots=True)
class Channel:
    """A public channel, or a direct conversation (`is_im`) between one person and the bot."""

    id: str
    name: str
    members: list[str]
    topic: str = ""
    purpose: str = ""
    is_im: bool = False
    is_archived: bool = False
    is_shared: bool = False
    created: int = field(default_factory=_now_s)
    creator: str = ""
    bookmarks: list[JsonObject] = field(default_factory=list)

    def as_slack(self, viewer: str) -> JsonObject:
        """Return the object of `conversations.info`, as the user id `viewer` sees it."""
        common: JsonObject = {"id": self.id, "created": self.created, "is_archived": self.is_archived}
        common |= {"is_org_shared": False, "is_shared": self.is_shared, "is_mpim": False}
        common |= {"is_ext_shared": self.is_shared}
        common |= {"is_im": self.is_im, "is_private": self.is_im, "is_channel": not self.is_im}
        if self.is_im:
            other = next((member for member in self.members if member != viewer), viewer)
            return common | {"user": other, "is_member": True}
        described = {"creator": self.creator, "last_set": self.created}
        return common | {
            "name": self.name,
            "name_normalized": self.name,
            "is_group": False,
            "is_general": self.name == "general",
            "is_member": viewer in self.members,
            "creator": self.creator,
            "topic": {"value": self.topic} | described,
            "purpose": {"value": self.purpose} | described,
            "num_members": len(self.members),
        }


@dataclass(slots=True)
class Message:
    """A message. `thread_ts` is set on replies only; `visible_to` makes it ephemeral for that user id."""

    channel: str
    ts: str
    user: str
    text: str = ""
    blocks: list[JsonObject] = field(default_factory=list)
    attachments: list[JsonObject] = field(default_factory=list)
    thread_ts: str | None = None
    from_app: bool = False
    broadcast: bool = False
    files: list[str] = field(default_factory=list)
    metadata: JsonObject | None = None
    edited: JsonObject | None = None
    reactions: list[JsonObject] = field(default_factory=list)
    pinned: bool = False
    visible_to: str | None = None


@dataclass(slots=True)
class StoredFile:
    """An uploaded file; `shares` lists the messages that show it. The state file holds its bytes."""

    id: str
    name: str
    size: int
    user: str
    title: str = ""
    alt_text: str = ""
    uploaded: bool = False
    completed: bool = False
    created: int = field(default_factory=_now_s)
    shares: list[JsonObject] = field(default_factory=list)
    is_canvas: bool = False
    access: dict[str, str] = field(default_factory=dict)
    """Of a canvas: the level of access by channel id or user id."""

    @property
    def media_type(self) -> str:
        """Return the media type by the name's suffix, or `application/octet-stream`."""
        return mimetypes.guess_type(self.name)[0] or "application/octet-stream"

    def as_slack(self, base_url: str) -> JsonObject:
        """Return the object of `files.info`, with links below `base_url`."""
        suffix = PurePosixPath(self.name).suffix.lstrip(".").lower() or "binary"
        location = f"{base_url}/files/{self.id}"
        shares: dict[str, list[JsonObject]] = {}
        for share in self.shares:
            thread = {"thread_ts": share["thread_ts"]} if share.get("thread_ts") else {}
            shares.setdefault(share["channel"], []).append({"ts": share["ts"]} | thread)
        body: JsonObject = {
            "id": self.id,
            "created": self.created,
            "timestamp": self.created,
            "name": self.name,
            "title": self.title or self.name,
            "mimetype": self.media_type,
            "filetype": suffix,
            "pretty_type": suffix.upper(),
            "user": self.user,
            "size": self.size,
            "url_private": location,
            "url_private_download": f"{location}?download=1",
            "permalink": location,
            "channels": sorted(shares),
            "shares": {"public": shares},
        }
        body |= {"mode": "hosted", "editable": False, "is_external": False, "is_public": True}
        if self.alt_text:
            body["alt_txt"] = self.alt_text
        if self.media_type in INLINE_IMAGE_TYPES:
            body["thumb_360"] = location
        return body
