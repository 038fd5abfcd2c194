"""A reaction of choice (`slack.record_reaction`) on a person's message takes the message into the incident's record."""

from typing import Any

from slack_sdk.errors import SlackApiError

from bot.presenter import incidents as texts
from bot.store.records import Person, Place, UserError
from gpu_actions.system.redact import redacted_head
from handlers.call import Call

LONGEST = 3000


async def record(call: Call, text: str) -> None:
    """Record the message `text` (its ts) with its author, once. The reaction may come late, and from anyone who sees it."""
    message = await _message(call, text)
    author = str(message.get("user") or "")
    if message.get("bot_id") or not author:
        raise UserError("I record what people write: my own messages are in the record already.")
    words = redacted_head(str(message.get("text") or "").strip(), LONGEST)
    if not words:
        raise UserError("That message has no text to record: use /incident note.")
    incidents = call.services.incidents
    thread = str(message.get("thread_ts") or text)
    incident = incidents.for_place(Place(channel=call.channel, thread_ts=thread)) or incidents.for_place(
        Place(channel=call.channel)
    )
    if incident is None:
        raise UserError("No incident is open in this channel, so nothing was recorded.")
    if incidents.quote(incident.id, by=Person(id=author), text=words, ts=text, chosen_by=call.person.id):
        await call.answer(texts.quoted(incident, words))


async def _message(call: Call, ts: str) -> dict[str, Any]:
    """Return a message, which may be a reply in a thread."""
    try:
        reply = await call.client.conversations_replies(
            channel=call.channel, ts=ts, oldest=ts, latest=ts, inclusive=True, limit=2
        )
    except SlackApiError as error:
        raise UserError(
            f"I cannot read that message ({error.response.get('error')}): invite me to this channel, or use /incident note."
        ) from error
    found = next((dict(one) for one in reply["messages"] if one["ts"] == ts), None)
    if found is None:
        raise UserError("I do not find that message any more; nothing was recorded.")
    return found
