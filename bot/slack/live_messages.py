"""Keep each run's posts in Slack up to date with its record, within the rate limits, including its final state.

A reconciler: each pass renders the runs that changed and posts or edits only what differs. A restart, a lost answer or a
429 therefore needs no special case.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import KW_ONLY, dataclass

import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient

from bot.incidents.incidents import Incidents
from bot.presenter.render_context import RenderContext
from bot.runs.runs import Runs
from bot.settings.model import SlackSettings
from bot.slack.edit_budget import BudgetSpent, EditBudget
from bot.slack.posts import is_ambiguous, retry_after_s
from bot.slack.retry import AWAY
from bot.slack.run_posts import RunPosts
from bot.store.records import NOT_YET, Place, RunRecord
from bot.store.store import Store
from gpu_actions.system.redact import redacted_head

log = structlog.get_logger()

REFRESH_S = 5.0
"""An active run is rendered this often even when its record does not change, because it shows elapsed time."""
RETRY_S = 5.0
RETRY_MAX_S = 20.0
PLACE_RETRY_S = 1.0
GIVE_UP_S = 600.0
"""An end that Slack refuses for this long is given up. One that cannot be sent, because Slack is away, is never given up."""
LOOK_BACK_S = 3 * 86_400


@dataclass
class _Tracked:
    """A run's posts and when to look at them next (monotonic seconds)."""

    posts: RunPosts
    shown: RunRecord | None = None
    shown_at: float = 0.0
    refused_since: float | None = None
    failures: int = 0
    retry_at: float = 0.0
    ended: bool = False


@dataclass(eq=False)
class LiveMessages:
    """Keeps Slack in step with the runs. `render_context` returns the current one; run `run()` as a task until the end."""

    client: AsyncWebClient
    _: KW_ONLY
    runs: Runs
    store: Store
    incidents: Incidents
    settings: SlackSettings
    render_context: Callable[[], RenderContext]
    place_of: Callable[[RunRecord], Awaitable[Place | None]]
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._budget = EditBudget(self.settings.edits_per_minute, clock=self.clock)
        self._tracked: dict[str, _Tracked] = {}
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._started_at = self.store.clock()

    def spend_edit(self) -> None:
        """Count an edit of another message in the workspace's budget. Raise BudgetSpent if none is allowed now."""
        self._budget.spend()

    async def run(self) -> None:
        """Follow the changes until cancelled, starting with what an earlier process left unfinished."""
        stream = self.runs.changes()
        follow = asyncio.create_task(self._follow(stream))
        try:
            self._changed.update(await asyncio.to_thread(self._left_behind))
            while True:
                pause_s = await self._pass()
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: until Python 3.12 it loses a cancellation that arrives together with the event.
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            follow.cancel()
            stream.close()

    async def _follow(self, stream: AsyncIterator[str]) -> None:
        async for run_id in stream:
            self._changed.add(run_id)
            self._wake.set()

    def _left_behind(self) -> set[str]:
        """Return the recent runs whose final state may not be in Slack yet."""
        oldest = self.store.clock() - LOOK_BACK_S
        recent = [run for run in self.store.list(limit=200) if run.created_at >= oldest]
        seen = self.store.deliveries.seen
        return {run.id for run in recent if not (run.status.final and seen(_end_key(run)))}

    async def _pass(self) -> float:
        """Show what is due, by `urgency`, then the longest unseen first. Return the seconds until the next pass."""
        now = self.clock()
        due: list[tuple[int, float, RunRecord]] = []
        pause_s = REFRESH_S
        for run_id in tuple(self._changed):
            run = await asyncio.to_thread(self.store.get, run_id)
            if run is None:
                self._changed.discard(run_id)
                continue
            tracked = self._tracked.get(run_id) or self._track(run_id)
            wait_s = max(tracked.retry_at - now, 0.0)
            if tracked.posts.digest and not run.status.final:
                wait_s = max(wait_s, tracked.shown_at + self.settings.edit_interval_s - now)
            if wait_s > 0:
                pause_s = min(pause_s, wait_s)
            else:
                due.append((urgency(run, tracked.shown), tracked.shown_at, run))
        for _, _, run in sorted(due, key=lambda entry: entry[:2]):
            if (wait_s := self._budget.wait_s()) > 0:
                pause_s = min(pause_s, wait_s)
                break
            self._changed.discard(run.id)
            if not await self._show(run):
                self._changed.add(run.id)
                pause_s = min(pause_s, RETRY_S)
        for run_id, tracked in self._tracked.items():
            if tracked.posts.digest and not tracked.ended and self.clock() - tracked.shown_at >= REFRESH_S:
                self._changed.add(run_id)
        return max(pause_s, 0.02)

    def _track(self, run_id: str) -> _Tracked:
        posts = RunPosts(self.client, self.store, self.incidents, self._budget.spend)
        return self._tracked.setdefault(run_id, _Tracked(posts))

    async def _show(self, run: RunRecord) -> bool:
        """Bring one run's posts up to date. Return False if it must be tried again."""
        tracked = self._tracked[run.id]
        try:
            if run.place == NOT_YET:
                place = await self.place_of(run)
                if place is None:
                    tracked.retry_at = self.clock() + PLACE_RETRY_S
                    return False
                await asyncio.to_thread(self.store.update_run, run.id, place=place.model_dump())
                run = run.model_copy(update={"place": place})
            # A run younger than this process has no posts from an earlier one.
            await tracked.posts.show(run, self.render_context(), search=run.created_at < self._started_at)
        except BudgetSpent as spent:
            tracked.retry_at = self.clock() + spent.wait_s
            return False
        except AWAY as error:
            return self._failed(run, tracked, error)
        tracked.shown, tracked.shown_at = run, self.clock()
        tracked.refused_since, tracked.failures = None, 0
        if run.status.final:
            await asyncio.to_thread(self.store.deliveries.first_time, _end_key(run))
            tracked.ended = True
        return True

    def _failed(self, run: RunRecord, tracked: _Tracked, error: BaseException) -> bool:
        """Schedule another attempt. Return True if a final state has failed for so long that it is given up."""
        now = self.clock()
        asked_s = retry_after_s(error)
        if asked_s is not None:
            self._budget.close_for(asked_s)
        if not isinstance(error, SlackApiError) or is_ambiguous(error):
            tracked.refused_since = None
        elif tracked.refused_since is None:
            tracked.refused_since = now
        pause_s = min(RETRY_S * 2 ** min(tracked.failures, 9), RETRY_MAX_S)
        tracked.failures += 1
        tracked.retry_at = now + (pause_s if asked_s is None else asked_s)
        log.warning("Slack refused or did not answer", run=run.id, error=redacted_head(repr(error), 300))
        refused_s = 0.0 if tracked.refused_since is None else now - tracked.refused_since
        if run.status.final and refused_s > GIVE_UP_S:
            log.error(
                "the end of a run could not be shown in Slack",
                run=run.id,
                error=redacted_head(repr(error), 300),
            )
            tracked.ended = True
        return tracked.ended


def urgency(run: RunRecord, shown: RunRecord | None) -> int:
    """Return the rank of a run's next edit among those of all runs; `shown` is what its message shows, if it has one.

    0: its end. 1: a state that someone may have to act on, or its first message. 2: a step. 3: only time has passed.
    """
    if run.status.final:
        return 0
    if shown is None or _needs_people(run) != _needs_people(shown):
        return 1
    return 2 if _steps(run) != _steps(shown) else 3


def _needs_people(run: RunRecord) -> tuple[object, ...]:
    return run.status, run.decisions, run.problems


def _steps(run: RunRecord) -> list[tuple[object, ...]]:
    return [(one.step_id, one.attempt, one.status) for one in run.steps]


def _end_key(run: RunRecord) -> str:
    return f"shown:{run.id}:{run.status.value}"
