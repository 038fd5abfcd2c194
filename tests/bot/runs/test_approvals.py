"""Approvals: who may decide, when, and on which plan; the first writer wins and everyone else is told."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.runs.approvals import Approvals, DecisionAnswer
from bot.runs.runs import Runs
from bot.store.records import Person, RunRecord, RunStatus
from bot.store.store import Store
from tests.bot.toys import LEAD, ONCALL, OTHER, build, effects, ended, start


class Gated:
    """A launched engine with its approvals."""

    def __init__(self, runs: Runs, store: Store) -> None:
        self.runs = runs
        self.store = store
        self.approvals = Approvals(store)

    async def waiting(self, **options: str) -> RunRecord:
        run = await start(self.runs, "gated", **options)
        async with asyncio.timeout(10):
            return await self.runs.wait(run.id, until=lambda r: r.status is RunStatus.WAITING)

    async def decide(
        self, run: RunRecord, user: Person = LEAD, decision: str = "approve", **more: str
    ) -> DecisionAnswer:
        return await self.approvals.decide(
            run_id=run.id,
            user=user,
            decision=decision,
            plan_hash=more.get("plan_hash", run.plan_hash),
            reason=more.get("reason", ""),
        )


async def gated(state_dir: Path, **how: float) -> AsyncIterator[Gated]:
    _, store, runs = build(state_dir, **how)
    await runs.engine.launch()
    made = Gated(runs, store)
    yield made
    await runs.engine.close()
    store.close()


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gated]:
    async for made in gated(tmp_path):
        yield made


@pytest.fixture
async def gate_of_two(tmp_path: Path) -> AsyncIterator[Gated]:
    async for made in gated(tmp_path, approvals=2):
        yield made


@pytest.fixture
async def short_gate(tmp_path: Path) -> AsyncIterator[Gated]:
    async for made in gated(tmp_path, expires_s=5):
        yield made


async def test_nothing_runs_before_the_approval_and_everything_after_it(gate: Gated, tmp_path: Path) -> None:
    run = await gate.waiting(script="count:a")
    assert run.plan is not None
    assert run.plan_hash == run.plan.hash
    assert run.short_of_approvals == 1
    assert effects(tmp_path, "a") == []
    answer = await gate.decide(run)
    assert answer.accepted
    assert "approved and starts now" in answer.message
    run = await ended(gate.runs, run.id)
    assert run.status is RunStatus.SUCCEEDED
    assert [(d.user.id, d.decision) for d in run.decisions] == [("U_LEAD", "approve")]
    assert (effects(tmp_path, "prepared"), effects(tmp_path, "given_back")) == (["gated"], [])


async def test_the_requester_cannot_approve(gate: Gated) -> None:
    run = await gate.waiting()
    answer = await gate.decide(run, ONCALL)
    assert not answer.accepted
    assert "You asked for" in answer.message
    assert answer.run is not None
    assert answer.run.status is RunStatus.WAITING


async def test_the_requester_can_deny(gate: Gated, tmp_path: Path) -> None:
    run = await gate.waiting(script="count:a")
    assert (await gate.decide(run, ONCALL, "deny", reason="not now")).accepted
    run = await ended(gate.runs, run.id)
    assert run.status is RunStatus.DENIED
    assert run.outcome == "Denied by oncall: not now. Nothing was touched."
    assert effects(tmp_path, "a") == []
    async with asyncio.timeout(10):  # what was prepared is given back after the run's end is recorded
        while not effects(tmp_path, "given_back"):
            await asyncio.sleep(0.02)
    assert (effects(tmp_path, "prepared"), effects(tmp_path, "given_back")) == (["gated"], ["gated"])
    assert (await ended(gate.runs, (await start(gate.runs)).id)).status is RunStatus.SUCCEEDED


@pytest.mark.chaos(
    fault="two people press at once", at="approve and deny", after="the first wins, the other person is told"
)
async def test_the_first_of_two_simultaneous_decisions_wins_and_the_other_person_is_told(
    gate: Gated, tmp_path: Path
) -> None:
    for _ in range(5):
        run = await gate.waiting(script="count:a")
        before = len(effects(tmp_path, "a"))
        answers = await asyncio.gather(gate.decide(run, LEAD, "approve"), gate.decide(run, OTHER, "deny"))
        assert sorted(answer.accepted for answer in answers) == [False, True]
        winner = "approve" if answers[0].accepted else "deny"
        loser = next(answer for answer in answers if not answer.accepted)
        assert f"already {'approved by lead' if winner == 'approve' else 'denied by other'}" in loser.message
        run = await ended(gate.runs, run.id)
        assert run.status is (RunStatus.SUCCEEDED if winner == "approve" else RunStatus.DENIED)
        assert len(effects(tmp_path, "a")) - before == (winner == "approve")
        assert len(run.decisions) == 1


async def test_two_approvals_need_two_people(gate_of_two: Gated) -> None:
    run = await gate_of_two.waiting()
    first = await gate_of_two.decide(run, LEAD)
    assert first.accepted
    assert "1 more is needed" in first.message
    again = await gate_of_two.decide(run, LEAD)
    assert not again.accepted
    assert "already approved" in again.message
    assert (await gate_of_two.decide(run, OTHER)).accepted
    assert (await ended(gate_of_two.runs, run.id)).status is RunStatus.SUCCEEDED


async def test_an_override_needs_a_reason_and_skips_the_missing_approvals(gate_of_two: Gated) -> None:
    run = await gate_of_two.waiting()
    assert not (await gate_of_two.decide(run, LEAD, "override")).accepted
    assert (await gate_of_two.decide(run, LEAD, "override", reason="customers are down")).accepted
    run = await ended(gate_of_two.runs, run.id)
    assert run.status is RunStatus.SUCCEEDED
    assert run.decisions[0].reason == "customers are down"


async def test_a_changed_plan_voids_the_approvals_given_on_the_old_one(
    gate_of_two: Gated, tmp_path: Path
) -> None:
    run = await gate_of_two.waiting()
    assert (await gate_of_two.decide(run, LEAD)).accepted
    same = await gate_of_two.runs.replan(run.id, by=ONCALL)
    assert same.plan_hash == run.plan_hash
    assert same.short_of_approvals == 1
    (tmp_path / "hosts" / "toy" / "plan-marker").write_text("another loss")
    changed = await gate_of_two.runs.replan(run.id, by=ONCALL)
    assert changed.plan_hash != run.plan_hash
    assert changed.short_of_approvals == 2
    late = await gate_of_two.decide(run, OTHER)  # on the hash that was shown before
    assert not late.accepted
    assert "has changed since you saw it" in late.message
    assert (await gate_of_two.decide(changed, LEAD)).accepted
    assert (await gate_of_two.decide(changed, OTHER)).accepted
    assert (await ended(gate_of_two.runs, run.id)).status is RunStatus.SUCCEEDED


async def test_an_approval_request_expires_and_frees_its_host(short_gate: Gated) -> None:
    run = await short_gate.waiting()
    run = await ended(short_gate.runs, run.id)
    assert run.status is RunStatus.EXPIRED
    answer = await short_gate.decide(run)
    assert not answer.accepted
    assert "time to decide" in answer.message
    assert (await ended(short_gate.runs, (await start(short_gate.runs)).id)).status is RunStatus.SUCCEEDED


async def test_a_run_that_is_not_waiting_cannot_be_decided(gate: Gated) -> None:
    run = await ended(gate.runs, (await start(gate.runs)).id)
    answer = await gate.decide(run)
    assert not answer.accepted
    assert "is not waiting for a decision: it is succeeded" in answer.message
    nothing = await gate.approvals.decide(run_id="fb-none", user=LEAD, decision="approve", plan_hash="")
    assert not nothing.accepted
    assert "no run fb-none" in nothing.message


async def test_refused_decisions_are_in_the_audit_trail(gate: Gated) -> None:
    run = await gate.waiting()
    await gate.decide(run, ONCALL)
    assert any(entry.kind == "decision.refused" for entry in gate.store.audit.of_run(run.id))
    await gate.runs.stop(run.id, by=ONCALL)
