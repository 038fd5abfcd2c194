"""What each message says, in which order, and how it degrades where Slack refuses a block."""

import json

import pytest

from bot.incidents.outage import outage_of
from bot.presenter.details import details_view
from bot.presenter.message import Message
from bot.presenter.run_message import run_message
from bot.presenter.thread_notes import thread_notes
from bot.store.records import (
    Decision,
    Person,
    Place,
    RunRecord,
    RunStatus,
    StepRecord,
    StepStatus,
)
from gpu_actions.models import Finding, Severity, Verdict, VerdictKind
from gpu_actions.plan import Gate, Plan, Step
from tests.bot.presenter.test_any_message import CONTEXT, NOW, accepted, words_of


def a_run(**changes: object) -> RunRecord:
    values = {
        "id": "tri-1a2b",
        "action": "triage",
        "host": "serve1",
        "status": RunStatus.SUCCEEDED,
        "requester": Person(id="U0ONCALL"),
        "place": Place(channel="C1"),
        "created_at": NOW,
    }
    return RunRecord.model_validate({**values, **changes})


def test_the_card_states_the_cause_first_then_what_is_true_and_what_to_do_then_the_button() -> None:
    verdict = Verdict(
        verdict=VerdictKind.FALL_BACK,
        cause="nvlink_loss",
        summary="GPU 3 has lost its links",
        findings=(
            Finding(id="a", component="gpu", severity=Severity.OK, summary="8 GPUs"),
            Finding(id="b", component="nvlink", severity=Severity.CRITICAL, summary="GPU 3: 0 of 18"),
            Finding(id="c", component="nvlink", severity=Severity.WATCH, summary="GPU 4: 17 of 18"),
        ),
        action="Start the fallback.",
    )
    message = card_of(verdict)
    assert message.blocks[0]["text"]["text"] == "FALL BACK: nvlink_loss on serve1"
    assert (
        message.blocks[1]["text"]["text"]
        == ":red_circle: GPU 3 has lost its links\n*Next:* Start the fallback."
    )
    buttons = message.blocks[2]["elements"]
    assert [b["text"]["text"] for b in buttons] == ["Start fallback", "Details", "Triage again"]
    assert "confirm" in buttons[0], "a second thought before the full tier is stopped"
    assert message.text.splitlines()[0] == "FALL BACK: nvlink_loss on serve1"
    shown = json.dumps(message.blocks)
    assert "1 more finding" in shown
    details = json.dumps(details_view(run_with(verdict), CONTEXT))
    assert details.index("GPU 3: 0 of 18") < details.index("OK:"), "problems come before what is healthy"


def run_with(verdict: Verdict) -> RunRecord:
    step = StepRecord(step_id="look", title="look", status=StepStatus.DONE, verdict=verdict)
    return a_run(steps=(step,))


def card_of(verdict: Verdict) -> Message:
    return run_message(run_with(verdict), CONTEXT)


def test_no_sentence_appears_twice_on_a_card_or_in_its_details() -> None:
    hang = "rank 1 of 2 waits in all_reduce for 31 s"
    todo = "Start the fallback."
    findings = [
        Finding(id=f"f{n}", component=component, severity=Severity.CRITICAL, summary=summary, action=action)
        for n, (component, summary, action) in enumerate(
            [
                ("collective", hang, todo),
                ("gpu", "GPU 3 is lost", "Drain it."),
                ("gpu", "GPU 4 is lost", "Drain it."),
            ]
        )
    ]
    verdict = Verdict(
        verdict=VerdictKind.FALL_BACK,
        cause="nccl_hang",
        summary=f"{hang} (and 2 more findings)",
        findings=tuple(findings),
        action=todo,
    )
    shown = json.dumps(card_of(verdict).blocks).lower()
    for sentence in (hang, todo):
        assert shown.count(sentence.lower()) == 1, sentence
    assert json.dumps(details_view(run_with(verdict), CONTEXT)).count("Drain it.") == 1


def test_a_healthy_card_asks_for_no_action_once() -> None:
    verdict = Verdict(
        verdict=VerdictKind.HEALTHY, cause="none", summary="all checks passed", action="Nothing to do."
    )
    message = card_of(verdict)
    assert message.blocks[1]["text"]["text"] == ":large_green_circle: All checks passed. No action needed."
    shown = json.dumps(message.blocks)
    assert "What to do" not in shown
    assert "Next" not in shown
    assert "Nothing to do" not in shown
    assert words_of(message) <= 25


def test_only_a_fall_back_verdict_offers_the_fallback() -> None:
    for kind in (VerdictKind.HEALTHY, VerdictKind.WATCH, VerdictKind.UNKNOWN):
        verdict = Verdict(verdict=kind, cause="none", summary="x")
        assert "start_fallback" not in json.dumps(card_of(verdict).blocks)


def test_a_step_that_resumed_after_a_restart_says_so() -> None:
    step = StepRecord(
        step_id="warm", title="warm", status=StepStatus.RUNNING, executions=2, started_at=NOW - 3
    )
    run = a_run(id="fb-1a2b", action="fallback", status=RunStatus.RUNNING, started_at=NOW - 9, steps=(step,))
    assert "resumed after a restart" in json.dumps(run_message(run, CONTEXT).blocks)


def test_findings_dropped_for_size_are_counted() -> None:
    findings = tuple(
        Finding(id=f"n.{n}", component="nvlink", severity=Severity.CRITICAL, summary=f"link {n} " + "x" * 200)
        for n in range(400)
    )
    verdict = Verdict(verdict=VerdictKind.FALL_BACK, cause="nvlink_loss", summary="all", findings=findings)
    accepted(card_of(verdict))
    assert "399 more findings" in json.dumps(card_of(verdict).blocks)
    assert "more findings_" in json.dumps(details_view(run_with(verdict), CONTEXT))


def test_finished_steps_are_one_line_and_a_failed_one_keeps_its_own() -> None:
    def step(name: str, status: StepStatus, summary: str = "fine") -> StepRecord:
        return StepRecord(step_id=name, title=f"title of {name}", status=status, summary=summary)

    steps = (
        *(step(f"s{n}", StepStatus.DONE) for n in range(9)),
        step("s9", StepStatus.WARNING, "no baseline here"),
    )
    run = a_run(id="fb-1a2b", action="fallback", steps=steps, outcome="it serves")
    shown = json.dumps(run_message(run, CONTEXT).blocks)
    assert ":white_check_mark: 10 of 10 steps done" in shown
    assert "no baseline here" in shown
    assert "title of s3" not in shown
    assert "title of s3" in json.dumps(details_view(run, CONTEXT))


def test_a_run_at_work_is_a_native_plan_and_lines_of_text_where_slack_refuses_it() -> None:
    def step(name: str, status: StepStatus, summary: str = "") -> StepRecord:
        return StepRecord(step_id=name, title=f"title of {name}", status=status, summary=summary)

    steps = (
        *(step(f"s{n}", StepStatus.DONE) for n in range(5)),
        step("s5", StepStatus.WARNING, "no baseline <here>"),
        step("s6", StepStatus.RUNNING, "40 of 60 served"),
        step("s7", StepStatus.PENDING),
        step("s8", StepStatus.PENDING),
    )
    run = a_run(id="fb-1a2b", action="fallback", status=RunStatus.RUNNING, steps=steps)
    message = run_message(run, CONTEXT)
    accepted(message)
    plan = next(block for block in message.blocks if block["type"] == "plan")
    assert plan["title"] == "6 of 9 steps done"
    assert [(task["title"], task["status"]) for task in plan["tasks"]] == [
        ("Warning: title of s5", "complete"),
        ("40 of 60 served", "in_progress"),
        ("Then: title of s7", "pending"),
    ]
    assert plan["tasks"][0]["details"]["elements"][0]["elements"][0]["text"] == "no baseline <here>"
    assert json.dumps(message.blocks).count("40 of 60 served") == 1, "the same sentence twice"
    plain = message.simpler()
    accepted(plain)
    shown = json.dumps(plain.blocks)
    assert "plan" not in {block["type"] for block in plain.blocks}
    assert ":hourglass_flowing_sand: 40 of 60 served" in shown
    assert "no baseline &lt;here&gt;" in shown
    assert any(block["type"] == "actions" for block in plain.blocks), "the buttons stay"


def test_a_steps_chart_is_drawn_natively_and_read_as_text_where_slack_refuses_it() -> None:
    drawn = {
        "kind": "line",
        "title": "TTFT p99",
        "categories": ["1", "2"],
        "series": {"p99": [230, 900]},
        "y_label": "ms",
    }
    data = {"thread_text": "the knee", "table": [["", "p99"], ["TTFT", "230 ms"]], "chart": drawn}
    step = StepRecord(step_id="load", title="load", status=StepStatus.DONE, data=data)
    (note,) = [
        n for n in thread_notes(a_run(action="loadtest", steps=(step,)), CONTEXT) if n.key.startswith("step:")
    ]
    accepted(note.message)
    assert [block["type"] for block in note.message.blocks] == ["section", "data_visualization", "table"]
    accepted(note.message.simpler())
    assert "*p99* 1: 230, 2: 900" in json.dumps(note.message.simpler().blocks)
    for broken in ({}, {"title": "x"}, {**drawn, "categories": ["1"]}, {**drawn, "series": 3}, 7):
        other = StepRecord(
            step_id="load", title="load", status=StepStatus.DONE, data=data | {"chart": broken}
        )
        (note,) = [n for n in thread_notes(a_run(steps=(other,)), CONTEXT) if n.key.startswith("step:")]
        assert [block["type"] for block in note.message.blocks] == ["section", "table"]


def test_ids_and_hashes_appear_once_and_in_the_last_block() -> None:
    run = a_run(id="fb-1a2b", action="fallback", status=RunStatus.RUNNING, plan_hash="b41eeea9ab4b")
    *above, last = run_message(run, CONTEXT).blocks
    assert "fb-1a2b" in json.dumps(last)
    assert "b41eeea9ab4b" in json.dumps(last)
    visible = json.dumps([block for block in above if block["type"] != "actions"])
    assert "fb-1a2b" not in visible
    assert "b41eeea9ab4b" not in visible


def test_figures_of_a_load_test_are_a_table_and_lines_of_text_where_slack_refuses_it() -> None:
    rows = [
        ["Latency", "p50", "p99"],
        ["TTFT", "12 ms", "17 ms"],
        ["E2E", "27 ms", "32 ms"],
        ["Per token", "-", "-"],
    ]
    step = StepRecord(step_id="load", title="4 s at 5 requests/s", status=StepStatus.DONE, summary="PASSED: 20 of 20",
                      data={"thread_text": "PASSED\nTTFT", "table": rows, "table_notes": ["TTFT p99 rose"]})  # fmt: skip
    note = thread_notes(a_run(action="loadtest", steps=(step,)), CONTEXT)[0].message
    accepted(note)
    table = note.blocks[1]
    assert (table["type"], len(table["rows"])) == ("table", 4)
    assert "TTFT p99 rose" in json.dumps(note.blocks[2])
    simpler = note.simpler()
    assert "*TTFT* p50 12 ms, p99 17 ms" in json.dumps(simpler.blocks)
    assert not any(block["type"] == "table" for block in simpler.blocks)
    assert simpler.simpler().blocks == ()


@pytest.mark.parametrize("table", [None, "x", [], [["a"]], [["a", "b"], ["1"]], [[], []], [["a"], 3]])
def test_a_table_that_another_version_stored_otherwise_is_shown_as_its_text(table: object) -> None:
    step = StepRecord(
        step_id="load", title="load", status=StepStatus.DONE, data={"thread_text": "PASSED", "table": table}
    )
    accepted(thread_notes(a_run(action="loadtest", steps=(step,)), CONTEXT)[0].message)


def test_a_request_carries_its_buttons_and_keeps_one_line_once_it_is_decided() -> None:
    gate = Gate(approvals=1, approvers="approver", expires_s=600, reason="two people")
    plan = Plan(action="restore", host="serve1", title="Bring the full tier back", gate=gate, losses="no request",
                warnings=("no baseline", "second"), steps=(Step(id="a", verb="toy.count", title="a"),))  # fmt: skip
    values = {
        "id": "rs-7k2m",
        "action": "restore",
        "plan": plan,
        "plan_hash": plan.hash,
        "gate_expires_at": NOW + 300,
    }
    waiting = a_run(**values, status=RunStatus.WAITING)
    request = thread_notes(waiting, CONTEXT)[0]
    labels = [
        b["text"]["text"]
        for block in request.message.blocks
        if block["type"] == "actions"
        for b in block["elements"]
    ]
    assert labels == ["Approve", "Deny", "Show plan"]
    assert not request.if_posted
    assert [b for b in run_message(waiting, CONTEXT).blocks if "approve" in json.dumps(b)] == [], (
        "one place to decide"
    )
    approved = Decision(user=Person(id="U0LEAD"), decision="approve", plan_hash=plan.hash, at=NOW)
    decided = thread_notes(a_run(**values, status=RunStatus.RUNNING, decisions=(approved,)), CONTEXT)[0]
    assert decided.if_posted
    assert "Approved by <@U0LEAD>" in decided.message.text
    assert not any(block["type"] == "actions" for block in decided.message.blocks)


def test_the_card_says_what_a_start_spent_and_what_the_time_without_a_token_went_to() -> None:
    def step(step_id: str, begins_s: float, ends_s: float, **data: object) -> dict[str, object]:
        times = {"started_at": NOW + begins_s, "ended_at": NOW + ends_s}
        return {"step_id": step_id, "title": step_id, "status": "done", "data": data, **times}

    gap = {"from_s": NOW - 4, "to_s": NOW + 6}
    account = {"since_s": NOW, "until_s": NOW + 9, "without_answer": gap}
    run = a_run(
        action="fallback",
        steps=(
            step("hold", 1, 1.5),
            step("launch", 1.5, 2.5),
            step("warm", 2.5, 5, card={"Start-up": "3.5 s: weights 2.0 s, the rest 1.5 s"}),
            step("route", 5, 6.5),
            step("capture", 7, 8),
            step("drain", 8, 9, clients={"text": "3 answers broke off", "account": account}),
        ),
    )
    text = json.dumps(run_message(run, CONTEXT).blocks)
    assert "*Start-up:* 3.5 s: weights 2.0 s, the rest 1.5 s" in text
    assert (
        "*Outage:* 10.0 s without a token, of which detection 4.0 s (40 %), decision 1.0 s (10 %), start 3.5 s (35 %), "
        "first token 1.0 s (10 %), the rest 0.5 s"
    ) in text
    outage = outage_of(run)
    assert outage is not None
    assert "drain 0.5 s (5 %)" in outage.text, "the report names every phase"
    assert outage_of(a_run(action="restore", steps=run.steps)) is None


def test_the_latest_count_of_what_clients_saw_is_on_the_card_once() -> None:
    steps = tuple(
        StepRecord(
            step_id=name, title=name, status=StepStatus.DONE, summary="ok", data={"clients": {"text": text}}
        )
        for name, text in (("backpressure", "3 answers broke off"), ("drain", "4 answers broke off"))
    )
    running = a_run(action="fallback", status=RunStatus.RUNNING, steps=steps)
    text = json.dumps(run_message(running, CONTEXT).blocks)
    assert "*Clients:* 4 answers broke off" in text
    assert "3 answers" not in text
    ended = a_run(
        action="fallback", status=RunStatus.SUCCEEDED, steps=steps, outcome="it serves; 4 answers broke off"
    )
    assert json.dumps(run_message(ended, CONTEXT).blocks).count("4 answers broke off") == 1


def test_the_card_counts_how_requests_ended_and_what_is_served_now() -> None:
    account = {
        "since_s": 0.0, "until_s": 60.0, "finished": 812, "refused": 413, "aborted": 46, "resent": 101, "client_left": 3,
        "before_per_s": 180.0, "refused_peak_percent": 71.4, "without_answer": {"from_s": 1.0, "to_s": 4.6},
    }  # fmt: skip
    counted = {"text": "in the 60 s of this run ...", "account": account, "served_per_s": 68.4}
    step = StepRecord(
        step_id="stop", title="Stop tp", status=StepStatus.DONE, summary="ok", data={"clients": counted}
    )
    text = str(run_message(a_run(status=RunStatus.RUNNING, steps=(step,)), CONTEXT).blocks)
    assert (
        "*Clients:* 46 cut, 413 refused, 101 retried on the other tier, 812 finished, 4 s without an answer"
        in text
    )
    assert "*Capacity:* serving 38 % of the usual 180 requests/s, 71 % refused at peak" in text
    whole = account | {"aborted": 0, "refused": 0, "resent": 0, "without_answer": None}
    step = step.model_copy(update={"data": {"clients": counted | {"account": whole}}})
    text = str(run_message(a_run(status=RunStatus.RUNNING, steps=(step,)), CONTEXT).blocks)
    assert "*Clients:* none lost, 812 finished" in text
    assert "Capacity" not in text
    lacking = whole | {"incomplete": "the router was restarted"}
    step = step.model_copy(update={"data": {"clients": counted | {"account": lacking}}})
    text = str(run_message(a_run(status=RunStatus.RUNNING, steps=(step,)), CONTEXT).blocks)
    assert "*Clients:* 812 finished, the record is not complete: there may be more" in text
