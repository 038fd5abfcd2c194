"""The short texts (answers, alerts, incidents, help, Home tab, comparisons) fit Slack's limits; the functions of mrkdwn."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.presenter import alerts, incidents, mrkdwn, private_answers
from bot.presenter.help import command_help, overview
from bot.presenter.home import HomeState, HostState, home_view
from bot.presenter.loadtests import comparison_message
from bot.presenter.message import Lines, button, compose, section
from bot.presenter.whoami import Rights, whoami
from bot.store.records import Alert, IncidentRecord, IncidentStatus, Person, Place, RunRecord
from demo.workspace.blocks import checked_blocks
from gpu_actions.loadtest.comparison import Change, Comparison, MetricComparison
from gpu_actions.models import VerdictKind
from handlers import COMMANDS
from tests.bot.presenter.test_any_message import (
    CONTEXT,
    LONG,
    NOW,
    PEOPLE,
    RUNS,
    SECONDS,
    SECRET,
    TEXT,
    accepted,
    words_of,
)

HELPS = list(COMMANDS.values())
FEW = settings(max_examples=25)
INCIDENTS = st.builds(
    IncidentRecord,
    id=st.just("inc-1"),
    host=st.just("serve1"),
    title=LONG,
    cause=TEXT,
    status=st.sampled_from(IncidentStatus),
    place=st.just(Place(channel="C1", thread_ts="1.2")),
    opened_by=PEOPLE,
    opened_at=SECONDS,
    closed_at=st.one_of(st.none(), SECONDS),
)
FIGURES = st.one_of(st.none(), st.floats(-1e9, 1e9))
COMPARISONS = st.builds(
    Comparison,
    verdict=st.sampled_from(Change),
    baseline_name=TEXT,
    reasons=st.lists(LONG, max_size=20).map(tuple),
    metrics=st.lists(
        st.builds(MetricComparison, metric=st.sampled_from(["ttft_p50", "served_percent", "new"]), unit=st.just("ms"),
                  baseline=FIGURES, candidate=FIGURES, change=FIGURES, low=FIGURES, high=FIGURES,
                  decisive=st.booleans(), verdict=st.sampled_from(Change), note=LONG),
        max_size=10,
    ).map(tuple),
)  # fmt: skip


@FEW
@given(RUNS, LONG, st.booleans())
def test_slack_accepts_any_short_answer(run: RunRecord, text: str, flag: bool) -> None:
    accepted(private_answers.refused(text))
    accepted(private_answers.accepted(text))
    accepted(private_answers.working(text))
    accepted(private_answers.broken("e-abc123", text))
    accepted(private_answers.too_late(3.2, text))
    accepted(private_answers.started(run, duplicate=flag, url="https://x/y?a=<b>|c" if flag else ""))
    accepted(
        private_answers.status_message(run, run.action, run.host, CONTEXT, url="https://x/y" if flag else "")
    )
    accepted(private_answers.status_message(None, run.action, run.host, CONTEXT))
    accepted(private_answers.plain(private_answers.approval_closed(run) or "open"))
    accepted(private_answers.triage_outdated(run, CONTEXT))
    accepted(private_answers.unknown_run(text[:200], [run]))


@FEW
@given(st.lists(RUNS, max_size=6), st.lists(INCIDENTS, min_size=1, max_size=1), PEOPLE)
def test_slack_accepts_any_list_of_runs_and_any_incident(
    runs: list[RunRecord], several: list[IncidentRecord], person: Person
) -> None:
    (incident,) = several
    accepted(private_answers.runs_message(runs * 12, CONTEXT))
    assert private_answers.runs_message(runs[:1], CONTEXT).text in ("1 run", "Nothing is running.")
    accepted(incidents.opened("serve1", incident.title, person, CONTEXT))
    accepted(incidents.already_open(incident, "https://x/y"))
    accepted(incidents.status(incident, "serve1", runs * 12, CONTEXT))
    accepted(incidents.noted(incident, incident.title))
    accepted(incidents.closed(incident, person, CONTEXT))
    hosts = [HostState(name="serve1", triage=run, moved=run, incident=incident) for run in runs] * 20
    rights = Rights(
        person=person, kind="a guest", holds={"responder": incident.title}, lacks={"approver": incident.title}
    )
    links = {run.id: "https://x/y?a=<b>|c" for run in runs}
    state = HomeState(
        hosts=hosts, active=runs * 20, for_me=runs, rights=rights, next_drill=NOW + 3600, links=links
    )
    accepted(whoami(rights, CONTEXT))
    view = home_view(state, HELPS, CONTEXT)
    assert checked_blocks(view["blocks"], limit=100, total=250_000, surface="home")
    assert SECRET not in str(view)
    assert f"*Next drill:* <!date^{int(NOW + 3600)}^" in str(view)


@FEW
@given(LONG, TEXT, st.sampled_from(VerdictKind))
def test_slack_accepts_any_alert(reason: str, source: str, verdict: VerdictKind) -> None:
    alert = Alert(
        host="serve1",
        cause="gpu_lost",
        title=reason,
        source=source,
        reason=reason,
        verdict=verdict,
        key="k",
        at_s=NOW,
    )
    for message in (
        alerts.opened(alert),
        alerts.joined(alert),
        alerts.group(alert, is_root=True, total=40, firing=3),
        alerts.automatic_fallback(alert, "fb-7k2m", CONTEXT),
        alerts.no_automatic_fallback(alert, reason),
        incidents.opened("serve1", "the links are down", Person(id="U0LEAD"), CONTEXT),
    ):
        accepted(message)
        titles = [block["text"]["text"] for block in message.blocks if block["type"] == "header"]
        assert words_of(message) - sum(len(title.split()) for title in titles) <= 60, message.blocks
    accepted(alerts.cleared("serve1", source=source, reason=reason))
    accepted(alerts.eased("serve1", source=source, cause="gpu_lost", reason=reason))
    accepted(alerts.blind("serve1", source=source, reason=reason))
    accepted(alerts.no_automatic_fallback(alert, reason))
    accepted(alerts.resolved("serve1", reason))


@FEW
@given(TEXT, COMPARISONS)
def test_slack_accepts_any_comparison_and_its_verdict_comes_first(name: str, comparison: Comparison) -> None:
    message = comparison_message(name, comparison)
    accepted(message)
    assert message.text.startswith(comparison.verdict.value.upper())


@given(st.text(max_size=200))
def test_escaped_text_has_no_markup_and_unescapes_to_the_original(text: str) -> None:
    clean = "".join(c for c in text if c == "\n" or (ord(c) > 31 and ord(c) != 127))
    escaped = mrkdwn.escape(clean)
    assert "<" not in escaped
    assert ">" not in escaped
    assert re.search(r"&(?!amp;|lt;|gt;)", escaped) is None
    if "[redacted" not in escaped:
        assert mrkdwn.unescape(escaped) == clean


@given(st.text(alphabet="a&<>b", max_size=400), st.integers(4, 300))
def test_clipped_text_keeps_the_limit_and_has_no_half_entity(text: str, limit: int) -> None:
    cut = mrkdwn.clip_escaped(mrkdwn.escape(text), limit)
    assert len(cut) <= limit
    assert re.search(r"&(?!amp;|lt;|gt;)", cut) is None


@given(st.text(alphabet="`a<\n", max_size=300), st.integers(60, 2800))
def test_text_in_a_code_block_cannot_end_it(text: str, limit: int) -> None:
    block = mrkdwn.code_block(text, limit)
    assert block.count("```") == 2
    assert block.endswith("```")
    assert len(block) <= limit + 10


def test_secrets_are_removed_before_the_text_is_clipped() -> None:
    """Clipping inside a quoted secret would leave its first half readable, and no pattern would match it."""
    text = "x" * 20 + ' password="correct horse battery staple" and more'
    for limit in range(30, 90):
        assert "horse" not in mrkdwn.one_line(text, limit)
        assert "horse" not in mrkdwn.code(text, limit)
    assert "8192" in mrkdwn.code("vllm serve --max-num-batched-tokens 8192 --api-key 'a b c'")
    assert "b c" not in mrkdwn.code("vllm serve --max-num-batched-tokens 8192 --api-key 'a b c'")


def test_a_button_value_is_limited_to_an_id() -> None:
    with pytest.raises(ValueError, match="carries an id"):
        button("Stop", "stop", "x" * 2001)
    assert len(button("L" * 200, "stop", "x")["text"]["text"]) == 75


@FEW
@given(st.integers(1, 400), st.integers(1, 700), st.sampled_from(["end", "start"]))
def test_lines_that_do_not_fit_are_dropped_from_the_named_end_and_counted(
    count: int, width: int, drop: str
) -> None:
    lines = tuple(f"{n}:" + "w" * width for n in range(count))
    parts = [section("first"), Lines(lines, noun="lines", drop=drop), section("last")]  # type: ignore[arg-type]
    message = compose("first", parts)
    assert checked_blocks(list(message.blocks))
    texts = [block["text"]["text"] for block in message.blocks]
    assert (texts[0], texts[-1]) == ("first", "last"), "blocks are not dropped"
    shown = [int(n) for n in re.findall(r"^(\d+):w", "\n".join(texts), re.M)]
    dropped = re.findall(r"\.\.\. (\d+) (?:earlier|more) lines", "\n".join(texts))
    assert len(shown) + sum(map(int, dropped)) == count
    assert shown == list(range(count))[-len(shown) :] if drop == "start" else shown == list(range(len(shown)))


def test_more_blocks_than_slack_accepts_are_dropped_from_the_end() -> None:
    parts = [section(f"part {n}") for n in range(80)]
    shown = checked_blocks(list(compose("many", parts).blocks))
    assert [block["text"]["text"] for block in shown] == [f"part {n}" for n in range(50)]


def test_slack_accepts_the_help_of_every_command_and_it_names_all_subcommands() -> None:
    accepted(overview(HELPS, CONTEXT, hosts=["serve1"] * 40))
    for command in HELPS:
        message = command_help(command, CONTEXT, hosts=["serve1"])
        accepted(message)
        for word in {*command.subcommands, *command.free_text} - {command.default, "baselines"}:
            assert word in str(message.blocks), (command.name, word)


def test_durations_and_sizes_read_as_people_write_them() -> None:
    said = [mrkdwn.duration(s) for s in (0.04, 9.94, 9.96, 59.4, 59.6, 200, 3600, 7500)]
    assert said == ["0.0 s", "9.9 s", "10 s", "59 s", "1 min", "3 min 20 s", "1 h", "2 h 5 min"]
    assert [mrkdwn.size(b) for b in (0, 812, 14_336, 2_621_440)] == ["0 B", "812 B", "14 KiB", "2.5 MiB"]
    assert mrkdwn.user(Person(id="U0LEAD")) == "<@U0LEAD>"
    assert mrkdwn.user(Person(id="shell", name="<root>")) == "&lt;root&gt;"
    assert f"<!date^{int(NOW)}^" in mrkdwn.clock(NOW)


def test_renamed_commands_are_renamed_in_every_text_and_nothing_else_is() -> None:
    texts = "see /triage, or (/fallback start x); not /triage-x, a/triage, /tmp/triage/x or https://h/triage"
    message = compose(texts, [section(texts), Lines((texts,))]).renamed(
        {"triage": "/gpu-triage", "fallback": "/fb"}
    )
    wanted = "see /gpu-triage, or (/fb start x); not /triage-x, a/triage, /tmp/triage/x or https://h/triage"
    assert message.text == wanted
    assert all(block["text"]["text"] == wanted for block in message.blocks)
    assert message.renamed({"gpu": "/x"}).text == wanted, "a part of a command's name is no command"


def test_help_is_ordered_by_what_people_want() -> None:
    shown = str(overview(HELPS, CONTEXT, hosts=["serve1"]).blocks)
    places = [
        shown.index(f"*{task}*")
        for task in ("See what is wrong", "Change what serves", "Measure it", "Keep the record")
    ]
    assert places == sorted(places)
