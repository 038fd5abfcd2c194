"""Posts whose answer is lost, edits that Slack refuses, and twenty runs at once, against a real workspace with its faults."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from bot.presenter.message import Message
from bot.slack.posts import PostOnce, find_posts, metadata, post
from bot.store.records import Place, RunStatus
from demo.workspace import Workspace
from demo.workspace.rates import RateLimits
from demo.workspace.webapi import ApiError
from tests.bot.desk import desk
from tests.bot.slack.test_live_messages import Slack
from tests.bot.slack.test_run_posts import thread_of
from tests.bot.toys import ONCALL

HERE = Place(channel="C0INCIDENTS")


async def test_a_run_whose_first_posts_lost_their_answers_has_one_message_and_one_note(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path, scripts={"fallback": "picture:p hold:a"}) as it:
        it.workspace.faults.lost["chat.postMessage"] = 2
        await it.say("/fallback start")
        await it.hears("TTFT p99 812 ms")
        it.release()
        run = await it.run("fallback")
        await it.hears("Fallback on toy: done", timeout_s=20)
        assert it.workspace.faults.lost["chat.postMessage"] == 0, "both answers were lost"
        assert len(await it.message_of(run.id)) == 1
        assert len([reply for reply in await thread_of(it, run) if "TTFT p99" in reply.text]) == 1


async def test_a_lost_answer_with_an_unreadable_history_is_not_posted_twice_by_the_next_attempt(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as it:
        faults = it.workspace.faults
        faults.lost["chat.postMessage"] = 1
        faults.errors["conversations.history"] = ApiError("service_unavailable", status=503)
        await it.say("/fallback start")
        run = await it.run("fallback")
        await asyncio.sleep(1)
        assert run.status is RunStatus.SUCCEEDED
        faults.errors.clear()
        await it.hears("Fallback on toy: done", timeout_s=20)
        assert len(await it.message_of(run.id)) == 1


async def test_an_incidents_root_is_posted_once_although_its_answer_was_lost(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        it.workspace.faults.lost["chat.postMessage"] = 1
        await it.say("/incident open latency doubled")
        root = await it.hears("latency doubled", timeout_s=20)
        assert len([text for text in await it.texts() if text == root.text]) == 1
        deadline = time.monotonic() + 10
        while (incident := it.bot.services.incidents.active("toy")) is None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert incident.place.thread_ts == root.ts


async def test_a_message_refused_with_503_is_sent_again_and_appears_once(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        once = PostOnce(it.bot.client, Message(text="an alert"), HERE)
        it.workspace.faults.errors["chat.postMessage"] = ApiError("service_unavailable", status=503)
        with pytest.raises(Exception, match="service_unavailable"):
            await once.send()
        it.workspace.faults.errors.clear()
        ts = await once.send()
        assert await once.send() == ts
        assert (await it.texts()).count("an alert") == 1


class Once(dict[str, ApiError]):
    """Errors that come once each: what cannot be edited is one message, not the next one."""

    def get(self, method: str, default: Any = None) -> Any:
        return self.pop(method, default)


@pytest.mark.parametrize("code", ["cant_update_message", "edit_window_closed"])
async def test_a_message_that_cannot_be_edited_is_replaced_by_a_new_one(tmp_path: Path, code: str) -> None:
    async with desk(tmp_path, scripts={"fallback": "hold:a"}) as it:
        await it.say("/fallback start")
        run = await it.run("fallback", until=lambda run: run.message_ts is not None)
        await it.hears("hold a")
        it.workspace.faults.errors = Once({"chat.update": ApiError(code)})
        it.release()
        done = await it.hears("Fallback on toy: done", timeout_s=20)
        assert done.ts != run.message_ts
        deadline = time.monotonic() + 10
        while it.bot.store.row(run.id).message_ts != done.ts:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert len(await it.message_of(run.id)) == 2


async def test_a_post_behind_more_than_one_page_of_messages_is_found(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts={"fallback": "hold:a"}) as it:
        await it.say("/fallback start")
        run = await it.run("fallback", until=lambda run: run.message_ts is not None)
        root = await post(it.bot.client, Message(text="a thread"), HERE)
        about = metadata("gpu_oncall_note", run.id, "k")
        state: Workspace = it.workspace
        for n in range(450):
            state.state.post("C0INCIDENTS", "U0ONCALL", f"chatter {n}")
            state.state.post("C0INCIDENTS", "U0ONCALL", f"reply {n}", thread_ts=root)
        note = await post(
            it.bot.client,
            Message(text="late note"),
            Place(channel="C0INCIDENTS", thread_ts=root),
            about=about,
        )
        first = run.model_copy(update={"message_ts": None})
        assert (await find_posts(it.bot.client, first)).message_ts == run.message_ts
        in_thread = run.model_copy(update={"place": Place(channel="C0INCIDENTS", thread_ts=root)})
        assert (await find_posts(it.bot.client, in_thread)).notes["k"] == note


@pytest.mark.heavy
async def test_twenty_runs_at_once_stay_within_slacks_limits(tmp_path: Path) -> None:
    """The workspace refuses the 51st edit of a minute; the bot must not get there."""
    slack = Slack()
    settings = {"edit_interval_s": 0.2, "edits_per_minute": 45}
    script = " ".join(f"count:s{n}" for n in range(5)) + " hold:a"
    async with desk(
        tmp_path,
        scripts={"forensics": script},
        middlewares=[slack, RateLimits()],
        slack_changes=settings,
    ) as it:
        for n in range(20):
            await it.bot.runs.start(
                action="forensics", host=None, options={}, requester=ONCALL, place=HERE, dedupe_key=f"k{n}"
            )
        until = time.monotonic() + 20
        while time.monotonic() < until:
            await asyncio.sleep(0.2)
        edits = slack.at.get("chat.update", [])
        assert edits
        assert all(sum(at <= other < at + 60 for other in edits) <= 45 for at in edits), len(edits)
        it.release()


async def test_a_run_that_changes_the_host_joins_its_channel_first(tmp_path: Path) -> None:
    async with desk(tmp_path) as it:
        state = it.workspace.state
        channel = state.channels["C0INCIDENTS"]
        channel.members.remove(state.bot_user)
        await it.say("/fallback start")
        await it.hears("Fallback on toy: done")
        assert state.bot_user in channel.members


@pytest.mark.parametrize("code", ["method_not_supported_for_channel_type", "missing_scope"])
async def test_a_run_that_nobody_would_see_is_refused_with_the_line_to_type(
    tmp_path: Path, code: str
) -> None:
    async with desk(tmp_path) as it:
        state = it.workspace.state
        state.channels["C0INCIDENTS"].members.remove(state.bot_user)
        it.workspace.faults.errors["conversations.join"] = ApiError(code)
        for command in ("/fallback start", "/triage"):
            answer = await it.answer(command)
            assert "/invite @gpu-oncall" in answer
        assert it.bot.runs.list() == []
