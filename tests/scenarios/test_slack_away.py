"""A whole fallback of the demonstration with Slack away from before its start to its end, next to one with Slack there."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bot.store.records import RunRecord, RunStatus
from tests.scenarios.incident import Incident, describe, incident

AWAY = ("silent", "refuse=503", "error=*:503")


@pytest.mark.heavy
@pytest.mark.timeout(300)
@pytest.mark.chaos(
    fault="Slack is away",
    at="from before a fallback until after its end",
    after="the fallback takes as long as with Slack, and is told once when Slack is back",
)
async def test_a_fallback_with_slack_away_is_as_fast_and_is_told_once_afterwards(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("there", "away")]
    for folder in folders:
        folder.mkdir()
    async with incident(folders[0]) as it:
        await it.break_("frozen-rank")
        await it.command("/fallback start")
        there = await it.ended("fallback")
        assert there.status is RunStatus.SUCCEEDED, describe(there)
    async with incident(folders[1]) as it:
        await it.break_("frozen-rank")
        await it.client.switch_faults(*AWAY)
        shell = [
            sys.executable,
            "-m",
            "bot.cli",
            "fallback",
            "--local",
            "--config",
            str(it.layout.config_path),
        ]
        said = await asyncio.to_thread(subprocess.run, shell, capture_output=True, text=True, check=False)
        away = await it.ended("fallback")
        assert (said.returncode, away.status) == (0, RunStatus.SUCCEEDED), said.stdout + said.stderr
        assert await it.generate()
        assert "the running worker carries it" in said.stdout
        assert all(step.step_id in said.stdout for step in away.steps)
        assert seconds(away) < 1.5 * seconds(there) + 5, (
            f"{seconds(away):.1f} s, with Slack {seconds(there):.1f} s"
        )
        assert await messages_about(it, away) == 0
        await it.client.switch_faults("off")
        deadline = time.monotonic() + 90
        while not await messages_about(it, away):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.5)
        await it.command("/fallback status")
        assert await messages_about(it, away) == 1
    print(f"fallback {seconds(there):.1f} s with Slack, {seconds(away):.1f} s without")


def seconds(run: RunRecord) -> float:
    assert run.ended_at is not None
    return run.ended_at - run.created_at


async def messages_about(it: Incident, run: RunRecord) -> int:
    """Return how many live messages of a run people see."""
    about = [(message.metadata or {}).get("event_payload", {}) for message in await it.messages()]
    return sum(1 for payload in about if payload.get("run_id") == run.id and not payload.get("key"))
