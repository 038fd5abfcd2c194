"""One request of one person, whichever way it came (slash command, button, mention), and the frame of every listener.

`guarded` is that frame: refuse what arrived too late, drop what was delivered twice, and answer every error with words: a
person's mistake in one line, an error of ours with an id that stands in the log.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog
from aiohttp import ClientError
from slack_bolt.async_app import AsyncBoltContext
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from bot.presenter import answers
from bot.presenter.message import Message
from bot.presenter.view import View
from bot.services import Services
from bot.slack.thread_posts import REFUSED_BLOCKS
from bot.store.records import Person, UserError

log = structlog.get_logger()

ACK_LIMIT_S = 3.0
"""Slack tells the user that a command failed when it is not acknowledged within this time."""
LOADING_AFTER_S = 1.0
"""Work that takes longer than this says so."""
ARRIVED = "gpu_oncall_arrived"

Answer = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Call:
    """Who asks, where, and how to answer only them. `key` names this request for ever: a second delivery has the same."""

    services: Services
    client: AsyncWebClient
    person: Person
    channel: str
    thread_ts: str | None
    key: str
    what: str
    answer: Answer
    arrived: float | None = None

    @property
    def view(self) -> View:
        return self.services.view()

    def about(self, what: str) -> "Call":
        """The same request under a name that says more, for its error messages."""
        return replace(self, what=what)

    @contextlib.asynccontextmanager
    async def loading(self, text: str) -> AsyncIterator[None]:
        """Tell the person that work goes on, once it has taken longer than a second."""

        async def later() -> None:
            await asyncio.sleep(LOADING_AFTER_S)
            await self.answer(answers.working(text))

        task = asyncio.create_task(later())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def stamp_arrival(context: AsyncBoltContext, next: Callable[[], Awaitable[Any]]) -> None:
    """Bolt middleware that notes when a request arrived (monotonic seconds); give it as `before_authorize` to see it first."""
    context.setdefault(ARRIVED, time.monotonic())
    await next()


async def guarded(call: Call, work: Callable[[Call], Awaitable[None]]) -> None:
    """Run the work of one request that is acknowledged already, in the frame that this module's docstring tells."""
    late = time.monotonic() - call.arrived if call.arrived is not None else 0.0
    try:
        if late > ACK_LIMIT_S:
            log.warning("request came too late and is refused", what=call.what, late_s=round(late, 2))
            await call.answer(answers.too_late(late, call.what))
            return
        if not await first_time(call):
            log.info("request was delivered before, dropped", what=call.what, key=call.key)
            return
        await work(call)
    except UserError as error:
        await call.answer(answers.refused(str(error)))
    except Exception as error:
        error_id = f"e-{secrets.token_hex(3)}"
        log.error("request failed", what=call.what, error_id=error_id, user=call.person.id, exc_info=error)
        await call.answer(answers.broken(error_id, call.what))


async def first_time(call: Call) -> bool:
    """Whether this request is seen for the first time, decided durably."""
    return await asyncio.to_thread(call.services.store.deliveries.first_time, call.key)


def respond_answer(
    respond: Callable[..., Awaitable[Any]], thread_ts: str | None, otherwise: Answer
) -> Answer:
    """Answer through the request's response_url: it works also where the bot is no member.

    It works five times within half an hour. An answer that it does not take goes the way of `otherwise`.
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
        except (SlackClientError, ClientError, OSError, TimeoutError) as error:
            log.warning("the response address does not answer", error=repr(error))
        else:
            if result.status_code == 200:
                return
            log.warning("the response address refused an answer", status=result.status_code, body=result.body)
        await otherwise(message)

    return answer


def ephemeral_answer(client: AsyncWebClient, channel: str, user: str, thread_ts: str | None) -> Answer:
    """Answer in a conversation so that only one person sees it."""

    async def answer(message: Message, *, with_blocks: bool = True) -> None:
        try:
            await client.chat_postEphemeral(
                channel=channel,
                user=user,
                text=message.text,
                blocks=list(message.blocks) if with_blocks else None,
                thread_ts=thread_ts,
            )
        except (SlackApiError, SlackClientError, ClientError, OSError, TimeoutError) as error:
            log.error("an answer could not be sent", text=message.text, error=repr(error))
            refused = isinstance(error, SlackApiError) and error.response.get("error") in REFUSED_BLOCKS
            if refused and with_blocks:
                await answer(message, with_blocks=False)

    return answer


async def permalink(client: AsyncWebClient, channel: str, message_ts: str | None) -> str:
    """The address of a message; empty where there is none yet or Slack does not give it."""
    if message_ts is None:
        return ""
    try:
        answer = await client.chat_getPermalink(channel=channel, message_ts=message_ts)
    except (SlackApiError, SlackClientError, ClientError, OSError, TimeoutError) as error:
        log.info("no permalink", channel=channel, ts=message_ts, error=repr(error))
        return ""
    return str(answer.get("permalink") or "")
