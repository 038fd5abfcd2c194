"""The things a workspace holds, as mutable records: channels, messages and files, and their JSON in Slack's shape."""

import mimetypes
import time
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Self

from gpu_actions.models import JsonObject

INLINE_IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""Media types that the page shows in place. SVG is not among them: it can carry script."""


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
    created: int = field(default_factory=lambda: int(time.time()))
    creator: str = ""
    bookmarks: list[JsonObject] = field(default_factory=list)

    def as_slack(self, viewer: str) -> JsonObject:
        """The channel object of `conversations.info`, as `viewer` (a user id) sees it."""
        common: JsonObject = {
            "id": self.id,
            "created": self.created,
            "is_im": self.is_im,
            "is_archived": self.is_archived,
            "is_org_shared": False,
            "is_shared": False,
            "is_mpim": False,
        }
        if self.is_im:
            other = next((member for member in self.members if member != viewer), viewer)
            return {**common, "user": other, "is_channel": False, "is_private": True, "is_member": True}
        return {
            **common,
            "name": self.name,
            "name_normalized": self.name,
            "is_channel": True,
            "is_group": False,
            "is_private": False,
            "is_general": self.name == "general",
            "is_member": viewer in self.members,
            "creator": self.creator,
            "topic": {"value": self.topic, "creator": self.creator, "last_set": self.created},
            "purpose": {"value": self.purpose, "creator": self.creator, "last_set": self.created},
            "num_members": len(self.members),
        }


@dataclass(slots=True)
class Message:
    """One message. `thread_ts` is set on replies only; `visible_to` makes it ephemeral for that user id."""

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

    def to_document(self) -> JsonObject:
        """The record as the journal keeps it."""
        return asdict(self)

    @classmethod
    def from_document(cls, body: JsonObject) -> Self:
        """The record from the journal."""
        return cls(**body)


@dataclass(slots=True)
class StoredFile:
    """One uploaded file; `shares` says where it was shown. Its bytes are kept by the state."""

    id: str
    name: str
    size: int
    user: str
    title: str = ""
    alt_text: str = ""
    uploaded: bool = False
    completed: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    shares: list[JsonObject] = field(default_factory=list)

    @property
    def media_type(self) -> str:
        """The type by the name's ending; `application/octet-stream` where it says nothing."""
        return mimetypes.guess_type(self.name)[0] or "application/octet-stream"

    def as_slack(self, base_url: str) -> JsonObject:
        """The file object of `files.info`, with links below `base_url`."""
        suffix = PurePosixPath(self.name).suffix.lstrip(".").lower() or "binary"
        location = f"{base_url}/files/{self.id}"
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
            "mode": "hosted",
            "editable": False,
            "is_external": False,
            "is_public": True,
            "url_private": location,
            "url_private_download": f"{location}?download=1",
            "permalink": location,
            "channels": sorted({str(share["channel"]) for share in self.shares}),
            "shares": {"public": _shares_by_channel(self.shares)},
        }
        if self.alt_text:
            body["alt_txt"] = self.alt_text
        if self.media_type in INLINE_IMAGE_TYPES:
            body["thumb_360"] = location
        return body


def _shares_by_channel(shares: list[JsonObject]) -> dict[str, list[JsonObject]]:
    grouped: dict[str, list[JsonObject]] = {}
    for share in shares:
        entry: dict[str, Any] = {"ts": share["ts"]}
        if share.get("thread_ts"):
            entry["thread_ts"] = share["thread_ts"]
        grouped.setdefault(str(share["channel"]), []).append(entry)
    return grouped
