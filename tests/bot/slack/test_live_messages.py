"""Live messages against a workspace that refuses, forgets and goes away: one message per run, with the right final state."""

import asyncio
import itertools
import time
from collections import Counter
from pathlib import Path

import pytest

from bot.presenter.message import Message
from bot.presenter.render_context import RenderContext
from bot.slack import live_messages, run_posts
from bot.slack.live_messages import urgency
from bot.store.records import Person, Place, RunRecord, RunStatus, StepRecord, StepStatus
from demo.workspace import Workspace
from demo.workspace.webapi import ApiCall, ApiError, Handler
from gpu_actions.models import JsonObject
from tests.bot.desk import desk, sitting_down
from tests.bot.toys import hurry, store_of


class Slack:
    """Middleware around every Web API method: counts calls, and refuses those that a test wants refused."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.at: dict[str, list[float]] = {}
        self.refuse: dict[str, ApiError] = {}
        self.after: dict[str, asyncio.Event] = {}

    async def __call__(self, call: ApiCall, handler: Handler) -> JsonObject:
        self.calls[call.method] += 1
        self.at.setdefault(call.method, []).append(time.monotonic())
        if (error := self.refuse.get(call.method)) is not None:
            raise error
        return await handler(call)


async def test_a_run_has_one_message_through_all_its_edits(
    tmp_path: Path,
) -> None:
    slack = Slack()
    async with desk(
        tmp_path, scripts={"fallback": "count:a hold:b file:c count:d"}, middlewares=[slack]
    ) as it:
        await it.say("/fallback start")
        run = await it.run("fallback", until=lambda run: len(run.steps) == 2)
        await it.hears("hold b")
        it.release()
        done = await it.run("fallback")
        await it.hears("Fallback on toy: done")
        (message,) = await it.message_of(run.id)
        assert message.ts == (await asyncio.to_thread(it.bot.store.row, run.id)).message_ts
        assert done.status is RunStatus.SUCCEEDED
        assert slack.calls["chat.postMessage"] == 1
        assert 1 <= slack.calls["chat.update"] <= 12


async def test_a_busy_run_respects_its_edit_interval_and_still_shows_its_end(tmp_path: Path) -> None:
    slack = Slack()
    script = " ".join(f"count:s{n}" for n in range(40))
    settings = {"edit_interval_s": 1.0, "edits_per_minute": 30}
    async with desk(
        tmp_path, scripts={"fallback": script}, middlewares=[slack], slack_changes=settings
    ) as it:
        began = time.monotonic()
        await it.say("/fallback start")
        await it.run("fallback")
        await it.hears("Fallback on toy: done")
        took_s = time.monotonic() - began
        edits = slack.at["chat.update"]
        gaps = [later - earlier for earlier, later in itertools.pairwise(edits)]
        assert len(edits) <= 2 + took_s / 1.0
        assert all(gap > 0.9 for gap in gaps[:-1]), gaps  # the final state may follow at once
    assert slack.calls["chat.postMessage"] == 1


def test_an_end_is_shown_before_a_state_a_state_before_a_step_and_the_time_last() -> None:
    first = StepRecord(step_id="a", title="a", status=StepStatus.RUNNING, started_at=1.0)
    shown = RunRecord(
        id="fb-7k2m", action="fallback", host="toy", status=RunStatus.RUNNING, requester=Person(id="U1"),
        place=Place(channel="C1"), created_at=1.0, steps=(first,),
    )  # fmt: skip
    later = {
        "ended": {"status": RunStatus.FAILED},
        "settles": {"status": RunStatus.SETTLING},
        "step": {"steps": (first.model_copy(update={"status": StepStatus.DONE, "ended_at": 2.0}),)},
        "progress": {"steps": (first.model_copy(update={"progress": 0.5}),), "version": 7},
    }
    ranks = {name: urgency(shown.model_copy(update=change), shown) for name, change in later.items()}
    assert ranks == {"ended": 0, "settles": 1, "step": 2, "progress": 3}
    assert urgency(shown, None) == 1
    assert urgency(shown, shown) == 3


async def test_no_edit_is_sent_before_retry_after_is_over_and_the_final_state_follows(tmp_path: Path) -> None:
    slack = Slack()
    async with desk(tmp_path, scripts={"fallback": "hold:a"}, middlewares=[slack]) as it:
        await it.say("/fallback start")
        await it.hears("hold a")
        slack.refuse["chat.update"] = ApiError("ratelimited", status=429, headers={"Retry-After": "2"})
        it.release()
        await it.run("fallback")
        while not slack.calls["chat.update"]:
            await asyncio.sleep(0.02)
        refused_at = time.monotonic()
        asked = slack.calls["chat.update"]
        await asyncio.sleep(1.5)
        assert slack.calls["chat.update"] - asked <= 1, "no edit before Retry-After is over"
        del slack.refuse["chat.update"]
        await it.hears("Fallback on toy: done")
        assert time.monotonic() - refused_at > 1.9
        assert slack.calls["chat.postMessage"] == 1


async def test_if_slack_refuses_a_plan_its_steps_are_lines_with_the_buttons_and_it_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_messages, "REFRESH_S", 0.2)
    slack = Slack()
    refused: list[str] = []

    async def older(call: ApiCall, handler: Handler) -> JsonObject:
        if call.method in ("chat.update", "chat.postMessage") and '"plan"' in str(call.arguments).replace(
            "'", '"'
        ):
            refused.append(call.method)
            raise ApiError("invalid_blocks", "[ERROR] unsupported type: plan")
        return await handler(call)

    async with desk(
        tmp_path, scripts={"fallback": "count:a hold:b count:c"}, middlewares=[slack, older]
    ) as it:
        await it.say("/fallback start")
        run = await it.run("fallback", until=lambda run: len(run.steps) == 2)
        await it.hears("Then: count c")
        (message,) = await it.message_of(run.id)
        assert "[ Stop ]" in message.text
        edits = slack.calls["chat.update"]
        while slack.calls["chat.update"] < edits + 2:  # the elapsed time changes
            await asyncio.sleep(0.1)
        assert len(refused) <= 2, refused
        it.release()
        await it.run("fallback")
        await it.hears("Fallback on toy: done")


async def test_if_slack_refuses_the_blocks_the_text_is_shown_alone(tmp_path: Path) -> None:
    """An unknown limit of Slack may cost the layout, but not the message."""
    slack = Slack()

    async def picky(call: ApiCall, handler: Handler) -> JsonObject:
        if call.method == "chat.update" and call.arguments.get("blocks") not in (None, [], "[]"):
            raise ApiError("invalid_blocks", "[ERROR] no reason given")
        return await handler(call)

    async with desk(tmp_path, scripts={"fallback": "hold:a"}, middlewares=[slack, picky]) as it:
        await it.say("/fallback start")
        await it.hears("hold a")
        it.release()
        await it.run("fallback")
        message = await it.hears("Fallback on toy: done")
        assert message.blocks == ()


async def test_a_workspace_that_was_away_is_brought_up_to_date(tmp_path: Path) -> None:
    slack = Slack()
    away = ApiError("service_unavailable", status=503)
    async with desk(tmp_path, scripts={"fallback": "count:a count:b"}, middlewares=[slack]) as it:
        slack.refuse = {"chat.postMessage": away, "chat.update": away}
        await it.say("/fallback start")
        done = await it.run("fallback")
        assert done.status is RunStatus.SUCCEEDED, "a run does not wait for Slack"
        assert done.message_ts is None
        slack.refuse = {}
        await it.hears("Fallback on toy: done", timeout_s=15)
        assert len(await it.message_of(done.id)) == 1


async def test_a_message_is_found_again_if_the_bot_was_killed_before_recording_it(tmp_path: Path) -> None:
    """The bot ends with the message posted and its ts unknown: the next bot edits that message and posts no other."""
    hurry()
    scripts = {"fallback": "hold:a"}
    async with Workspace(port=0) as workspace:
        async with sitting_down(tmp_path, workspace, scripts=scripts) as it:
            await it.say("/fallback start")
            run = await it.run("fallback", until=lambda run: run.message_ts is not None)
            first = await it.hears("hold a")
        store_of(tmp_path).update_run(run.id, message_ts=None)
        async with sitting_down(tmp_path, workspace, scripts=scripts) as it:
            it.release()
            await it.run("fallback")
            await it.hears("Fallback on toy: done")
            assert [message.ts for message in await it.message_of(run.id)] == [first.ts]


async def test_an_ended_run_is_not_rendered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_messages, "REFRESH_S", 0.05)
    rendered: list[str] = []
    render = run_posts.run_message

    def counted(run: RunRecord, context: RenderContext) -> Message:
        rendered.append(run.status.value)
        return render(run, context)

    monkeypatch.setattr(run_posts, "run_message", counted)
    async with desk(tmp_path, scripts={"fallback": "hold:a"}) as it:
        await it.say("/fallback start")
        await it.run("fallback", until=lambda run: run.status is RunStatus.RUNNING)
        async with asyncio.timeout(10):  # the elapsed time of an active run is refreshed
            while rendered.count("running") < 4:
                await asyncio.sleep(0.02)
        it.release()
        await it.hears("Fallback on toy: done")
        await asyncio.sleep(0.5)
        before = len(rendered)
        await asyncio.sleep(0.5)
        assert len(rendered) == before


async def test_a_deleted_message_is_posted_again(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path, scripts={"fallback": "hold:a"}) as it:
        await it.say("/fallback start")
        run = await it.run("fallback", until=lambda run: run.message_ts is not None)
        await it.hears("hold a")
        await it.bot.client.chat_delete(channel="C0INCIDENTS", ts=str(run.message_ts))
        it.release()
        await it.run("fallback")
        await it.hears("Fallback on toy: done")
        (message,) = await it.message_of(run.id)
        assert message.ts != run.message_ts
