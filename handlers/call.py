"""One request from Slack and the steps every request goes through, whether it is a command, a button or a mention.

`guarded` refuses a request that arrived too late, drops a repeated delivery, and answers every error: a user's mistake in
one line, an internal error with an id that is also in the log.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from bot.presenter import private_answers
from bot.presenter.message import Message
from bot.presenter.render_context import RenderContext
from bot.services import Services
from bot.slack.posts import REFUSED_BLOCKS, SLACK_FAILURES
from bot.store.records import Person, TimelineEntry, UserError
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

LOADING_AFTER_S = 1.0
"""Work that takes longer than this shows a progress line."""

Answer = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person sent. `key` is the same for every delivery of one request; `text` is the words, or a button's value.

    `trigger_id` opens one modal within 3 s; mentions and messages have none.
    """

    person: Person
    channel: str
    thread_ts: str | None = None
    key: str
    what: str
    text: str = ""
    sent_at: float | None = None
    trigger_id: str = ""
    what_was_asked: bool = True
    """False for an event that asks for nothing, such as opening the Home tab."""
    from_app: bool = False
    """True for the words of another app, which gives no orders."""

    @property
    def words(self) -> str:
        """Return what was asked in one line, for the audit trail."""
        return f"{self.what} {self.text}".strip()


@dataclass(frozen=True, kw_only=True)
class Call(Request):
    """A request with what is needed to serve it. `answer` reaches only the person who asked."""

    services: Services
    client: AsyncWebClient
    answer: Answer

    @property
    def context(self) -> RenderContext:
        return self.services.render_context()

    def about(self, what: str) -> "Call":
        """Return the same call under a more precise name for its error messages."""
        return replace(self, what=what)

    def slash(self, name: str, words: str = "") -> str:
        """Return a command as a person types it, under the name it has in the settings."""
        return f"{self.services.settings.slack.command(name)} {words}".strip()

    @contextlib.asynccontextmanager
    async def loading(self, text: str) -> AsyncIterator[None]:
        """Answer with a progress line if the block takes longer than a second."""

        async def later() -> None:
            await asyncio.sleep(LOADING_AFTER_S)
            await self.answer(private_answers.working(text))

        task = asyncio.create_task(later())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def guarded(
    call: Call, work: Callable[[Call, str], Awaitable[None]], *, late_s: float, limit_s: float
) -> None:
    """Run the work of an acknowledged request. Never raises."""
    try:
        if late_s > limit_s:
            log.warning("request refused: it arrived too late", what=call.what, late_s=round(late_s, 2))
            await call.answer(private_answers.too_late(late_s, call.what))
            await record(call, "request.refused", f"{call.what} arrived {late_s:.0f} s late")
        elif not await asyncio.to_thread(
            call.services.store.deliveries.first_time, call.key, _entry(call, "request", call.words)
        ):
            log.info("request dropped: it was delivered before", what=call.what, key=call.key)
        else:
            await work(call, call.text)
    except UserError as error:
        await call.answer(private_answers.refused(str(error)))
        await record(call, "request.refused", f"{call.words}: {error}")
    except Exception as error:
        error_id = f"e-{secrets.token_hex(3)}"
        log.error("request failed", what=call.what, error_id=error_id, user=call.person.id, exc_info=error)
        await call.answer(private_answers.broken(error_id, call.what))


async def _first_time(call: Call) -> bool:
    entry = _entry(call, "request", call.words)
    return await asyncio.to_thread(call.services.store.deliveries.first_time, call.key, entry)


def _entry(call: Call, kind: str, text: str) -> TimelineEntry | None:
    """Return the audit entry of a request. Opening the Home tab asks for nothing and has none."""
    if not call.what_was_asked:
        return None
    data = {"channel": call.channel, "name": call.person.name}
    return TimelineEntry(
        at=call.services.store.clock(),
        host="",
        actor=call.person.id,
        kind=kind,
        text=redacted_head(text, 500),
        data=data,
    )


async def record(call: Call, kind: str, text: str) -> None:
    """Write what became of a request to the audit trail."""
    if (entry := _entry(call, kind, text)) is not None:
        await asyncio.to_thread(call.services.store.audit.record, entry)


def renamed_answer(answer: Answer, commands: Mapping[str, str]) -> Answer:
    """Answer with the slash commands as the settings name them."""

    async def renamed(message: Message) -> None:
        await answer(message.renamed(commands))

    return renamed


def respond_answer(
    respond: Callable[..., Awaitable[Any]], thread_ts: str | None, otherwise: Answer
) -> Answer:
    """Answer through the request's response_url, which works even where the bot is not a member.

    Slack accepts five answers within 30 minutes; any answer it refuses goes to `otherwise`.
    """

    async def answer(message: Message) -> None:
        extra = {"thread_ts": thread_ts} if thread_ts else {}
        try:
            result = await respond(
                text=message.text,
                blocks=list(message.blocks),
                response_type="ephemeral",
                replace_original=False,
                **extra,
            )
        except SLACK_FAILURES as error:
            log.warning("no answer from the response_url", error=repr(error))
        else:
            if result.status_code == 200:
                return
            log.warning("the response_url refused an answer", status=result.status_code, body=result.body)
        await otherwise(message)

    return answer


def ephemeral_answer(client: AsyncWebClient, channel: str, user: str, thread_ts: str | None) -> Answer:
    """Answer in a conversation so that only one person sees it."""

    async def answer(message: Message) -> None:
        try:
            await client.chat_postEphemeral(
                channel=channel,
                user=user,
                text=message.text,
                blocks=list(message.blocks) or None,
                thread_ts=thread_ts,
            )
        except SLACK_FAILURES as error:
            log.error("an answer could not be sent", text=message.text, error=repr(error))
            refused = isinstance(error, SlackApiError) and error.response.get("error") in REFUSED_BLOCKS
            if refused and message.blocks:
                await answer(message.simpler())

    return answer


async def permalink(client: AsyncWebClient, channel: str, message_ts: str | None) -> str:
    """Return the address of a message, or an empty string if Slack does not provide it."""
    if message_ts is None:
        return ""
    try:
        answer = await client.chat_getPermalink(channel=channel, message_ts=message_ts)
    except SLACK_FAILURES as error:
        log.info("no permalink", channel=channel, ts=message_ts, error=repr(error))
        return ""
    return str(answer.get("permalink") or "")
