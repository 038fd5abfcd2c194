"""What people do in the workspace (write, run a command, press a button) and what the app's answers turn into.

Every act ends in something its person can see: the app's answer, or a note only they can see that says what went
wrong. Nothing is lost in silence.
"""

import asyncio
import logging
from dataclasses import dataclass, field

from demo.workspace import payloads
from demo.workspace.answers import ActError, Answers
from demo.workspace.blocks import BlocksError
from demo.workspace.grants import Grants, ResponseGrant
from demo.workspace.records import Channel, Message
from demo.workspace.seed import SeedUser
from demo.workspace.socket_mode import Delivery, SocketMode
from demo.workspace.state import State
from demo.workspace.typed_text import slash_command_of, stored_text
from gpu_actions.models import JsonObject

SLACKBOT = "USLACKBOT"
MAX_TYPED_CHARACTERS = 40_000

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcome:
    """What came of an act at once: the message written, or the app's acknowledgement and the notes shown with it."""

    kind: str
    ts: str | None = None
    error: str | None = None
    waited_s: float = 0.0
    notes: list[JsonObject] = field(default_factory=list)

    def as_json(self) -> JsonObject:
        """The outcome as the page and the terminal client get it."""
        return {
            "ok": self.error is None,
            "kind": self.kind,
            "ts": self.ts,
            "error": self.error,
            "waited_ms": round(self.waited_s * 1000, 1),
            "notes": self.notes,
        }


class Interactions:
    """The acts of people, each delivered to the app and answered for when the app does not."""

    def __init__(self, state: State, socket_mode: SocketMode, grants: Grants, answers: Answers) -> None:
        self._state = state
        self._answers = answers
        self._socket_mode = socket_mode
        self._grants = grants
        self._tasks: set[asyncio.Task[None]] = set()

    # people

    def _who_and_where(self, user: str, channel: str) -> tuple[SeedUser, Channel]:
        person = self._state.user_by_name(user)
        if person is None:
            names = ", ".join(entry.name for entry in self._state.people.values())
            raise ActError(f"there is no user {user!r} in this workspace; there are {names}", 404)
        if channel.removeprefix("@") == self._state.seed.app.name:
            return person, self._state.direct_channel(person.id)
        place = self._state.channel_by_name(channel)
        if place is None:
            names = ", ".join(entry.name for entry in self._state.channels.values() if not entry.is_im)
            raise ActError(f"there is no channel {channel!r} in this workspace; there are {names}", 404)
        if person.id not in place.members:
            raise ActError(f"{person.name} is not a member of this conversation", 403)
        return person, place

    async def say(self, *, user: str, channel: str, text: str, thread_ts: str | None = None) -> Outcome:
        """Write a message or run a slash command as `user`. Raises ActError for an unknown user, channel or thread."""
        person, place = self._who_and_where(user, channel)
        typed = text.strip()
        if not typed:
            raise ActError("the message is empty; write something first")
        if len(typed) > MAX_TYPED_CHARACTERS:
            raise ActError(f"the message has {len(typed)} characters; Slack takes {MAX_TYPED_CHARACTERS}")
        parent = self._state.message(place.id, thread_ts) if thread_ts else None
        if thread_ts and (parent is None or parent.visible_to is not None):
            raise ActError(f"there is no thread {thread_ts} in {place.name or 'this conversation'}", 404)
        root_ts = (parent.thread_ts or parent.ts) if parent else None
        command = slash_command_of(typed)
        if command is not None:
            return await self._run_command(person, place, command, root_ts)
        message = Message(
            channel=place.id,
            ts=self._state.new_ts(),
            user=person.id,
            text=stored_text(self._state, typed),
            thread_ts=root_ts,
        )
        self._state.save_message(message)
        if self._state.bot_user in place.members:
            self._send_event("message", place, message)
            if f"<@{self._state.bot_user}>" in message.text and not place.is_im:
                self._send_event("app_mention", place, message)
        return Outcome(kind="message", ts=message.ts)

    def _send_event(self, kind: str, channel: Channel, message: Message) -> None:
        self.send_event(payloads.message_event(self._state, kind, channel, message))

    def send_event(self, payload: JsonObject) -> None:
        """Deliver an `events_api` payload in the background; nobody waits for it."""

        async def deliver() -> None:
            delivery = await self._socket_mode.deliver("events_api", payload, accepts_response=False)
            if delivery.error:
                logger.info("event %s was not acknowledged: %s", payload["event_id"], delivery.error)

        task = asyncio.create_task(deliver())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_command(
        self, person: SeedUser, channel: Channel, command: tuple[str, str], thread_ts: str | None
    ) -> Outcome:
        name, text = command
        if thread_ts is not None:
            said = f"{name} is not supported in threads. Sorry! Write it in the channel instead."
            return self._failed(person, channel, said, "not_supported_in_threads", thread_ts=thread_ts)
        if self._state.commands_declared and name not in self._state.commands:
            known = ", ".join(f"`{entry}`" for entry in sorted(self._state.commands))
            return self._failed(
                person,
                channel,
                f"`{name}` is not a valid command. This app has {known or 'none'}.",
                "unknown_command",
            )
        key = self._grants.new_response(user=person.id, channel=channel.id, message_ts=None)
        payload = payloads.slash_command(
            self._state,
            user=person,
            channel=channel,
            command=name,
            text=text,
            trigger_id=self._grants.new_trigger(person.id),
            response_url=self._answers.url(key),
        )
        delivery = await self._socket_mode.deliver("slash_commands", payload, accepts_response=True)
        return self._command_outcome(person, channel, name, delivery)

    def _command_outcome(self, person: SeedUser, channel: Channel, name: str, delivery: Delivery) -> Outcome:
        if delivery.error:
            said = f"{name} failed: {self._why(delivery)}"
            return self._failed(person, channel, said, delivery.error, waited_s=delivery.waited_s)
        outcome = Outcome(kind="command", waited_s=delivery.waited_s)
        if delivery.payload.get("text") or delivery.payload.get("blocks"):
            grant = ResponseGrant(person.id, channel.id, None, expires=0.0)
            try:
                message = self._answers.post(grant, delivery.payload)
            except BlocksError as error:
                said = f"{name} answered with blocks that Slack refuses: {error}"
                return self._failed(person, channel, said, error.code, waited_s=delivery.waited_s)
            outcome.notes.append(self._state.message_json(message))
        return outcome

    def _why(self, delivery: Delivery) -> str:
        app = self._state.seed.app.name
        if delivery.error == "dispatch_failed":
            return f'{app} did not respond (error "dispatch_failed": the app is not connected). Is the bot running?'
        return f'{app} did not respond within {delivery.waited_s:.0f} s (error "operation_timeout").'

    def _failed(
        self,
        person: SeedUser,
        channel: Channel,
        text: str,
        code: str,
        *,
        thread_ts: str | None = None,
        waited_s: float = 0.0,
    ) -> Outcome:
        note = self.tell_privately(channel.id, person.id, text, thread_ts=thread_ts)
        return Outcome(kind="refused", error=code, waited_s=waited_s, notes=[self._state.message_json(note)])

    def tell_privately(
        self, channel_id: str, user_id: str, text: str, *, thread_ts: str | None = None
    ) -> Message:
        """Show `text` to one person, as Slackbot does."""
        note = Message(
            channel=channel_id,
            ts=self._state.new_ts(),
            user=SLACKBOT,
            text=text,
            thread_ts=thread_ts,
            visible_to=user_id,
        )
        self._state.save_message(note)
        return note

    async def press(
        self,
        *,
        user: str,
        channel: str,
        ts: str,
        action_id: str,
        block_id: str | None = None,
        selected: str | None = None,
    ) -> Outcome:
        """Press a button, or choose the option whose value is `selected`, in a message as `user`.

        Raises ActError where there is no such message or element, or where the person cannot see it.
        """
        person, place = self._who_and_where(user, channel)
        message = self._state.message(place.id, ts)
        if message is None or message.visible_to not in (None, person.id):
            raise ActError(f"there is no message {ts} that {person.name} can see here; it may be gone", 404)
        action = _action(message, action_id, block_id, selected)
        if action is None:
            raise ActError(
                f"the message no longer has the button {action_id!r}; it was edited meanwhile", 409
            )
        key = self._grants.new_response(user=person.id, channel=place.id, message_ts=message.ts)
        payload = payloads.block_actions(
            self._state,
            user=person,
            channel=place,
            message=message,
            action=action,
            trigger_id=self._grants.new_trigger(person.id),
            response_url=self._answers.url(key),
        )
        delivery = await self._socket_mode.deliver("interactive", payload, accepts_response=False)
        if delivery.error:
            said = f"The button did nothing: {self._why(delivery)}"
            return self._failed(
                person,
                place,
                said,
                delivery.error,
                thread_ts=message.thread_ts,
                waited_s=delivery.waited_s,
            )
        return Outcome(kind="press", ts=message.ts, waited_s=delivery.waited_s)

    # modals

    async def submit_view(self, *, user: str, view_id: str, values: JsonObject) -> JsonObject:
        """Submit a modal with `values` (block id -> action id -> value object).

        Gives the app's `response_action` object, empty when it only acknowledged. Raises ActError.
        """
        person = self._state.user_by_name(user)
        view = self._state.views.get(view_id)
        if person is None or view is None:
            raise ActError(f"there is no open view {view_id} for {user!r}", 404)
        submitted = {**view, "state": {"values": values}}
        payload = payloads.view_interaction(
            self._state,
            kind="view_submission",
            user=person,
            view=submitted,
            trigger_id=self._grants.new_trigger(person.id),
        )
        delivery = await self._socket_mode.deliver("interactive", payload, accepts_response=True)
        if delivery.error:
            raise ActError(f"the form was not taken: {self._why(delivery)}", 504)
        action = delivery.payload.get("response_action")
        if action in (None, "", "clear"):
            self._state.views.pop(view_id, None)
            self._state.announce({"type": "view", "user": person.id, "view": None})
        elif action in ("update", "push") and isinstance(delivery.payload.get("view"), dict):
            kept = {**view, **delivery.payload["view"], "id": view_id}
            self._state.views[view_id] = kept
            self._state.announce({"type": "view", "user": person.id, "view": kept})
        return delivery.payload

    async def close(self) -> None:
        """End deliveries that are still on their way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _action(
    message: Message, action_id: str, block_id: str | None, selected: str | None
) -> JsonObject | None:
    """The `actions[0]` object of a press, None where the message has no such element."""
    for block in message.blocks:
        if block_id is not None and block.get("block_id") != block_id:
            continue
        elements = [*block.get("elements", [])] if block.get("type") == "actions" else []
        if isinstance(block.get("accessory"), dict):
            elements.append(block["accessory"])
        for element in elements:
            if element.get("action_id") == action_id:
                return _pressed(element, block, selected)
    return None


def _pressed(element: JsonObject, block: JsonObject, selected: str | None) -> JsonObject | None:
    action: JsonObject = {
        "type": element["type"],
        "action_id": element["action_id"],
        "block_id": block["block_id"],
    }
    if element["type"] == "button":
        return action | {name: element[name] for name in ("text", "value", "style") if name in element}
    options = element.get("options") or [
        option for group in element.get("option_groups", []) for option in group.get("options", [])
    ]
    chosen = next((option for option in options if option.get("value") == selected), None)
    return action | {"selected_option": chosen} if chosen else None
