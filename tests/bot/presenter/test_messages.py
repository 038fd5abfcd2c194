"""Every message of any record fits Slack's limits, states its verdict first, and mentions nobody by accident.

The local workspace checks the blocks: it refuses what Slack refuses.
"""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.incidents.outage import outage_of
from bot.presenter.details import details_view, plan_view
from bot.presenter.incidents import timeline
from bot.presenter.message import Message
from bot.presenter.plan_message import plan_message
from bot.presenter.render_context import RenderContext
from bot.presenter.run_message import run_message
from bot.presenter.thread_notes import override_notice, thread_notes
from bot.store.records import (
    ArtifactRecord,
    Decision,
    IncidentRecord,
    IncidentStatus,
    Person,
    Place,
    RunRecord,
    RunStatus,
    StepRecord,
    StepStatus,
    TimelineEntry,
)
from demo.workspace.blocks import block_lines, checked_blocks
from gpu_actions.models import Artifact, Finding, Severity, Verdict, VerdictKind
from gpu_actions.plan import Gate, Plan, Step

NOW = 1_795_000_000.0
CONTEXT = RenderContext(
    now=NOW,
    commands={"triage": "/triage", "fallback": "/fallback", "restore": "/restore"},
    roles={"approver": "<!subteam^S1|@incident-leads>"},
    bot_user_id="U0BOT",
)
SECRET = "sk-proj-abcdefgh1234"
NASTY = st.sampled_from(
    [
        f" --api-key {SECRET} ",
        f" HF_TOKEN='{SECRET} {SECRET}' ",
        "<!channel>",
        "<!here>",
        "<@U0LEAD>",
        "```",
        "`",
        "&amp;",
        "|",
        "\n\n",
        "*x*",
        "_",
        "<http://evil|ok>",
        "☃" * 50,
    ]
)
# Without a hyphen: Hypothesis tries a module's literals as texts too, and the secret in the middle of a word is none.
PLAIN = st.text(st.characters(exclude_characters="-"), max_size=60)
TEXT = st.one_of(PLAIN, NASTY, st.builds("".join, st.lists(NASTY, max_size=5)))
LONG = st.one_of(TEXT, st.integers(100, 6000).map(lambda n: "x<&>y " * (n // 6)))
SECONDS = st.floats(NOW - 90_000, NOW + 90_000, allow_nan=False)
PEOPLE = st.builds(Person, id=st.sampled_from(["U0ONCALL", "monitor", "shell", "U0LEAD"]), name=TEXT)
FINDINGS = st.builds(
    Finding,
    id=st.sampled_from(["collective.hang", "nvlink.partial", "serving.down"]),
    component=st.sampled_from(["collective", "nvlink", "serving", "gpu"]),
    severity=st.sampled_from(Severity),
    summary=LONG,
    evidence=st.dictionaries(TEXT, st.one_of(LONG, st.integers(), st.lists(TEXT, max_size=3)), max_size=4),
    action=LONG,
)
VERDICTS = st.builds(
    Verdict,
    verdict=st.sampled_from(VerdictKind),
    cause=st.sampled_from(["none", "nccl_hang", "nvlink_loss"]),
    summary=LONG,
    findings=st.lists(FINDINGS, max_size=60).map(tuple),
    action=LONG,
)
STEPS = st.builds(
    StepRecord,
    step_id=st.sampled_from(["capture", "drain", "shift-5", "load"]),
    attempt=st.integers(1, 3),
    title=LONG,
    status=st.sampled_from(StepStatus),
    summary=LONG,
    next_action=LONG,
    progress=st.one_of(st.none(), st.floats(0, 1)),
    started_at=st.one_of(st.none(), SECONDS),
    ended_at=st.one_of(st.none(), SECONDS),
    executions=st.integers(0, 3),
    data=st.one_of(st.just({}), LONG.map(lambda text: {"thread_text": text})),
    verdict=st.one_of(st.none(), VERDICTS),
)
PLANS = st.builds(
    Plan,
    action=st.just("restore"),
    host=st.just("serve1"),
    title=LONG,
    steps=st.lists(
        st.builds(
            Step,
            id=st.uuids().map(lambda value: f"s{value.hex[:8]}"),
            verb=st.just("toy.count"),
            title=LONG,
            details=st.lists(LONG, max_size=6).map(tuple),
            timeout_s=st.just(60),
        ),
        min_size=1,
        max_size=25,
        unique_by=lambda step: step.id,
    ).map(tuple),
    losses=LONG,
    gate=st.one_of(
        st.none(),
        st.builds(
            Gate,
            approvals=st.integers(1, 5),
            approvers=st.just("approver"),
            expires_s=st.just(600),
            reason=LONG,
        ),
    ),
)
ARTIFACTS = st.builds(
    ArtifactRecord,
    id=st.integers(1, 99),
    run_id=st.just("rs-7k2m"),
    step_id=st.just("load"),
    artifact=st.builds(
        Artifact, name=st.just("report.png"), path=st.just("/tmp/report.png"), size_bytes=st.integers(0, 10**9),
        sha256=st.just("0" * 64), source=TEXT, title=LONG,
    ),
    url=st.sampled_from(["", "http://127.0.0.1:8801/artifacts/rs-7k2m/load/report.png?sig=0&x=<y>"]),
)  # fmt: skip
RUNS = st.builds(
    RunRecord,
    id=st.just("rs-7k2m"),
    action=st.sampled_from(["triage", "fallback", "restore", "loadtest", "trace", "forensics"]),
    host=st.just("serve1"),
    status=st.sampled_from(RunStatus),
    requester=PEOPLE,
    place=st.builds(Place, channel=st.just("C0INCIDENTS"), thread_ts=st.one_of(st.none(), st.just("1.2"))),
    plan=st.one_of(st.none(), PLANS),
    plan_hash=st.sampled_from(["", "b41eeea9ab4b"]),
    problems=st.lists(LONG, max_size=30).map(tuple),
    created_at=SECONDS,
    started_at=st.one_of(st.none(), SECONDS),
    ended_at=st.one_of(st.none(), SECONDS),
    gate_expires_at=st.one_of(st.none(), SECONDS),
    outcome=LONG,
    next_action=LONG,
    steps=st.lists(STEPS, max_size=25, unique_by=lambda step: (step.step_id, step.attempt)).map(tuple),
    decisions=st.lists(
        st.builds(Decision, user=PEOPLE, decision=st.sampled_from(["approve", "deny", "override"]),
                  plan_hash=st.sampled_from(["b41eeea9ab4b", "old"]), reason=LONG, at=SECONDS), max_size=4,
    ).map(tuple),
    artifacts=st.lists(ARTIFACTS, max_size=30).map(tuple),
)  # fmt: skip


def accepted(message: Message) -> None:
    """Assert that Slack would accept a message: its blocks, and its text for the notification."""
    blocks = message.stamped("rs-7k2m.12.3").blocks
    assert checked_blocks(json.loads(json.dumps(blocks)))
    assert 0 < len(message.text) <= 3000
    shown = json.dumps(mrkdwn_of(blocks)) + message.text
    for harm in ("<!channel>", "<!here>", "<http://evil|ok>"):
        assert harm not in shown
    assert SECRET not in json.dumps(blocks) + message.text


def mrkdwn_of(value: Any) -> list[Any]:
    """Return every text that Slack reads as mrkdwn; plain text cannot contain mentions."""
    if isinstance(value, dict):
        return [value] if value.get("type") == "mrkdwn" else [t for v in value.values() for t in mrkdwn_of(v)]
    return [t for v in value for t in mrkdwn_of(v)] if isinstance(value, list | tuple) else []


def words_of(message: Message) -> int:
    """Count the words that a person sees, buttons and ids included; the address of a link is not seen."""
    names = {"U0ONCALL": "oncall", "U0LEAD": "lead"}
    shown = " ".join(block_lines(list(message.blocks), names))
    shown = re.sub(r"\(https?://[^)\s]*\)", " ", shown)
    shown = re.sub(r"\[(?:green|yellow|red|ok|failed|stop|\.\.|!+| )\]|:[a-z_]+:", " ", shown)
    return sum(any(letter.isalnum() for letter in word) for word in shown.split())


@settings(max_examples=150)
@given(RUNS)
def test_slack_accepts_the_message_and_notes_of_any_run_and_a_phone_shows_them(run: RunRecord) -> None:
    accepted(run_message(run, CONTEXT))
    short_enough(run)
    for view in (details_view(run, CONTEXT), plan_view(run, CONTEXT)):
        blocks = json.loads(json.dumps(view["blocks"]))
        assert checked_blocks(blocks, limit=100, total=250_000)
        assert SECRET not in json.dumps(blocks)
        assert len(view["title"]["text"]) <= 24
    for note in thread_notes(run, CONTEXT):
        accepted(note.message)
    if (notice := override_notice(run)) is not None:
        accepted(notice)


def short_enough(run: RunRecord) -> None:
    """Assert 60 words for a verdict, 80 for a request for approval, 120 for a run with every kind of trouble at once."""
    message = run_message(run, CONTEXT)
    verdict = run.action == "triage" and run.status.final and any(step.verdict for step in run.steps)
    assert words_of(message) <= (60 if verdict else 120), words_of(message)
    kinds = [block["type"] for block in message.blocks]
    assert kinds[:2] == ["header", "section"]
    if "actions" in kinds and not run.problems:
        assert kinds[2] == "actions", "the buttons are below the first two lines"
    for note in thread_notes(run, CONTEXT):
        if note.key.startswith("ask:"):
            assert words_of(note.message) <= 80, words_of(note.message)


@settings(max_examples=60)
@given(PLANS)
def test_slack_accepts_the_message_of_any_plan(plan: Plan) -> None:
    accepted(plan_message(plan, CONTEXT))


@settings(max_examples=40)
@given(st.lists(st.builds(TimelineEntry, at=SECONDS, incident_id=st.none(), run_id=st.none(), host=st.just("h"),
                          actor=TEXT, kind=st.just("note"), text=LONG), max_size=150))  # fmt: skip
def test_slack_accepts_the_message_of_any_timeline(entries: list[TimelineEntry]) -> None:
    incident = IncidentRecord(
        id="inc-1", host="serve1", title="x", status=IncidentStatus.OPEN, place=Place(channel="C1"),
        opened_by=Person(id="U1"), opened_at=NOW,
    )  # fmt: skip
    accepted(timeline(incident, entries))


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
