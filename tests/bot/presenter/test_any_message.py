"""Every message of any record fits Slack's limits, states its verdict first, and mentions nobody by accident.

The local workspace checks the blocks: it refuses what Slack refuses."""

import json
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(max_examples=80)
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


@settings(max_examples=30)
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
