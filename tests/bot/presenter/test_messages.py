"""Every message of any record fits Slack's limits, states its verdict first, and mentions nobody by accident.

The local workspace checks the blocks: it refuses what Slack refuses.
"""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

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
from demo.workspace.blocks import checked_blocks
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


@settings(max_examples=150, deadline=None)
@given(RUNS)
def test_slack_accepts_the_message_and_notes_of_any_run(run: RunRecord) -> None:
    accepted(run_message(run, CONTEXT))
    for note in thread_notes(run, CONTEXT):
        accepted(note.message)
    if (notice := override_notice(run)) is not None:
        accepted(notice)


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_slack_accepts_the_message_of_any_plan(plan: Plan) -> None:
    accepted(plan_message(plan, CONTEXT))


@settings(max_examples=40, deadline=None)
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


def test_the_card_states_verdict_and_cause_first_and_what_to_do_second() -> None:
    verdict = Verdict(
        verdict=VerdictKind.FALL_BACK,
        cause="nvlink_loss",
        summary="GPU 3 has lost its links",
        findings=(
            Finding(id="a", component="gpu", severity=Severity.OK, summary="8 GPUs"),
            Finding(id="b", component="nvlink", severity=Severity.CRITICAL, summary="GPU 3: 0 of 18"),
        ),
        action="Start the fallback.",
    )
    step = StepRecord(step_id="look", title="look", status=StepStatus.DONE, verdict=verdict)
    message = run_message(a_run(steps=(step,)), CONTEXT)
    assert message.blocks[0]["text"]["text"] == "FALL BACK: nvlink_loss on serve1"
    assert "Start the fallback" in message.blocks[1]["text"]["text"]
    assert message.text.splitlines()[0] == "FALL BACK: nvlink_loss on serve1"
    shown = json.dumps(message.blocks)
    assert shown.index("GPU 3: 0 of 18") < shown.index("OK:"), "problems come before what is healthy"
    assert "start_fallback" in shown


def card_of(verdict: Verdict) -> Message:
    step = StepRecord(step_id="look", title="look", status=StepStatus.DONE, verdict=verdict)
    return run_message(a_run(steps=(step,)), CONTEXT)


def test_no_sentence_appears_twice_on_a_card() -> None:
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
    shown = json.dumps(card_of(verdict).blocks)
    for sentence in (hang, todo, "Drain it."):
        assert shown.count(sentence) == 1, sentence


def test_a_healthy_card_asks_for_no_action() -> None:
    verdict = Verdict(verdict=VerdictKind.HEALTHY, cause="none", summary="all checks passed")
    message = card_of(verdict)
    assert message.text == "HEALTHY: serve1\nNo action needed."
    assert "What to do" not in json.dumps(message.blocks)


def test_only_a_fall_back_verdict_offers_the_fallback() -> None:
    for kind in (VerdictKind.HEALTHY, VerdictKind.WATCH, VerdictKind.UNKNOWN):
        step = StepRecord(
            step_id="look",
            title="look",
            status=StepStatus.DONE,
            verdict=Verdict(verdict=kind, cause="none", summary="x"),
        )
        assert "start_fallback" not in json.dumps(run_message(a_run(steps=(step,)), CONTEXT).blocks)


def test_a_step_that_resumed_after_a_restart_says_so() -> None:
    step = StepRecord(
        step_id="warm", title="warm", status=StepStatus.RUNNING, executions=2, started_at=NOW - 3
    )
    run = a_run(id="fb-1a2b", action="fallback", status=RunStatus.RUNNING, started_at=NOW - 9, steps=(step,))
    assert "resumed after a restart" in json.dumps(run_message(run, CONTEXT).blocks)


def test_findings_dropped_for_size_are_counted() -> None:
    findings = tuple(
        Finding(id=f"n.{n}", component="nvlink", severity=Severity.CRITICAL, summary=f"link {n} " + "x" * 200)
        for n in range(144)
    )
    verdict = Verdict(verdict=VerdictKind.FALL_BACK, cause="nvlink_loss", summary="all", findings=findings)
    step = StepRecord(step_id="look", title="look", status=StepStatus.DONE, verdict=verdict)
    message = run_message(a_run(steps=(step,)), CONTEXT)
    accepted(message)
    assert "more findings_" in json.dumps(message.blocks)


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
