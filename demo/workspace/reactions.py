"""A reaction to a message, put there by a person or by the app, and its event."""

from demo.workspace import payloads
from demo.workspace.records import Channel, Message
from demo.workspace.socket_mode import SocketMode
from demo.workspace.state import State


def add_reaction(
    state: State, socket_mode: SocketMode, user_id: str, place: Channel, message: Message, name: str
) -> bool:
    """Put a reaction on a message and tell the app. Return False if this user has put it there already.

    As in Slack, the app that subscribes to `reaction_added` gets it for its own reactions too.
    """
    entry = next((found for found in message.reactions if found["name"] == name), None)
    if entry is None:
        entry = {"name": name, "users": [], "count": 0}
        message.reactions.append(entry)
    if user_id in entry["users"]:
        return False
    entry["users"].append(user_id)
    entry["count"] += 1
    state.save_message(message)
    app = state.team.app
    wanted = (app.events is None or "reaction_added" in app.events) and "reactions:read" in app.scopes
    if wanted and state.bot_user in place.members:
        socket_mode.deliver_event(payloads.reaction(state, user_id, place, message, name))
    return True


def remove_reaction(state: State, user_id: str, message: Message, name: str) -> bool:
    """Take a user's reaction away. Return False if this user has not put it there."""
    entry = next((found for found in message.reactions if found["name"] == name), None)
    if entry is None or user_id not in entry["users"]:
        return False
    entry["users"].remove(user_id)
    entry["count"] -= 1
    message.reactions = [found for found in message.reactions if found["count"]]
    state.save_message(message)
    return True
