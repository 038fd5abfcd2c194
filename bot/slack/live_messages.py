"""Live messages: what Slack shows of a run follows its rows, within the rate budget, and never ends behind them.

A reconciler: each pass renders a run as its rows stand and posts or edits only where Slack shows something else. So a restart,
a lost answer or a 429 needs no special case, and the final state always goes out. Each run has one message; notes and
pictures go into its thread, each once.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from aiohttp import ClientError
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient

from bot.incidents.incidents import Incidents
from bot.presenter.message import Message
from bot.presenter.notes import override_shout, reminder_at, thread_notes
from bot.presenter.run_message import run_message
from bot.presenter.verdict_card import verdict_of
from bot.presenter.view import View, diagnoses
from bot.runs.runs import Runs
from bot.settings.model import SlackSettings
from bot.slack.edit_budget import EditBudget
from bot.slack.thread_posts import (
    NOTE_EVENT,
    REFUSED_BLOCKS,
    RUN_EVENT,
    file_title,
    find_posts,
    metadata,
    post,
)
from bot.store.records import ArtifactRecord, Place, RunRecord, RunStatus, UserError
from bot.store.store import Store
from gpu_actions.models import VerdictKind

log = structlog.get_logger()

REFRESH_S = 5.0
"""A run at work is rendered again this often even when no row changed: its seconds go on."""
RETRY_S = 5.0
GIVE_UP_S = 600.0
LOOK_BACK_S = 3 * 86_400
MAX_TEXT_ONLY = 3000

Failure = (SlackApiError, SlackClientError, ClientError, OSError, TimeoutError)


@dataclass
class _Shown:
    """What this process knows of a run's posts."""

    digest: str = ""
    edited_at: float = 0.0
    edits: int = 0
    looked: bool = False
    notes: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)
    failing_since: float | None = None
    retry_at: float = 0.0
    ended: bool = False


class LiveMessages:
    """Keeps Slack in step with the runs. `view` gives the view of the moment; run `run()` as a task until the end."""

    def __init__(
        self,
        client: AsyncWebClient,
        *,
        runs: Runs,
        store: Store,
        incidents: Incidents,
        settings: SlackSettings,
        view: Callable[[], View],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._runs = runs
        self._store = store
        self._incidents = incidents
        self._interval_s = settings.edit_interval_s
        self._budget = EditBudget(settings.edits_per_minute, clock=clock)
        self._view = view
        self._clock = clock
        self._shown: dict[str, _Shown] = {}
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._started_at = store.clock()

    async def run(self) -> None:
        """Follow the changes until cancelled; first take up what was left behind before this start."""
        stream = self._runs.changes()
        follow = asyncio.create_task(self._follow(stream))
        try:
            self._dirty.update(await asyncio.to_thread(self._left_behind))
            while True:
                pause_s = await self._pass()
                with contextlib.suppress(TimeoutError):
                    # not wait_for: until Python 3.12 it loses a cancellation that comes together with the wake
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            follow.cancel()
            stream.close()

    async def _follow(self, stream: "object") -> None:
        async for run_id in stream:  # type: ignore[attr-defined]
            self._dirty.add(run_id)
            self._wake.set()

    def _left_behind(self) -> set[str]:
        """Runs whose last state may not stand in Slack: all that are active, and ended ones not marked as shown."""
        oldest = self._store.clock() - LOOK_BACK_S
        recent = [run for run in self._store.list(limit=200) if run.created_at >= oldest]
        return {
            run.id for run in recent if not (run.status.final and self._store.deliveries.seen(_end_key(run)))
        }

    async def _pass(self) -> float:
        """Show what is due. Gives the seconds until the next thing is."""
        now = self._clock()
        due: list[tuple[bool, float, RunRecord]] = []
        pause_s = REFRESH_S
        for run_id in tuple(self._dirty):
            run = await asyncio.to_thread(self._store.get, run_id)
            if run is None:
                self._dirty.discard(run_id)
                continue
            shown = self._shown.setdefault(run_id, _Shown())
            wait_s = max(shown.retry_at - now, 0.0)
            if shown.digest and not run.status.final:
                wait_s = max(wait_s, shown.edited_at + self._interval_s - now)
            if wait_s > 0:
                pause_s = min(pause_s, wait_s)
            else:
                due.append((not run.status.final, shown.edited_at, run))
        for _, _, run in sorted(due, key=lambda entry: entry[:2]):
            wait_s = self._budget.wait_s()
            if wait_s > 0 and not run.status.final:
                pause_s = min(pause_s, wait_s)
                continue
            if run.status.final and wait_s > 0:
                await asyncio.sleep(min(wait_s, REFRESH_S))
            self._dirty.discard(run.id)
            if not await self._show(run):
                self._dirty.add(run.id)
                pause_s = min(pause_s, RETRY_S)
        await self._refresh_active()
        return max(pause_s, 0.02)

    async def _refresh_active(self) -> None:
        """Runs at work, and gates whose reminder is due, are looked at again though no row changed."""
        for run_id, shown in self._shown.items():
            if (
                shown.digest
                and not shown.digest.startswith("final")
                and self._clock() - shown.edited_at >= REFRESH_S
            ):
                self._dirty.add(run_id)

    async def _show(self, run: RunRecord) -> bool:
        """Bring one run's posts into step. False when it must be tried again."""
        shown = self._shown[run.id]
        try:
            await self._look_once(run, shown)
            await self._message(run, shown)
            await self._open_incident(run)
            await self._notes(run, shown)
            await self._files(run, shown)
        except Failure as error:
            return self._failed(run, shown, error)
        shown.failing_since = None
        if run.status.final:
            await asyncio.to_thread(self._store.deliveries.first_time, _end_key(run))
            shown.ended = True
        return True

    def _failed(self, run: RunRecord, shown: _Shown, error: BaseException) -> bool:
        now = self._clock()
        pause_s = _retry_after(error)
        if pause_s is not None:
            self._budget.close_for(pause_s)
        shown.failing_since = shown.failing_since if shown.failing_since is not None else now
        shown.retry_at = now + (pause_s if pause_s is not None else RETRY_S)
        log.warning("slack refused or did not answer", run=run.id, error=repr(error)[:300])
        if now - shown.failing_since > GIVE_UP_S and run.status.final:
            log.error("the end of a run could not be shown in Slack", run=run.id, error=repr(error)[:300])
            return True
        return False

    async def _look_once(self, run: RunRecord, shown: _Shown) -> None:
        """After a restart, find what the process before had posted. A run younger than this process needs no look."""
        if shown.looked:
            return
        if run.created_at < self._started_at:
            found = await find_posts(self._client, run)
            shown.notes, shown.files = found.notes, found.files
            if found.message_ts is not None and run.message_ts is None:
                await asyncio.to_thread(self._store.set_message_ts, run.id, found.message_ts)
        shown.looked = True

    async def _message(self, run: RunRecord, shown: _Shown) -> None:
        message = run_message(run, self._view())
        digest = hashlib.sha256(repr((message.text, message.blocks)).encode()).hexdigest()
        if digest == shown.digest:
            shown.edited_at = self._clock()
            return
        message_ts = (await asyncio.to_thread(self._store.row, run.id)).message_ts
        shown.edits += 1
        stamped = message.stamped(f"{run.id}.{run.version}.{shown.edits}")
        if message_ts is None:
            ts = await post(
                self._client,
                stamped,
                channel=run.place.channel,
                thread_ts=run.place.thread_ts,
                about=metadata(RUN_EVENT, run.id),
            )
            await asyncio.to_thread(self._store.set_message_ts, run.id, ts)
        else:
            self._budget.spend()
            await self._update(run, message_ts, stamped)
        shown.digest = digest
        shown.edited_at = self._clock()

    async def _update(self, run: RunRecord, ts: str, message: Message) -> None:
        try:
            await self._client.chat_update(
                channel=run.place.channel,
                ts=ts,
                text=message.text,
                blocks=list(message.blocks),
                metadata=metadata(RUN_EVENT, run.id),
            )
        except SlackApiError as error:
            code = str(error.response.get("error", ""))
            if code == "message_not_found":  # somebody deleted it: the state must stand somewhere
                await asyncio.to_thread(self._store.update_run, run.id, message_ts=None)
                raise
            if code not in REFUSED_BLOCKS:
                raise
            log.error("slack refused the blocks; the text stands alone", run=run.id, answer=str(error)[:500])
            await self._client.chat_update(
                channel=run.place.channel,
                ts=ts,
                text=message.text[:MAX_TEXT_ONLY],
                blocks=[],
                metadata=metadata(RUN_EVENT, run.id),
            )

    async def _open_incident(self, run: RunRecord) -> None:
        """A card that says fall back is the root of its host's incident, unless one is open already."""
        verdict = verdict_of(run)
        if not (diagnoses(run.action) and run.status is RunStatus.SUCCEEDED and verdict is not None):
            return
        if verdict.verdict is not VerdictKind.FALL_BACK or run.incident_id is not None:
            return
        incident = await asyncio.to_thread(self._incidents.active, run.host)
        if incident is None:
            root = run.place.thread_ts or (await asyncio.to_thread(self._store.row, run.id)).message_ts
            with contextlib.suppress(UserError):  # opened by somebody else in this moment
                incident = await asyncio.to_thread(
                    lambda: self._incidents.open(
                        host=run.host,
                        title=f"{verdict.cause} on {run.host}",
                        place=Place(channel=run.place.channel, thread_ts=root),
                        by=run.requester,
                        cause=verdict.cause,
                    )
                )
        if incident is not None:
            await asyncio.to_thread(self._incidents.join, incident.id, run.id)

    async def _notes(self, run: RunRecord, shown: _Shown) -> None:
        root = run.place.thread_ts or (await asyncio.to_thread(self._store.row, run.id)).message_ts
        for note in thread_notes(run, self._view()):
            await self._note(run, shown, note.key, note.message, thread_ts=root)
        shout = override_shout(run, self._view())
        if shout is not None:
            await self._note(run, shown, "override", shout, thread_ts=None)

    async def _note(
        self, run: RunRecord, shown: _Shown, key: str, message: Message, *, thread_ts: str | None
    ) -> None:
        kept = f"note:{run.id}:{key}"
        if key in shown.notes or await asyncio.to_thread(self._store.deliveries.seen, kept):
            return
        await post(
            self._client,
            message,
            channel=run.place.channel,
            thread_ts=thread_ts,
            about=metadata(NOTE_EVENT, run.id, key),
        )
        shown.notes.add(key)
        await asyncio.to_thread(self._store.deliveries.first_time, kept)

    async def _files(self, run: RunRecord, shown: _Shown) -> None:
        """Upload the pictures. A failed upload is logged and not tried for ever: the link stands in the message already."""
        root = run.place.thread_ts or (await asyncio.to_thread(self._store.row, run.id)).message_ts
        for record in run.artifacts:
            if not record.artifact.inline or record.slack_file_id is not None:
                continue
            title = file_title(record)
            file_id = shown.files.get(title) or await self._upload(run, record, title, root)
            if file_id:
                shown.files[title] = file_id
                await asyncio.to_thread(self._store.set_file_id, record.id, file_id)

    async def _upload(self, run: RunRecord, record: ArtifactRecord, title: str, root: str | None) -> str:
        if not record.artifact.path.is_file():
            return ""
        try:
            answer = await self._client.files_upload_v2(
                file=str(record.artifact.path),
                filename=record.artifact.name,
                title=title,
                channel=run.place.channel,
                thread_ts=root,
            )
        except SlackApiError as error:
            if _retry_after(error) is not None:
                raise
            log.error("a picture could not be uploaded; its link stands", run=run.id, error=str(error)[:300])
            return ""
        files = answer.get("files") or [answer.get("file") or {}]
        return str(files[0].get("id", ""))


def _end_key(run: RunRecord) -> str:
    return f"shown:{run.id}:{run.status.value}"


def _retry_after(error: BaseException) -> float | None:
    """The seconds that a 429 asks for, or None for any other failure."""
    if not isinstance(error, SlackApiError) or error.response.status_code != 429:
        return None
    try:
        return float(error.response.headers.get("Retry-After", "1"))
    except ValueError:
        return 1.0


__all__ = ["LiveMessages", "reminder_at"]
