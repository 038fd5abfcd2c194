"""Text as people type it and as terminals show it, and finding the button that a word means."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.workspace.plain_text import plain, unescaped
from demo.workspace.state import State
from demo.workspace.state_file import StateFile
from demo.workspace.team import Team
from demo.workspace.transcript import ButtonNotFound, ReadMessage, conversation, find_button, rendered
from demo.workspace.typed_text import slash_command_of, stored_text

NAMES = {"U0LEAD": "lead", "U0GPUONCALL": "gpu-oncall", "C0GENERAL": "general"}


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("a < b & c > d", "a &lt; b &amp; c &gt; d"),
        ("@gpu-oncall approve rs-1a2b", "<@U0GPUONCALL> approve rs-1a2b"),
        ("ask @lead, please", "ask <@U0LEAD>, please"),
        ("@lead.", "<@U0LEAD>."),
        ("see #general!", "see <#C0GENERAL|general>!"),
        ("@nobody mail@lead x#general", "@nobody mail@lead x#general"),
        ("@oncall-engineers now", "<!subteam^S0ONCALLENGINEERS|@oncall-engineers> now"),
        ("http://a.b/?x=1&y=2.", "<http://a.b/?x=1&amp;y=2>."),
        ("http://a.b/@lead", "<http://a.b/@lead>"),
        ("<@U0LEAD> and <!channel>", "<@U0LEAD> and &lt;!channel&gt;"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
    ],
)
def test_typed_text_is_stored_as_slack_stores_it(typed: str, stored: str) -> None:
    assert stored_text(State(Team(), StateFile(None)), typed) == stored


@given(st.text())
def test_stored_text_contains_no_unresolved_markup(typed: str) -> None:
    stored = stored_text(State(Team(), StateFile(None)), typed)
    assert "<script" not in stored
    assert "<!channel" not in stored.replace("<!channel>", "", typed.count("@channel"))


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        ("/triage", ("/triage", "")),
        ("/Triage  host deep ", ("/triage", "host deep")),
        ("/fallback start", ("/fallback", "start")),
        ("/", None),
        ("/usr/bin/x is missing", None),
        ("see /triage", None),
        ("//x", None),
    ],
)
def test_slash_commands_and_messages_are_distinguished(typed: str, command: tuple[str, str] | None) -> None:
    assert slash_command_of(typed) == command


def test_mrkdwn_becomes_plain_text() -> None:
    text = ":white_check_mark: <@U0LEAD> in <#C0GENERAL> saw <http://x/y|the &lt;log&gt;> at <http://z> <!here> :odd:"
    assert plain(text, NAMES) == "[ok] @lead in #general saw the <log> (http://x/y) at http://z @here :odd:"


@given(st.text())
def test_unescaping_returns_the_original_text(text: str) -> None:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert unescaped(escaped) == text


def message(ts: str, *buttons: tuple[str, str, str], **changes: Any) -> dict[str, Any]:
    elements = [
        {"type": "button", "text": {"type": "plain_text", "text": text}, "action_id": action, "value": value}
        for text, action, value in buttons
    ]
    blocks = [{"type": "actions", "block_id": "b", "elements": elements}] if elements else []
    return {
        "channel": "C0INCIDENTS",
        "ts": ts,
        "user": "U0GPUONCALL",
        "text": "x",
        "blocks": blocks,
        **changes,
    }


def read(*messages: dict[str, Any]) -> tuple[ReadMessage, ...]:
    return conversation(list(messages), NAMES)


@pytest.mark.parametrize(
    ("value", "run", "matches"),
    [
        ("rs-1a2b", "rs-1a2b", True),
        ("rs-1a2b:gate-1", "rs-1a2b", True),
        ("gate:rs-1a2b:3", "rs-1a2b", True),
        ('{"run": "rs-1a2b"}', "rs-1a2b", True),
        ("rs-1a2bc", "rs-1a2b", False),
        ("x-rs-1a2b", "rs-1a2b", False),
        ("rs-1a2b-2", "rs-1a2b", False),
        ("", "rs-1a2b", False),
    ],
)
def test_a_run_is_found_in_the_value_of_a_button_as_a_whole_word(value: str, run: str, matches: bool) -> None:
    messages = read(message("1.000001", ("Approve", "approval.approve", value)))
    if matches:
        assert find_button(messages, "approve", run=run)[1].value == value
    else:
        with pytest.raises(ButtonNotFound, match="no buttons"):
            find_button(messages, "approve", run=run)


@pytest.mark.parametrize("word", ["approve", "APPROVE", "Approve restore", "approve restore"])
def test_a_button_is_found_by_its_text_or_by_the_end_of_its_action_id(word: str) -> None:
    messages = read(message("1.000001", ("Approve restore", "run:gate.approve", "rs-1")))
    assert find_button(messages, word, run="rs-1")[1].action_id == "run:gate.approve"


def test_the_newest_message_with_the_button_is_used_even_inside_a_thread() -> None:
    messages = read(
        message("1.000001", ("Approve", "a.approve", "rs-1")),
        message("2.000001", ("Approve", "a.approve", "rs-1"), thread_ts="1.000001"),
        message("3.000001", ("Deny", "a.deny", "rs-1")),
        message("4.000001", ("Approve", "a.approve", "rs-2")),
    )
    assert find_button(messages, "approve", run="rs-1")[0].ts == "2.000001"
    assert find_button(messages, "approve")[0].ts == "4.000001"
    assert find_button(messages, "approve", ts="1.000001")[0].ts == "1.000001"


def test_a_missing_button_error_lists_the_existing_buttons() -> None:
    messages = read(message("1.000001", ("Approve", "a.approve", "rs-1"), ("Deny", "a.deny", "rs-1")))
    with pytest.raises(ButtonNotFound, match="no button 'start' with run rs-1; there are: Approve, Deny"):
        find_button(messages, "start", run="rs-1")


def test_a_menu_is_rendered_with_its_placeholder_and_options() -> None:
    options = [{"text": {"type": "plain_text", "text": name}, "value": name} for name in ("h1", "h2")]
    for kind in ("static_select", "multi_static_select"):
        menu = {"type": kind, "placeholder": {"type": "plain_text", "text": "Host"}, "options": options}
        block = {"type": "actions", "block_id": "b", "elements": [{**menu, "action_id": "host"}]}
        (shown,) = read(message("1.000001", blocks=[block]))
        assert shown.text == "[ Host: h1 | h2 ]"
        assert shown.buttons[0].options == ("h1", "h2")


def test_a_conversation_is_rendered_with_its_threads_and_private_notes() -> None:
    shown = rendered(
        read(
            message("1.000001", ("Approve", "a.approve", "rs-1"), thread_ts="1.000001"),
            message("2.000001", thread_ts="1.000001", text="done :white_check_mark:", user="U0LEAD"),
            message("3.000001", visible_to="U0LEAD", text="no", is_ephemeral=True),
        )
    )
    lines = shown.split("\n")
    assert lines[1] == "  [ Approve ]"
    assert lines[2].startswith("    | ")
    assert lines[2].endswith("lead")
    assert lines[3] == "    |   done [ok]"
    assert lines[5].endswith("gpu-oncall  (only visible to lead)")
