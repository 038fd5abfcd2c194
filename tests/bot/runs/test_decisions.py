"""Decisions as a table: who may decide what and when, the line that each person gets, and what the record keeps.

Against the store alone; `test_approvals` has the same with a run at work.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.runs.approvals import Approvals, replace_plan
from bot.store.records import Person, RunRecord, RunStatus
from bot.store.row_to_record import OTHER_VERSION
from bot.store.store import Store
from gpu_actions.plan import Gate, Plan, Step
from tests.bot.toys import HERE, LEAD, ONCALL, OTHER

BEGIN, EXPIRES_S = 1000.0, 600.0
NAMELESS = Person(id="U_NAMELESS")


def plan(title: str = "Restore", *, approvals: int | None = 2, expires_s: float = EXPIRES_S) -> Plan:
    gate = None
    if approvals is not None:
        gate = Gate(approvals=approvals, approvers="approver", expires_s=expires_s, reason="it moves traffic")
    return Plan(
        action="restore",
        host="h1",
        title=title,
        gate=gate,
        steps=(Step(id="a", title="a", verb="toy.count"),),
    )


PLAN = plan()


class Desk:
    """A store with a waiting run, and a clock that a test sets."""

    def __init__(self, database: Path) -> None:
        self.now = BEGIN
        self.store = Store(f"sqlite:///{database}", clock=lambda: self.now)
        self.changed: list[str] = []
        self.store.subscribe(self.changed.append)

    def fill(self) -> None:
        """Create the tables and insert the runs."""
        self.store.create()
        record = RunRecord(
            id="rs-1", action="restore", host="h1", status=RunStatus.PLANNING, requester=ONCALL, place=HERE, created_at=BEGIN
        )  # fmt: skip
        self.store.insert_run(record, dedupe_key="k", changes_host=True)
        self.store.insert_run(
            record.model_copy(update={"id": "rs-0"}), dedupe_key="k0", changes_host=False
        )  # another run, whose decisions must not count
        self.set("rs-0", status="waiting", plan=PLAN, expires_at=None)
        self.set("rs-1", status="waiting", plan=PLAN, expires_at=BEGIN + EXPIRES_S)

    def set(self, run_id: str = "rs-1", *, status: str, plan: Any, expires_at: float | None) -> None:
        dumped = plan.model_dump(mode="json") if isinstance(plan, Plan) else plan
        digest = plan.hash if isinstance(plan, Plan) else ""
        with self.store.change(run_id) as change:
            change.set(status=status, plan=dumped, plan_hash=digest, gate_expires_at=expires_at)

    async def decide(
        self, who: Person, decision: str, reason: str = "", *, on: str = PLAN.hash, run: str = "rs-1"
    ) -> tuple[bool, str]:
        answer = await Approvals(self.store).decide(
            run_id=run, user=who, decision=decision, plan_hash=on, reason=reason
        )
        assert answer.run == self.store.get(run)
        return answer.accepted, answer.message

    @property
    def run(self) -> RunRecord:
        run = self.store.get("rs-1")
        assert run is not None
        return run

    def trail(self) -> list[tuple[str, str, str]]:
        return [
            (row.kind, row.text, row.actor)
            for row in self.store.audit.of_run("rs-1")
            if row.kind.startswith(("decision.", "run.replanned"))
        ]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with the runs, which takes a while to create."""
    path = tmp_path_factory.mktemp("desk") / "runs.db"
    made = Desk(path)
    made.fill()
    made.store.close()
    return path


@pytest.fixture
def desk(tmp_path: Path, filled: Path) -> Iterator[Desk]:
    made = Desk(shutil.copy(filled, tmp_path / "runs.db"))
    yield made
    made.store.close()


OWN = "You asked for rs-1 yourself, so another person must {} it. You can stop it."
TABLE: dict[str, tuple[list[tuple[Any, ...]], RunStatus]] = {
    # each: who, decision, reason; accepted and what they are told
    "two approvals of two": (
        [
            (LEAD, "approve", "", True, "Your approval of rs-1 counts; 1 more is needed."),
            (OTHER, "approve", "", True, "rs-1 is approved and starts now."),
        ],
        RunStatus.QUEUED,
    ),
    "one person twice": (
        [
            (LEAD, "approve", "", True, "Your approval of rs-1 counts; 1 more is needed."),
            (LEAD, "approve", "", False, "You have already approved rs-1; another person must decide."),
            (LEAD, "deny", "", False, "You have already approved rs-1; another person must decide."),
        ],
        RunStatus.WAITING,
    ),
    "the requester": (
        [
            (ONCALL, "approve", "", False, OWN.format("approve")),
            (ONCALL, "override", "now", False, OWN.format("override")),
            (ONCALL, "deny", "", True, "rs-1 is denied. Nothing was touched."),
        ],
        RunStatus.DENIED,
    ),
    "a denial after an approval": (
        [
            (LEAD, "approve", "", True, "Your approval of rs-1 counts; 1 more is needed."),
            (OTHER, "deny", " not  now ", True, "rs-1 is denied. Nothing was touched."),
            (NAMELESS, "approve", "", False, "rs-1 was already denied by other."),
        ],
        RunStatus.DENIED,
    ),
    "an override": (
        [
            (LEAD, "override", "", False, "An override needs a reason; it is kept in the record."),
            (LEAD, "override", "  ", False, "An override needs a reason; it is kept in the record."),
            (
                NAMELESS, "override", " customers are down ", True,
                "rs-1 continues without the missing approvals, on your override. The reason is in the record.",
            ),
            (LEAD, "approve", "", False, "rs-1 was already overridden by U_NAMELESS."),
        ],
        RunStatus.QUEUED,
    ),
    "a word that is no decision": (
        [(LEAD, "maybe", "x", False, "'maybe' is not a decision. Use one of: approve, deny, override.")],
        RunStatus.WAITING,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
async def test_each_person_is_told_what_their_decision_did(desk: Desk, name: str) -> None:
    rows, status = TABLE[name]
    accepted = []
    for who, decision, reason, counts, message in rows:
        assert await desk.decide(who, decision, reason) == (counts, message)
        accepted += [(who, decision, PLAN.hash, reason.strip(), BEGIN)] if counts else []
    assert desk.run.status is status
    assert [(d.user, d.decision, d.plan_hash, d.reason, d.at) for d in desk.run.decisions] == accepted
    assert desk.run.ended_at == (BEGIN if status.final else None)


async def test_the_outcome_of_a_denial_names_the_person_and_the_reason(desk: Desk) -> None:
    await desk.decide(NAMELESS, "deny", "not  now")
    assert desk.run.outcome == "Denied by U_NAMELESS: not  now. Nothing was touched."


async def test_the_outcome_of_a_denial_without_a_reason(desk: Desk) -> None:
    await desk.decide(OTHER, "deny")
    assert desk.run.outcome == "Denied by other. Nothing was touched."


async def test_the_audit_trail_keeps_what_counted_and_what_did_not(desk: Desk) -> None:
    await desk.decide(ONCALL, "approve")
    await desk.decide(LEAD, "approve")
    await desk.decide(OTHER, "override", "customers are down")
    assert desk.trail() == [
        (
            "decision.refused",
            f"approve: {OWN.format('approve')}",
            "U_ONCALL",
        ),
        ("decision.approve", "approved", "U_LEAD"),
        ("decision.override", "overridden customers are down", "U_OTHER"),
    ]
    assert set(desk.changed) == {"rs-1"}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("planning", "rs-1 is still being planned; decide when its plan is shown."),
        ("expired", "The time to decide on rs-1 is over; make a new request."),
        ("queued", "rs-1 was already approved by lead."),
        ("running", "rs-1 was already approved by lead."),
        ("denied", "rs-1 was already approved by lead."),
        ("cancelled", "rs-1 is not waiting for a decision: it is cancelled."),
        ("succeeded", "rs-1 is not waiting for a decision: it is succeeded."),
    ],
)
async def test_a_decision_that_comes_too_late_or_too_early_is_told_why(
    desk: Desk, status: str, message: str
) -> None:
    await desk.decide(LEAD, "approve")
    desk.set(status=status, plan=PLAN, expires_at=None)
    assert await desk.decide(OTHER, "approve") == (False, message)


async def test_a_run_that_nobody_decided_on_and_that_runs_is_not_waiting(desk: Desk) -> None:
    desk.set(status="running", plan=PLAN, expires_at=None)
    told = await desk.decide(OTHER, "deny")
    assert told == (False, "rs-1 is not waiting for a decision: it is running.")


@pytest.mark.parametrize(
    ("after_s", "accepted"), [(EXPIRES_S - 1, True), (EXPIRES_S, False), (EXPIRES_S + 1, False)]
)
async def test_the_time_to_decide_ends_at_its_second(desk: Desk, after_s: float, accepted: bool) -> None:
    desk.now = BEGIN + after_s
    counts, message = await desk.decide(LEAD, "approve")
    assert counts is accepted
    assert accepted or message == "The time to decide on rs-1 is over; make a new request."


async def test_a_request_without_an_end_does_not_expire(desk: Desk) -> None:
    desk.set(status="waiting", plan=PLAN, expires_at=None)
    desk.now = 1e9
    assert (await desk.decide(LEAD, "approve"))[0]


async def test_a_decision_counts_only_for_the_run_and_the_plan_that_it_names(desk: Desk) -> None:
    assert (await desk.decide(LEAD, "approve", run="rs-0"))[0]
    assert await desk.decide(LEAD, "approve", on="") == (
        False, "The decision on rs-1 names no plan, so it does not count: use the newest request.",
    )  # fmt: skip
    assert await desk.decide(LEAD, "approve", on="0123456789ab") == (
        False, f"The plan of rs-1 has changed since you saw it (now {PLAN.hash}): read it again, then decide.",
    )  # fmt: skip
    assert await desk.decide(LEAD, "approve") == (True, "Your approval of rs-1 counts; 1 more is needed.")
    missing = await desk.decide(OTHER, "approve", run="rs-none")
    assert missing == (False, "There is no run rs-none; see the active ones with the status command.")


async def test_three_approvals_say_how_many_are_missing(desk: Desk) -> None:
    three = plan(approvals=3)
    desk.set(status="waiting", plan=three, expires_at=None)
    told = await desk.decide(LEAD, "approve", on=three.hash)
    assert told == (True, "Your approval of rs-1 counts; 2 more are needed.")


async def test_a_plan_without_a_gate_needs_no_approval(desk: Desk) -> None:
    free = plan(approvals=None)
    desk.set(status="waiting", plan=free, expires_at=None)
    assert await desk.decide(LEAD, "approve", on=free.hash) == (False, "rs-1 needs no approval.")


async def test_a_plan_of_another_version_cannot_be_approved(desk: Desk) -> None:
    desk.set(status="waiting", plan={"version": 999}, expires_at=None)
    counts, message = await desk.decide(LEAD, "approve")
    assert not counts
    assert message.startswith(f"{OTHER_VERSION}: its plan has format 999")
    assert message.endswith(". Start the action again.")


async def test_another_plan_voids_the_approvals_of_the_old_one(desk: Desk) -> None:
    assert (await desk.decide(OTHER, "approve", run="rs-0"))[0]  # on the same plan, but of another run
    assert (await desk.decide(LEAD, "approve"))[0]
    desk.now += 60
    newer = plan("Restore in two stages", expires_s=30)
    assert replace_plan(desk.store, desk.run, newer, OTHER)
    run = desk.run
    assert (run.plan, run.plan_hash, run.gate_expires_at) == (newer, newer.hash, BEGIN + 90)
    text = f"plan {PLAN.hash} was replaced by {newer.hash}; decisions on the old plan, now void: 1"
    assert desk.trail()[-1] == ("run.replanned", text, "U_OTHER")
    assert await desk.decide(LEAD, "approve", on=newer.hash) == (
        True, "Your approval of rs-1 counts; 1 more is needed.",
    )  # fmt: skip
    assert replace_plan(desk.store, desk.run, PLAN, OTHER)
    assert desk.trail()[-1][1].endswith("decisions on the old plan, now void: 1")  # not the one before


async def test_a_plan_is_not_replaced_under_a_decision(desk: Desk) -> None:
    seen = desk.run
    newer = plan("Restore in two stages", approvals=None)
    assert replace_plan(desk.store, seen, newer, OTHER)
    assert desk.run.gate_expires_at == BEGIN  # without a gate there is no time to wait
    desk.changed.clear()
    assert not replace_plan(desk.store, seen, plan("a third"), OTHER)  # it read the first plan
    desk.set(status="queued", plan=newer, expires_at=None)
    desk.changed.clear()
    assert not replace_plan(desk.store, desk.run, plan("a third"), OTHER)
    assert (desk.run.plan_hash, desk.changed) == (newer.hash, [])
