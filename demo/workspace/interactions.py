"""What people do in the workspace (write, run a command, press a button, submit a form) and what comes of it.

Every act ends in something that the person can see: the app's answer, or a private note that says what went wrong.
"""

from dataclasses import dataclass

from demo.workspace import payloads
from demo.workspace.blocks import BlocksError
from demo.workspace.controls import chosen_action, missing_inputs
from demo.workspace.open_interactions import OpenInteractions
from demo.workspace.reactions import add_reaction, remove_reaction
from demo.workspace.records import Channel, JsonObject, Message
from demo.workspace.socket_mode import Delivery, SocketMode
from demo.workspace.state import SLACKBOT, State
from demo.workspace.team import User
from demo.workspace.transcript import message_lines
from demo.workspace.typed_text import slash_command_of, stored_text
from demo.workspace.view_checks import ViewError, checked_view, stored_view

MAX_TYPED_CHARACTERS = 40_000


class ActError(Exception):
    """Raised for an act that cannot be done at all: says what happened and what to do. `status` is for HTTP."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class ActResult:
    """The immediate result of an act, as the page and the terminal client receive it.

    `kind` is `message`, `command`, `press` or `refused`; `ok` is False if the app did not answer (`error` is Slack's error
    code); `ts` is the message written or pressed; `notes` are the plain texts shown to the person with it.
    """

    ok: bool
    kind: str
    ts: str | None = None
    error: str | None = None
    waited_ms: float = 0.0
    notes: tuple[str, ...] = ()


class Interactions:
    """Delivers what people do to the app, and says so when the app does not answer."""

    def __init__(self, state: State, socket_mode: SocketMode, interactions: OpenInteractions) -> None:
        self._state = state
        self._socket_mode = socket_mode
        self._interactions = interactions

    def _who_and_where(self, user: str, channel: str) -> tuple[User, Channel]:
        person = self._state.user_by_name(user)
        if person is None:
            known = self._state.user_names()
            raise ActError(f"there is no user {user!r} in this workspace; there are {known}", 404)
        if person.is_deactivated:
            raise ActError(f"{person.name} is deactivated and can do nothing in this workspace", 403)
        if channel.removeprefix("@") == self._state.team.app.name:
            if person.kind == "partner":
                raise ActError(
                    f"{person.name} belongs to another workspace and has no direct messages here", 403
                )
            if not self._state.team.app.has_messages_tab:
                raise ActError("sending messages to this app has been turned off", 403)
            return person, self._state.direct_channel(person.id)
        place = self._state.channel_by_name(channel)
        if place is None:
            known = self._state.channel_names()
            raise ActError(f"there is no channel {channel!r} in this workspace; there are {known}", 404)
        if person.id not in place.members:
            raise ActError(f"{person.name} is not a member of this conversation", 403)
        return person, place

    async def say(self, *, user: str, channel: str, text: str, thread_ts: str | None = None) -> ActResult:
        """Write a message or run a slash command as `user`. Raises ActError for an unknown user, channel or thread."""
        person, place = self._who_and_where(user, channel)
        typed = text.strip()
        if not typed:
            raise ActError("the message is empty; write something first")
        if len(typed) > MAX_TYPED_CHARACTERS:
            raise ActError(f"the message has {len(typed)} characters; Slack takes {MAX_TYPED_CHARACTERS}")
        parent = self._state.public_message(place.id, thread_ts)
        if thread_ts and parent is None:
            raise ActError(f"there is no thread {thread_ts} in {place.name or 'this conversation'}", 404)
        root_ts = (parent.thread_ts or parent.ts) if parent else None
        command = slash_command_of(typed)
        if command is not None:
            return await self._run_command(person, place, *command, root_ts)
        message = self._state.post(place.id, person.id, stored_text(self._state, typed), thread_ts=root_ts)
        if self._state.bot_user in place.members:
            is_mention = f"<@{self._state.bot_user}>" in message.text and not place.is_im
            for kind in ("message", "app_mention") if is_mention else ("message",):
                if self._state.team.app.subscribes(kind, in_dm=place.is_im):
                    event = payloads.message_event(self._state, kind, place, message)
                    self._socket_mode.deliver_event(event)
        return ActResult(ok=True, kind="message", ts=message.ts)

    async def react(self, *, user: str, channel: str, ts: str, name: str, away: bool = False) -> ActResult:
        """Put a reaction on a message as `user`, or take it `away`. Raises ActError for an unknown message, or one that has it
        already (or does not have it)."""
        person, place = self._who_and_where(user, channel)
        message = self._state.public_message(place.id, ts)
        if message is None:
            raise ActError(f"there is no message {ts} in {place.name or 'this conversation'}", 404)
        if away:
            if not remove_reaction(self._state, person.id, message, name):
                raise ActError(f"{person.name} has not put :{name}: there")
        elif not add_reaction(self._state, self._socket_mode, person.id, place, message, name):
            raise ActError(f"{person.name} has put :{name}: there already")
        return ActResult(ok=True, kind="reaction", ts=ts)

    async def open_home(self, *, user: str) -> ActResult:
        """Open the app's Home tab as `user`. Raises ActError if the app has none."""
        person, place = self._who_and_where(user, "@" + self._state.team.app.name)
        if not self._state.team.app.has_home_tab:
            raise ActError("this app has no Home tab", 404)
        events = self._state.team.app.events
        if events is None or "app_home_opened" in events:
            self._socket_mode.deliver_event(payloads.home_opened(self._state, place, person.id))
        return ActResult(ok=True, kind="home")

    async def _run_command(
        self, person: User, channel: Channel, name: str, text: str, thread_ts: str | None
    ) -> ActResult:
        if thread_ts is not None:
            reason = f"{name} is not supported in threads. Sorry! Write it in the channel instead."
            return self._failed(person, channel, reason, "not_supported_in_threads", thread_ts)
        if person.kind == "partner" or "commands" not in self._state.team.app.scopes:
            reason = f"`{name}` is not available to you: apps' commands are for members of their workspace."
            return self._failed(person, channel, reason, "unknown_command")
        if self._state.commands_declared and name not in self._state.commands:
            known = ", ".join(f"`{entry}`" for entry in sorted(self._state.commands))
            reason = f"`{name}` is not a valid command. This app has {known or 'none'}."
            return self._failed(person, channel, reason, "unknown_command")
        interaction = self._interactions.begin(person, channel)
        payload = payloads.slash_command(self._state, interaction, channel, name, text)
        delivery = await self._socket_mode.deliver("slash_commands", payload, accepts_response=True)
        if delivery.error:
            reason = f"{name} failed: {self._why(delivery)}"
            return self._failed(person, channel, reason, delivery.error, waited_ms=delivery.waited_ms)
        notes: tuple[str, ...] = ()
        if delivery.payload.get("text") or delivery.payload.get("blocks"):
            try:
                notes = (self._note(self._interactions.post(person, channel, delivery.payload)),)
            except BlocksError as error:
                reason = f"{name} answered with blocks that Slack refuses: {error}"
                return self._failed(person, channel, reason, error.code, waited_ms=delivery.waited_ms)
        return ActResult(ok=True, kind="command", waited_ms=delivery.waited_ms, notes=notes)

    async def press(
        self,
        *,
        user: str,
        channel: str,
        ts: str,
        action_id: str,
        block_id: str | None = None,
        selected: str | None = None,
    ) -> ActResult:
        """Press a button, or choose the option whose value is `selected`, in a message as `user`.

        Raises ActError if there is no such message or element, or if the person cannot see it.
        """
        person, place = self._who_and_where(user, channel)
        message = self._state.message(place.id, ts)
        if message is None or message.visible_to not in (None, person.id):
            raise ActError(f"there is no message {ts} that {person.name} can see here; it may be gone", 404)
        action = chosen_action(message.blocks, action_id, block_id, selected)
        if action is None:
            raise ActError(
                f"the message no longer has the button {action_id!r}; it was edited meanwhile", 409
            )
        interaction = self._interactions.begin(person, place, message.ts)
        payload = payloads.block_actions(self._state, interaction, place, message, action)
        delivery = await self._socket_mode.deliver("interactive", payload, accepts_response=False)
        waited_ms = delivery.waited_ms
        if delivery.error:
            reason = f"The button did nothing: {self._why(delivery)}"
            return self._failed(person, place, reason, delivery.error, message.thread_ts, waited_ms=waited_ms)
        return ActResult(ok=True, kind="press", ts=message.ts, waited_ms=waited_ms)

    async def press_view(
        self,
        *,
        user: str,
        view_id: str,
        action_id: str,
        block_id: str | None = None,
        selected: str | None = None,
    ) -> ActResult:
        """Press a button of a modal or of the Home tab as `user`. Raises ActError if it is not there."""
        person, view = self._open_view(user, view_id)
        action = chosen_action(view["blocks"], action_id, block_id, selected)
        if action is None:
            raise ActError(f"the view no longer has the button {action_id!r}; it was updated meanwhile", 409)
        payload = payloads.view_actions(self._state, self._interactions.begin(person), view, action)
        delivery = await self._socket_mode.deliver("interactive", payload, accepts_response=False)
        if delivery.error:
            raise ActError(f"The button did nothing: {self._why(delivery)}", 504)
        return ActResult(ok=True, kind="press", waited_ms=delivery.waited_ms)

    def _open_view(self, user: str, view_id: str) -> tuple[User, JsonObject]:
        person = self._state.user_by_name(user)
        view = self._state.views.get(view_id)
        if person is None or view is None or self._state.view_owner[view_id] != person.id:
            raise ActError(f"there is no open view {view_id} for {user!r}", 404)
        if person.is_deactivated:
            raise ActError(f"{person.name} is deactivated and can do nothing in this workspace", 403)
        return person, view

    async def submit_view(self, *, user: str, view_id: str, values: JsonObject) -> JsonObject:
        """Submit a modal with `values` (block id -> action id -> value object).

        Returns the app's `response_action` object, empty if it only acknowledged, or `errors` for a required field that is
        empty, which the client itself refuses. Raises ActError.
        """
        person, view = self._open_view(user, view_id)
        if missing := missing_inputs(view["blocks"], values):
            return {"response_action": "errors", "errors": missing}
        submitted = {**view, "state": {"values": values}}
        payload = payloads.view_submission(self._state, self._interactions.begin(person), submitted)
        delivery = await self._socket_mode.deliver("interactive", payload, accepts_response=True)
        if delivery.error:
            raise ActError(f"We had some trouble connecting. Try again? {self._why(delivery)}", 504)
        answer, action = delivery.payload, delivery.payload.get("response_action")
        if action == "clear":
            for open_view in self._state.modals(person.id):
                self._state.set_view(str(open_view["id"]), None, person.id)
        elif action in ("update", "push"):
            self._replaced(person, view, answer)
        elif action != "errors":
            self._state.set_view(view_id, None, person.id)
        return answer

    def _replaced(self, person: User, view: JsonObject, answer: JsonObject) -> None:
        """Show the view of a `response_action`, checked as `views.update` and `views.push` check it."""
        sent = answer.get("view")
        try:
            checked = checked_view(sent if isinstance(sent, dict) else {}, "modal")
        except ViewError as error:
            raise ActError(f"the app answered with a view that Slack refuses: {error}", 502) from error
        is_update = answer["response_action"] == "update"
        view_id = str(view["id"]) if is_update else self._state.new_id("V")
        previous = view["previous_view_id"] if is_update else view["id"]
        root = str(view["root_view_id"])
        stored_view(self._state, checked, user=person.id, view_id=view_id, root=root, previous=previous)

    async def close_view(self, *, user: str, view_id: str) -> ActResult:
        """Close a modal as `user`; the app hears of it if the view says `notify_on_close`."""
        person, view = self._open_view(user, view_id)
        self._state.set_view(view_id, None, person.id)
        if view.get("notify_on_close"):
            payload = payloads.view_closed(self._state, self._interactions.begin(person), view)
            await self._socket_mode.deliver("interactive", payload, accepts_response=False)
        return ActResult(ok=True, kind="close")

    def _why(self, delivery: Delivery) -> str:
        app = self._state.team.app.name
        if delivery.error == "dispatch_failed":
            return f'{app} did not respond (error "dispatch_failed": the app is not connected). Is the bot running?'
        return f'{app} did not respond within {delivery.waited_ms / 1000:.0f} s (error "operation_timeout").'

    def _failed(
        self,
        person: User,
        channel: Channel,
        reason: str,
        code: str,
        thread_ts: str | None = None,
        *,
        waited_ms: float = 0.0,
    ) -> ActResult:
        """Show the reason to the person alone, as Slackbot does."""
        message = self._state.post(channel.id, SLACKBOT, reason, thread_ts=thread_ts, visible_to=person.id)
        notes = (self._note(message),)
        return ActResult(ok=False, kind="refused", error=code, waited_ms=waited_ms, notes=notes)

    def _note(self, message: Message) -> str:
        return "\n".join(message_lines(self._state.message_json(message), self._state.names_by_id()))
