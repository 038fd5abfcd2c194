"""The state of a workspace: people, channels, messages, files, views; listeners get every change.

Everything runs in one event loop, so there are no locks. Changes are written to the state file at once, except ephemeral
messages, which are gone after a restart as they are in Slack.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from demo.workspace.records import Channel, JsonObject, Message, StoredFile
from demo.workspace.state_file import StateFile
from demo.workspace.team import SlashCommand, Team, User

SLACKBOT = "USLACKBOT"

Listener = Callable[[JsonObject], None]
"""Takes one change: `{"type": "message" | "message_deleted" | "channel" | "commands" | "view" | "app", ...}`."""


class State:
    """Everything that a workspace knows. The server sets `base_url` once its port is known."""

    def __init__(self, team: Team, state_file: StateFile) -> None:
        self.team = team
        self.base_url = ""
        self.people: dict[str, User] = {user.id: user for user in team.users}
        self.channels: dict[str, Channel] = {}
        self.messages: dict[str, dict[str, Message]] = {}
        """Messages by channel id and ts, oldest first."""
        self.files: dict[str, StoredFile] = {}
        self.views: dict[str, JsonObject] = {}
        self.view_owner: dict[str, str] = {}
        """The user id of the person who sees a view, by view id."""
        self.commands: dict[str, SlashCommand] = {entry.command: entry for entry in team.commands}
        self.commands_declared = bool(team.commands)
        self._state_file = state_file
        self._listeners: list[Listener] = []
        self.clock: Callable[[], float] = time.time
        self._last_micros = 0
        self._load()

    def _load(self) -> None:
        for entry in self.team.channels:
            members = [*self.people, self.bot_user] if entry.is_shared else self.everyone
            self.channels[entry.id] = Channel(
                entry.id, entry.name, members, topic=entry.topic, is_shared=entry.is_shared
            )
        for body in self._state_file.documents("channel"):
            self.channels[body["id"]] = Channel(**body)
        self.messages = {channel_id: {} for channel_id in self.channels}
        for body in self._state_file.documents("file"):
            self.files[body["id"]] = StoredFile(**body)
        for body in self._state_file.documents("message"):
            message = Message(**body)
            self.messages[message.channel][message.ts] = message
            seconds, _, micros = message.ts.partition(".")
            self._last_micros = max(self._last_micros, int(seconds) * 1_000_000 + int(micros or 0))
        for body in self._state_file.documents("commands"):
            self.declare_commands(tuple(SlashCommand(**entry) for entry in body["commands"]))

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every change from now on. Return a function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def announce(self, change: JsonObject) -> None:
        """Pass a change to all listeners."""
        for listener in list(self._listeners):
            listener(change)

    # people and channels

    @property
    def bot_user(self) -> str:
        """Return the user id of the app's bot user."""
        return self.team.app.user_id

    @property
    def everyone(self) -> list[str]:
        """Return the user ids of all members and the bot; guests and partners join channels one by one."""
        return [*(user.id for user in self.people.values() if user.kind == "member"), self.bot_user]

    def team_of(self, user: User) -> str:
        """Return the id of the workspace that a person belongs to."""
        return user.team or self.team.id

    def user_by_name(self, name: str) -> User | None:
        """Return a person by id or by name, with or without `@`."""
        wanted = name.removeprefix("@")
        return next((user for user in self.people.values() if wanted in (user.id, user.name)), None)

    def user_names(self) -> str:
        """List the names of all people, for error messages."""
        return ", ".join(user.name for user in self.people.values())

    def channel_by_name(self, name: str) -> Channel | None:
        """Return a channel by id or by name, with or without `#`."""
        found = self.channels.get(name)
        wanted = name.removeprefix("#")
        return found or next((c for c in self.channels.values() if c.name == wanted and not c.is_im), None)

    def channel_names(self) -> str:
        """List the names of all public channels, for error messages."""
        return ", ".join(channel.name for channel in self.channels.values() if not channel.is_im)

    def save_channel(self, channel: Channel) -> None:
        """Store a new or changed channel."""
        self.channels[channel.id] = channel
        self.messages.setdefault(channel.id, {})
        self._state_file.put("channel", channel.id, asdict(channel))
        self.announce({"type": "channel", "channel": channel.id})

    def direct_channel(self, user_id: str) -> Channel:
        """Return the conversation between a person and the bot, opening it on first use."""
        channel_id = "D" + user_id[1:]
        if channel_id not in self.channels:
            members = [user_id, self.bot_user]
            self.save_channel(Channel(channel_id, "", members, is_im=True, creator=self.bot_user))
        return self.channels[channel_id]

    def declare_commands(self, commands: tuple[SlashCommand, ...]) -> None:
        """Register the app's slash commands. Any other command is refused from now on."""
        self.commands = {entry.command: entry for entry in commands}
        self.commands_declared = True
        self._state_file.put("commands", "all", {"commands": [asdict(entry) for entry in commands]})
        self.announce({"type": "commands"})

    def names_by_id(self) -> dict[str, str]:
        """Return the display names of people, the app and channels."""
        people = {entry.id: entry.name for entry in self.people.values()}
        channels = {entry.id: entry.name for entry in self.channels.values()}
        return people | channels | {self.bot_user: self.team.app.name, SLACKBOT: "Slackbot"}

    def set_view(self, view_id: str, view: JsonObject | None, user: str) -> None:
        """Store a view that `user` sees, or remove it with None, and announce what is open to that person."""
        if view is None:
            self.views.pop(view_id, None)
            self.view_owner.pop(view_id, None)
        else:
            self.views[view_id] = view
            self.view_owner[view_id] = user
        self.announce({"type": "view", "user": user, **self.open_views(user)})

    def modals(self, user: str) -> list[JsonObject]:
        """Return a person's open modals, the newest last."""
        own = [view for view_id, view in self.views.items() if self.view_owner[view_id] == user]
        return [view for view in own if view["type"] == "modal"]

    def open_views(self, user: str) -> JsonObject:
        """Return what a person sees beside the messages: the stack of modals and the Home tab."""
        return {"modals": self.modals(user), "home": self.views.get(f"VHOME{user}")}

    # messages

    def new_ts(self) -> str:
        """Return the ts of a new message: seconds and microseconds, unique and increasing."""
        now, last = int(self.clock() * 1_000_000), self._last_micros
        # A clock that was set back by more than a second is followed; two calls within a microsecond are told apart.
        self._last_micros = now if now > last or last - now > 1_000_000 else last + 1
        return f"{self._last_micros // 1_000_000}.{self._last_micros % 1_000_000:06d}"

    def message(self, channel_id: str, ts: str | None) -> Message | None:
        """Return a message, including an ephemeral one."""
        return self.messages.get(channel_id, {}).get(ts) if ts else None

    def public_message(self, channel_id: str, ts: str | None) -> Message | None:
        """Return a message that everyone in the channel sees."""
        message = self.message(channel_id, ts)
        return message if message is not None and message.visible_to is None else None

    def replies(self, channel_id: str, thread_ts: str) -> list[Message]:
        """Return the replies of a thread, oldest first, without ephemeral ones."""
        messages = self.messages[channel_id].values()
        return [entry for entry in messages if entry.thread_ts == thread_ts and entry.visible_to is None]

    def post(self, channel: str, user: str, text: str, **fields: Any) -> Message:
        """Store a new message; `fields` are those of Message."""
        message = Message(channel, self.new_ts(), user, text, **fields)
        self.save_message(message)
        return message

    def save_message(self, message: Message) -> None:
        """Store a new or changed message and announce it, with the first message of its thread."""
        self.messages[message.channel][message.ts] = message
        if message.visible_to is None:
            self._state_file.put("message", f"{message.channel}:{message.ts}", asdict(message))
        self._announce_message(message)
        self._announce_parent(message)

    def remove_message(self, message: Message) -> None:
        """Delete a message. The replies to a deleted message remain, as in Slack."""
        self.messages[message.channel].pop(message.ts, None)
        self._state_file.remove("message", f"{message.channel}:{message.ts}")
        place = {"channel": message.channel, "ts": message.ts, "visible_to": message.visible_to}
        self.announce({"type": "message_deleted"} | place)
        self._announce_parent(message)

    def _announce_message(self, message: Message) -> None:
        change = {"type": "message", "visible_to": message.visible_to, "channel": message.channel}
        self.announce({**change, "message": self.message_json(message, with_metadata=True)})

    def _announce_parent(self, message: Message) -> None:
        parent = self.message(message.channel, message.thread_ts)
        if parent is not None and message.visible_to is None:
            self._announce_message(parent)

    def message_json(self, message: Message, *, with_metadata: bool = False) -> JsonObject:
        """Return a message in Slack's form, with its files and, on a parent, the summary of its thread."""
        body: JsonObject = {
            "type": "message",
            "user": message.user,
            "text": message.text,
            "ts": message.ts,
            "team": self.team.id,
        }
        if message.from_app:
            app = self.team.app
            ids = {"app_id": app.app_id}
            profile = {"id": app.bot_id, "name": app.name, "deleted": False} | ids
            body |= {"bot_id": app.bot_id, "bot_profile": profile} | ids
        if message.visible_to is not None:
            body |= {"is_ephemeral": True, "visible_to": message.visible_to}
        if message.files:
            known = [self.files[file_id] for file_id in message.files if file_id in self.files]
            body["files"] = [entry.as_slack(self.base_url) for entry in known]
        for name in ("blocks", "attachments", "edited", "reactions", "thread_ts"):
            if getattr(message, name):
                body[name] = getattr(message, name)
        if message.metadata and with_metadata:
            body["metadata"] = message.metadata
        if message.broadcast:
            body["subtype"] = "thread_broadcast"
        if message.pinned:
            body["pinned_to"] = [message.channel]
        if message.thread_ts is None and message.visible_to is None:
            body |= self._thread_summary(message)
        return body

    def _thread_summary(self, parent: Message) -> JsonObject:
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
        """Store a file's record, and its bytes if they are passed."""
        self.files[file.id] = file
        self._state_file.put("file", file.id, asdict(file))
        if content is not None:
            self._state_file.put_content(file.id, content)

    def content(self, file_id: str) -> bytes | None:
        """Return the bytes of a file, or None if they were never uploaded or are deleted."""
        return self._state_file.content(file_id)

    def remove_file(self, file_id: str) -> None:
        """Delete a file and take it out of the messages that show it."""
        self.files.pop(file_id, None)
        self._state_file.remove("file", file_id)
        self._state_file.remove_content(file_id)
        for messages in self.messages.values():
            for message in list(messages.values()):
                if file_id in message.files:
                    message.files.remove(file_id)
                    self.save_message(message)

    @staticmethod
    def new_id(prefix: str) -> str:
        """Return a random id in Slack's form: the prefix and ten capital letters or digits."""
        alphabet = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"
        return prefix + "".join(secrets.choice(alphabet) for _ in range(10))
