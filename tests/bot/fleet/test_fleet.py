"""A person's request becomes a signed order, the host carries it out, and the bot's copy of the run follows."""

import contextlib
import json
import os
import sqlite3
import time
from pathlib import Path

import psycopg
import pytest

import bot.fleet.face
import bot.fleet.worker_link
from bot.app import running
from bot.hosts import Hosts
from bot.runs.runs import Runs
from bot.settings.model import FleetSettings, Settings
from bot.slack.tokens import CannotStart
from bot.store.records import Decision, RunRecord, RunStatus, UserError
from bot.worker import serve_worker
from tests.bot.fleet.conftest import Bot, Site, bot_of, until, worker_of
from tests.bot.toys import HERE, LEAD, ONCALL, effects, effects_dir, ended, toy_settings


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.fleet.postbox.RETRY_S", 0.2)


async def start(runs: Runs, action: str = "toy", *, host: str = "toy", **options: str) -> RunRecord:
    started = await runs.start(
        action=action,
        host=host,
        options=options,
        requester=ONCALL,
        place=HERE,
        dedupe_key=os.urandom(8).hex(),
    )
    return started.run


async def waiting(bot: Bot, run_id: str) -> RunRecord:
    return await bot.runs.wait(run_id, until=lambda run: run.status is RunStatus.WAITING)


async def test_a_run_is_planned_approved_and_seen_as_if_the_host_were_here(site: Site) -> None:
    toy = site.folder / "toy"
    async with bot_of(site) as face, worker_of(site):
        plan = await face.runs.plan(action="toy", host="toy", options={"script": "count:a"}, requester=ONCALL)
        assert [step.id for step in plan.steps] == ["a"]
        with pytest.raises(UserError, match="it cannot work"):
            await face.runs.plan(
                action="toy", host="toy", options={"refuse": "it cannot work"}, requester=ONCALL
            )

        run = await start(face.runs, "gated", script="count:a file:f verdict:v")
        plan_hash = (await waiting(face, run.id)).plan_hash
        early = await face.approvals.decide(
            run_id=run.id, user=ONCALL, decision="approve", plan_hash=plan_hash
        )
        assert not early.accepted  # nobody approves what they asked for
        given = await face.approvals.decide(run_id=run.id, user=LEAD, decision="approve", plan_hash=plan_hash)
        assert given.accepted
        done = await ended(face.runs, run.id)
        assert done.status is RunStatus.SUCCEEDED
        assert [(step.step_id, step.status.value) for step in done.steps] == [
            ("a", "done"),
            ("f", "done"),
            ("v", "done"),
        ]
        assert [one.user.id for one in done.decisions] == [LEAD.id]
        assert effects(toy, "a") == [""]
        # its file is in the bot's store, with a link, and at no path that the host named
        await until(lambda: (found := face.runs.get(run.id)) and found.artifacts and found.artifacts[0].url)
        (file,) = (face.runs.get(run.id) or done).artifacts
        assert face.runs._artifacts.read(file) == b"evidence\n"
        assert str(toy) not in str(file.artifact.path)
        # the trail says each thing once
        kinds = [entry.kind for entry in face.store.audit.of_run(run.id)]
        once = (
            "run.start",
            "run.waiting",
            "decision.approve",
            "run.running",
            "run.succeeded",
            "artifact.stored",
        )
        assert [kinds.count(kind) for kind in (*once, "step.done")] == [1] * len(once) + [3]
        assert face.store.audit.verify().problem == ""
        verdict = face.store.last_verdict("toy", max_age_s=60)
        assert verdict is None  # only a triage says how the host is


async def test_a_stop_and_a_signal_reach_the_step(site: Site) -> None:
    toy = site.folder / "toy"
    async with bot_of(site) as face, worker_of(site):
        run = await start(face.runs, script="signal:s")
        await face.runs.wait(run.id, until=lambda run: run.status is RunStatus.RUNNING)
        await face.runs.signal(run.id, "next", by=ONCALL)
        done = await ended(face.runs, run.id)
        assert done.outcome == "told next"
        run = await start(face.runs, script="hold:h", settle="count:c")
        await until(lambda: effects(toy, "h"))
        await face.runs.wait(run.id, until=lambda run: run.status is RunStatus.RUNNING)
        await face.runs.stop(run.id, by=LEAD)
        done = await ended(face.runs, run.id)
        assert done.status is RunStatus.CANCELLED
        assert "Stopped by lead" in done.outcome
        assert effects(toy, "c") == [""]


async def test_without_a_worker_nothing_starts_now_or_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot.fleet.face, "LOOK_S", 0.3)
    monkeypatch.setattr(bot.fleet.face, "UNTAKEN_S", 1.0)
    async with bot_of(site) as face:
        with pytest.raises(UserError, match="nothing was started"):
            await start(face.runs, script="count:a")
        assert face.runs.list() == []
        with psycopg.connect(site.admin, autocommit=True) as connection:  # what is no order stops nobody
            junk = "INSERT INTO fleet.orders (host, envelope, signature, answered_at) VALUES ('toy', 'x', '', now())"
            connection.execute(junk)
        # a worker that gave a sign of life and has just died takes nothing either
        with psycopg.connect(site.admin, autocommit=True) as connection:
            connection.execute("INSERT INTO fleet.signs (host, body) VALUES ('toy', '{}')")
        run = await start(face.runs, script="count:a")
        done = await ended(face.runs, run.id)
        assert done.status is RunStatus.FAILED
        assert "did not take the order" in done.outcome
        async with worker_of(site) as host:
            second = await start(face.runs, script="count:b")
            await ended(face.runs, second.id)
            assert [one.id for one in host.list()] == [second.id]
        assert effects(site.folder / "toy", "a") == []


async def test_the_database_may_go_away_while_a_host_works(site: Site) -> None:
    """Every connection is cut and the host may not log in; the run goes on from the host's own database and is reported."""
    toy = site.folder / "toy"
    async with bot_of(site) as face, worker_of(site) as host:
        run = await start(face.runs, script="count:a hold:h count:b")
        await until(lambda: effects(toy, "h"))
        with psycopg.connect(site.admin, autocommit=True) as connection:
            connection.execute("ALTER ROLE oncall_host_toy NOLOGIN")
            for role in ("oncall_host_toy", "oncall_bot"):
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (role,)
                )
            (effects_dir(toy) / "release").touch()
            here = await ended(host, run.id)  # nothing on the host waited for the database
            assert here.status is RunStatus.SUCCEEDED
            assert not (face.runs.get(run.id) or here).status.final
            connection.execute("ALTER ROLE oncall_host_toy LOGIN")
        done = await ended(face.runs, run.id)
        assert [step.step_id for step in done.steps] == ["a", "h", "b"]
        assert effects(toy, "a") == effects(toy, "b") == [""]
    # the workflow engine's rows are on the host, in its own file, and none is a pickle
    assert pickled(toy) == []
    with psycopg.connect(site.admin) as connection:
        schemas = {name for (name,) in connection.execute("SELECT schemaname FROM pg_tables")}
    assert "dbos" not in schemas


async def test_an_approval_given_while_the_host_was_away_counts_when_it_is_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot.fleet.face, "LOOK_S", 0.3)
    monkeypatch.setattr(bot.fleet.face, "RESEND_S", 0.5)
    monkeypatch.setattr(bot.fleet.face, "UNTAKEN_S", 1.0)
    async with bot_of(site) as face:
        async with worker_of(site):
            run = await start(face.runs, "gated", script="count:a")
            plan_hash = (await waiting(face, run.id)).plan_hash
        given = await face.approvals.decide(run_id=run.id, user=LEAD, decision="approve", plan_hash=plan_hash)
        assert given.accepted
        with psycopg.connect(site.admin, autocommit=True) as connection:  # it is withdrawn, and sent again
            first = connection.execute("SELECT max(id) FROM fleet.orders").fetchone()
            newer = "SELECT 1 FROM fleet.orders WHERE id > %s AND answered_at IS NULL"
            await until(lambda: connection.execute(newer, first).fetchone())
        async with worker_of(site):
            assert (await ended(face.runs, run.id)).status is RunStatus.SUCCEEDED
        assert effects(site.folder / "toy", "a") == [""]


async def test_a_host_refuses_what_its_own_settings_do_not_allow(site: Site) -> None:
    async with bot_of(site) as face, worker_of(site, actions=("triage",)):
        run = await start(face.runs, script="count:a")
        done = await ended(face.runs, run.id)
        assert done.status is RunStatus.FAILED
        assert "fleet.actions in the settings of toy does not allow toy" in done.outcome
        assert effects(site.folder / "toy", "a") == []


async def test_a_host_counts_approvals_by_its_own_rule(site: Site) -> None:
    """The host asks for two people; a bot that believes one is enough is refused."""
    async with bot_of(site) as face, worker_of(site, approvals=2) as host:
        run = await start(face.runs, "gated", script="count:a")
        seen = await waiting(face, run.id)
        one = Decision(user=LEAD, decision="approve", plan_hash=seen.plan_hash, at=time.time())
        face.store.update_run(run.id, status="queued")
        await face.runs.decided(seen.model_copy(update={"decisions": (one,)}))
        done = await ended(face.runs, run.id)
        assert "refused the approval" in done.outcome
        assert (await ended(host, run.id)).status is RunStatus.CANCELLED
        assert effects(site.folder / "toy", "a") == []


async def test_a_process_with_the_settings_of_the_other_side_says_so(site: Site, tmp_path: Path) -> None:
    of_the_bot = Settings(
        _env_file=None,
        state_dir=tmp_path / "bot",
        fleet=FleetSettings(url=site.bot_url, signing_key=site.kept.signing_key),
    )
    worker = FleetSettings(url=site.host_url("toy"), bot_keys=(site.public_key,))
    of_a_worker = toy_settings(tmp_path / "toy").model_copy(update={"fleet": worker})
    with pytest.raises(CannotStart, match="start `gpu-oncall worker` here"):
        async with running(of_a_worker, role="bot"):
            pass
    assert await serve_worker(of_the_bot) == 1
    with pytest.raises(UserError, match="ask on the host"):
        Hosts(of_the_bot).name(None)
    # a worker whose role belongs to another host does not start
    wrong = worker.model_copy(update={"url": site.host_url("other")})
    assert await serve_worker(of_a_worker.model_copy(update={"fleet": wrong})) == 1


def pickled(state_dir: Path) -> list[object]:
    """Return the values in the workflow engine's rows that are not JSON."""
    with contextlib.closing(sqlite3.connect(state_dir / "dbos.sqlite")) as connection:
        rows = connection.execute(
            "SELECT serialization, inputs, output, error FROM workflow_status"
        ).fetchall()
    assert rows
    wrong: list[object] = [name for name, *_ in rows if "pickle" in (name or "").lower()]
    for value in (value for _, *values in rows for value in values if value is not None):
        try:
            json.loads(value)
        except ValueError:
            wrong.append(value)
    return wrong
