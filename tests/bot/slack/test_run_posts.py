"""What is posted beside a run's message: notes, pictures, reminders, override notices, the incident. Each once, whatever dies.

A kill between a post and its record is simulated by ending the bot and deleting the record: the next bot must find the post.
"""

import asyncio
import struct
import zlib
from pathlib import Path

import pytest
import sqlalchemy as sa

from bot.settings.model import AccessSettings, ApprovalRule
from bot.slack import live_messages as live
from bot.store.records import RunRecord, RunStatus
from bot.store.schema import artifacts, deliveries
from demo.workspace import Workspace
from demo.workspace.transcript import ReadMessage
from demo.workspace.webapi import ApiCall, ApiError, Handler
from gpu_actions.action import StepContext, StepResult, step
from gpu_actions.models import JsonObject
from gpu_actions.system.files import artifact_of
from tests.bot.desk import Desk, desk, sitting_down
from tests.bot.slack.test_live_messages import Slack
from tests.bot.toys import hurry, store_of


@step("toy.picture")
async def picture(context: StepContext) -> StepResult:
    """Make a picture of one pixel, and a text for the thread."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = context.workdir / "latency.png"
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0\0"))
        + chunk(b"IEND", b"")
    )
    shown = artifact_of(path, source="toy", title="Latency", inline=True)
    text = "TTFT p99 812 ms\n--api-key hunter2 <!channel>"
    return StepResult(summary="measured", artifacts=(shown,), data={"thread_text": text})


def forget(state_dir: Path, run_id: str) -> None:
    """Delete what a bot killed right after its posts would not have recorded: the message, its notes and files."""
    store = store_of(state_dir)
    store.update_run(run_id, message_ts=None)
    with store.database.write() as connection:
        connection.execute(deliveries.delete().where(deliveries.c.key.like(f"note:{run_id}:%")))
        connection.execute(artifacts.update().values(slack_file_id=None))
        assert connection.execute(sa.select(artifacts.c.slack_file_id)).first() == (None,)
    store.close()


async def thread_of(it: Desk, run: RunRecord) -> tuple[ReadMessage, ...]:
    (message,) = await it.message_of(run.id)
    return message.replies


async def test_notes_and_pictures_are_posted_once_even_if_the_bot_is_killed_after_posting_them(
    tmp_path: Path,
) -> None:
    hurry()
    scripts = {"fallback": "picture:p hold:a"}
    async with Workspace(port=0) as workspace:
        async with sitting_down(tmp_path, workspace, scripts=scripts) as it:
            await it.say("/fallback start")
            run = await it.run("fallback", until=lambda run: any(a.slack_file_id for a in run.artifacts))
            await it.hears("TTFT p99 812 ms")
        forget(tmp_path, run.id)
        async with sitting_down(tmp_path, workspace, scripts=scripts) as it:
            it.release()
            done = await it.run("fallback", until=lambda run: run.status.final)
            await it.hears("Fallback on toy: done")
            replies = await thread_of(it, run)
            (note,) = [reply for reply in replies if "TTFT p99" in reply.text]
            assert "hunter2" not in note.text
            assert "[redacted:option]" in note.text
            (file,) = [file for reply in replies for file in reply.files]
            assert (file.title, file.id) == (f"Latency ({run.id})", done.artifacts[0].slack_file_id)


async def test_a_refused_picture_affects_nothing_else(tmp_path: Path) -> None:
    slack = Slack()
    slack.refuse["files.getUploadURLExternal"] = ApiError("storage_limit_reached")
    async with desk(tmp_path, scripts={"fallback": "picture:p count:a"}, middlewares=[slack]) as it:
        await it.say("/fallback start")
        run = await it.run("fallback")
        await it.hears("TTFT p99 812 ms")
        message = await it.hears("Fallback on toy: done")
        assert run.artifacts[0].url.split("?")[0] in str(message.blocks), "the message has its link"
        assert slack.calls["files.getUploadURLExternal"] <= 3, "a refused upload is not repeated for ever"


async def test_a_first_post_whose_blocks_are_refused_is_posted_as_text(tmp_path: Path) -> None:
    async def picky(call: ApiCall, handler: Handler) -> JsonObject:
        if call.method == "chat.postMessage" and call.arguments.get("blocks") not in (None, [], "[]"):
            raise ApiError("invalid_blocks", "[ERROR] no reason given")
        return await handler(call)

    async with desk(tmp_path, scripts={"fallback": "hold:a"}, middlewares=[picky]) as it:
        await it.say("/fallback start")
        message = await it.hears("Fallback on toy: ")
        it.release()
        run = await it.run("fallback")
        await it.hears("Fallback on toy: done")
        assert [found.ts for found in await it.message_of(run.id)] == [message.ts]


async def test_a_run_in_a_thread_that_was_deleted_is_shown_in_the_channel(tmp_path: Path) -> None:
    slack = Slack()
    async with desk(tmp_path, middlewares=[slack]) as it:
        root = await it.bot.client.chat_postMessage(channel="C0INCIDENTS", text="a thread")
        slack.refuse["chat.postMessage"] = ApiError("service_unavailable", status=503)
        await it.say("@gpu-oncall fallback start", thread=root["ts"])
        run = await it.run("fallback")
        await it.bot.client.chat_delete(channel="C0INCIDENTS", ts=root["ts"])
        slack.refuse.clear()
        message = await it.hears("Fallback on toy: done", timeout_s=15)
        assert message.thread_ts is None
        assert len(await it.message_of(run.id)) == 1


async def test_a_second_bad_verdict_joins_the_incident_that_the_first_one_opened(tmp_path: Path) -> None:
    async with desk(tmp_path, scripts={"triage": "verdict:look"}) as it:
        await it.say("/triage")
        first = await it.run("triage", until=lambda run: run.incident_id is not None)
        await it.say("/triage")
        second = await it.run(
            "triage",
            until=lambda run: run.id != first.id and run.status.final and run.incident_id is not None,
        )
        assert second.incident_id == first.incident_id
        incident = it.bot.services.incidents.active("toy")
        assert incident is not None
        assert (incident.id, incident.cause) == (first.incident_id, "nccl_hang")
        (card,) = await it.message_of(first.id)
        assert incident.place.thread_ts == card.ts


async def test_an_override_is_announced_once_despite_a_kill(tmp_path: Path) -> None:
    hurry()
    scripts = {"restore": "picture:p hold:a"}
    async with Workspace(port=0) as workspace:
        async with sitting_down(tmp_path, workspace, scripts=scripts) as it:
            await it.say("/restore start")
            run = await it.run("restore", until=lambda run: run.status is RunStatus.WAITING)
            await it.say(f"@gpu-oncall override {run.id} nobody else is awake", user="lead")
            await it.hears("EMERGENCY OVERRIDE by @lead on")
            run = await it.run("restore", until=lambda run: any(a.slack_file_id for a in run.artifacts))
        forget(tmp_path, run.id)
        store_of(tmp_path).set_message_ts(run.id, str(run.message_ts))
        async with sitting_down(tmp_path, workspace, scripts=scripts) as it:
            it.release()
            await it.run("restore", until=lambda run: run.status.final)
            await it.hears("Restore on toy: done")
            posts = [m for m in await it.messages() if "EMERGENCY OVERRIDE" in m.text]
            assert len([m for m in posts if m.ts != run.message_ts]) == 1


async def test_an_approval_request_reminds_once_and_its_expiry_is_announced_to_the_requester(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "REFRESH_S", 0.2)
    rule = ApprovalRule.model_construct(approvals=1, approvers="approver", expires_s=3.0, remind_before_s=1.5)
    roles = {"responder": ("U0ONCALL",), "approver": ("U0LEAD",)}
    access = AccessSettings.model_construct(
        roles=roles, change="responder", groups_ttl_s=300, approvals={"restore": rule}
    )
    async with desk(tmp_path, access=access) as it:
        await it.say("/restore start")
        run = await it.run("restore", until=lambda run: run.status is RunStatus.WAITING)
        await it.hears("left to decide on *restore* on toy")
        assert (await it.run("restore")).status is RunStatus.EXPIRED
        await it.hears("in time. Nothing was changed")
        await asyncio.sleep(0.5)
        texts = [reply.text for reply in await thread_of(it, run)]
        assert sum("in time. Nothing was changed" in text for text in texts) == 1, texts
        assert sum("Nobody approved it in time." in text for text in texts) == 2, (
            "the request and its reminder"
        )
        (message,) = await it.message_of(run.id)
        replies = [message, *await thread_of(it, run)]
        assert {b.action_id for m in replies for b in m.buttons} == {"details"}, "nothing is left to decide"
        await it.say(f"@gpu-oncall approve {run.id}", user="lead")
        await it.hears("has expired without a decision; ask for it again")


async def test_a_request_loses_its_buttons_also_if_it_was_posted_before_a_restart(tmp_path: Path) -> None:
    async with Workspace(port=0) as workspace:
        async with sitting_down(tmp_path, workspace) as it:
            await it.say("/restore start")
            run = await it.run("restore", until=lambda run: run.status is RunStatus.WAITING)
            request = await it.hears("approve *restore* on toy?")
        async with sitting_down(tmp_path, workspace) as it:
            await it.press("Approve", user="lead", run=run.id)
            assert (await it.run("restore")).status is RunStatus.SUCCEEDED
            await it.hears("Approved by @lead")
            async with asyncio.timeout(10):
                while [m for m in await it.messages() if m.ts == request.ts and m.buttons]:
                    await asyncio.sleep(0.02)
            asked = [m for m in await it.messages() if "asked" in m.text.lower() or m.ts == request.ts]
            assert len(asked) == 1, "edited, not posted again"
