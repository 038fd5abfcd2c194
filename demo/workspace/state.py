"""The workspace's memory: who is there, what was said, which files were shared; with every change told to listeners.

All access is from the one event loop, so there are no locks. Changes are written through to the journal; ephemeral
messages are not, as in Slack they are gone after a restart.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict

from demo.workspace.journal import Journal
from demo.workspace.records import Channel, Message, StoredFile
from demo.workspace.seed import Seed, SeedUser, SlashCommand
from gpu_actions.models import JsonObject

Listener = Callable[[JsonObject], None]
"""Takes one change: `{"type": "message" | "message_deleted" | "channel" | "commands" | "view" | "app", ...}`."""


class State:
    """Everything a workspace knows. `base_url` is set by the server once its port is known."""

    def __init__(self, seed: Seed, journal: Journal) -> None:
        self.seed = seed
        self.base_url = ""
        self.people: dict[str, SeedUser] = {user.id: user for user in seed.users}
        self.channels: dict[str, Channel] = {}
        self.messages: dict[str, dict[str, Message]] = {}
        self.files: dict[str, StoredFile] = {}
        self.views: dict[str, JsonObject] = {}
        self.commands: dict[str, SlashCommand] = {entry.command: entry for entry in seed.commands}
        self.commands_declared = bool(seed.commands)
        self._contents: dict[str, bytes] = {}
        self._journal = journal
        self._listeners: list[Listener] = []
        self._last_micros = 0
        self._load()

    def _load(self) -> None:
        everybody = [*self.people, self.seed.app.user_id]
        for entry in self.seed.channels:
            channel = Channel(id=entry.id, name=entry.name, members=list(everybody), topic=entry.topic)
            self.channels[channel.id] = channel
        for body in self._journal.documents("channel"):
            self.channels[str(body["id"])] = Channel(**body)
        for channel_id in self.channels:
            self.messages[channel_id] = {}
        for body in self._journal.documents("file"):
            self.files[str(body["id"])] = StoredFile(**body)
        for body in self._journal.documents("message"):
            message = Message.from_document(body)
            self.messages[message.channel][message.ts] = message
            self._last_micros = max(self._last_micros, _micros(message.ts))
        for body in self._journal.documents("commands"):
            self.declare_commands(tuple(SlashCommand(**entry) for entry in body["commands"]))

    # listeners

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of every change from now on; the returned function ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def announce(self, change: JsonObject) -> None:
        """Tell all listeners of a change that is not a message."""
        for listener in list(self._listeners):
            listener(change)

    # people and channels

    @property
    def bot_user(self) -> str:
        """The user id of the app's bot user."""
        return self.seed.app.user_id

    def user_by_name(self, name: str) -> SeedUser | None:
        """A person by id or by name, with or without `@`."""
        wanted = name.removeprefix("@")
        return next((user for user in self.people.values() if wanted in (user.id, user.name)), None)

    def name_of(self, user_id: str) -> str:
        """The name shown for a user id; the id itself where nobody has it."""
        if user_id == self.bot_user:
            return self.seed.app.name
        person = self.people.get(user_id)
        return person.name if person else user_id

    def channel_by_name(self, name: str) -> Channel | None:
        """A channel by id or by name, with or without `#`."""
        found = self.channels.get(name)
        wanted = name.removeprefix("#")
        return found or next((c for c in self.channels.values() if c.name == wanted and not c.is_im), None)

    def save_channel(self, channel: Channel) -> None:
        """Keep a new or changed channel."""
        self.channels[channel.id] = channel
        self.messages.setdefault(channel.id, {})
        self._journal.put("channel", channel.id, asdict(channel))
        self.announce({"type": "channel", "channel": channel.id})

    def direct_channel(self, user_id: str) -> Channel:
        """The conversation between a person and the bot, opened when it is first asked for."""
        channel_id = "D" + user_id[1:]
        if channel_id not in self.channels:
            members = [user_id, self.bot_user]
            self.save_channel(
                Channel(id=channel_id, name="", members=members, is_im=True, creator=self.bot_user)
            )
        return self.channels[channel_id]

    def declare_commands(self, commands: tuple[SlashCommand, ...]) -> None:
        """Register the app's slash commands: from now on any other is refused, as Slack does."""
        self.commands = {entry.command: entry for entry in commands}
        self.commands_declared = True
        self._journal.put("commands", "all", {"commands": [entry.model_dump() for entry in commands]})
        self.announce({"type": "commands"})

    # messages

    def new_ts(self) -> str:
        """A message time, unique and rising: seconds, a point, microseconds."""
        self._last_micros = max(int(time.time() * 1_000_000), self._last_micros + 1)
        return f"{self._last_micros // 1_000_000}.{self._last_micros % 1_000_000:06d}"

    def message(self, channel_id: str, ts: str) -> Message | None:
        """One message, ephemeral ones included."""
        return self.messages.get(channel_id, {}).get(ts)

    def replies(self, channel_id: str, thread_ts: str) -> list[Message]:
        """The replies of a thread, oldest first, without ephemeral ones."""
        return [
            entry
            for entry in self.messages[channel_id].values()
            if entry.thread_ts == thread_ts and entry.visible_to is None
        ]

    def save_message(self, message: Message) -> None:
        """Keep a new or changed message and tell the listeners, of its thread's parent too."""
        self.messages[message.channel][message.ts] = message
        if message.visible_to is None:
            self._journal.put("message", f"{message.channel}:{message.ts}", message.to_document())
        self._announce_message(message)
        self._announce_parent(message)

    def remove_message(self, message: Message) -> None:
        """Forget a message. Replies of a removed parent stay, as in Slack."""
        self.messages[message.channel].pop(message.ts, None)
        self._journal.remove("message", f"{message.channel}:{message.ts}")
        self.announce(
            {
                "type": "message_deleted",
                "channel": message.channel,
                "ts": message.ts,
                "visible_to": message.visible_to,
            }
        )
        self._announce_parent(message)

    def _announce_message(self, message: Message) -> None:
        change = {"type": "message", "visible_to": message.visible_to, "channel": message.channel}
        self.announce({**change, "message": self.message_json(message, with_metadata=True)})

    def _announce_parent(self, message: Message) -> None:
        parent = self.message(message.channel, message.thread_ts) if message.thread_ts else None
        if parent is not None and message.visible_to is None:
            self._announce_message(parent)

    def message_json(self, message: Message, *, with_metadata: bool = False) -> JsonObject:
        """A message in Slack's shape, with its files and, on a parent, the figures of its thread."""
        body: JsonObject = {
            "type": "message",
            "user": message.user,
            "text": message.text,
            "ts": message.ts,
            "team": self.seed.team_id,
        }
        if message.from_app:
            app = self.seed.app
            body |= {"bot_id": app.bot_id, "app_id": app.app_id}
            body["bot_profile"] = {"id": app.bot_id, "app_id": app.app_id, "name": app.name, "deleted": False}
        if message.visible_to is not None:
            body |= {"is_ephemeral": True, "visible_to": message.visible_to}
        if message.blocks:
            body["blocks"] = message.blocks
        if message.attachments:
            body["attachments"] = message.attachments
        if message.files:
            known = [self.files[file_id] for file_id in message.files if file_id in self.files]
            body["files"] = [entry.as_slack(self.base_url) for entry in known]
        if message.metadata and with_metadata:
            body["metadata"] = message.metadata
        for name in ("edited", "reactions", "thread_ts"):
            if getattr(message, name):
                body[name] = getattr(message, name)
        if message.broadcast:
            body["subtype"] = "thread_broadcast"
        if message.pinned:
            body["pinned_to"] = [message.channel]
        if message.thread_ts is None and message.visible_to is None:
            body |= self._thread_figures(message)
        return body

    def _thread_figures(self, parent: Message) -> JsonObject:
        replies = self.replies(parent.channel, parent.ts)
        if not replies:
            return {}
        users = list(dict.fromkeys(reply.user for reply in replies))
        return {
            "thread_ts": parent.ts,
            "reply_count": len(replies),
            "reply_users_count": len(users),
            "reply_users": users,
            "latest_reply": replies[-1].ts,
        }

    # files

    def save_file(self, file: StoredFile, content: bytes | None = None) -> None:
        """Keep a file's record, and its bytes when they are given."""
        self.files[file.id] = file
        self._journal.put("file", file.id, asdict(file))
        if content is not None:
            self._contents[file.id] = content
            self._journal.put_content(file.id, content)

    def content(self, file_id: str) -> bytes | None:
        """The bytes of a file, None where they never came or were deleted."""
        data = self._contents.get(file_id)
        return data if data is not None else self._journal.content(file_id)

    def remove_file(self, file_id: str) -> None:
        """Forget a file; messages that showed it no longer do."""
        self.files.pop(file_id, None)
        self._contents.pop(file_id, None)
        self._journal.remove("file", file_id)
        self._journal.remove_content(file_id)
        for messages in self.messages.values():
            for message in list(messages.values()):
                if file_id in message.files:
                    message.files.remove(file_id)
                    self.save_message(message)

    @staticmethod
    def new_id(prefix: str) -> str:
        """A random id in Slack's shape: the prefix and ten capital letters or digits."""
        alphabet = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"
        return prefix + "".join(secrets.choice(alphabet) for _ in range(10))


def _micros(ts: str) -> int:
    seconds, _, fraction = ts.partition(".")
    return int(seconds) * 1_000_000 + int(fraction or 0)
