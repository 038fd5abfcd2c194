"""Parsing a command's words: any text is understood or answered in one line, and no word is lost."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bot.presenter.plan_message import plan_message
from bot.presenter.render_context import RenderContext
from bot.store.records import UserError
from gpu_actions.action import ActionSpec
from gpu_actions.fallback.action import FallbackArguments
from gpu_actions.loadtest.request import LoadTestArguments
from gpu_actions.models import Frozen
from gpu_actions.plan import Plan, Step
from gpu_actions.registry import actions
from gpu_actions.triage.action import TriageArguments
from handlers import COMMANDS
from handlers.arguments import Grammar, parse, run_id_of, split

HOSTS = ("serve1", "serve2")
GRAMMAR = Grammar(name="/fallback", subcommands=("plan", "start", "status", "stop"))
LOOSE = Grammar(name="/triage", subcommands=("start", "status"), default="start", flags=("deep",))
WORDS = st.sampled_from(
    [
        "start",
        "Stop",
        "serve1",
        "SERVE2",
        "gpu=3",
        "--qps=2",
        "deep",
        "fb-7k2m",
        "“a b”",
        "—x",
        "=",
        "'",
        '"',
        "==",
    ]
)
TYPED = st.one_of(
    st.text(max_size=80), st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=6).map(" ".join)
)


@given(TYPED, st.sampled_from([GRAMMAR, LOOSE]))
def test_any_text_is_parsed_or_answered_in_one_line(text: str, grammar: Grammar) -> None:
    try:
        words = parse(text, grammar, HOSTS)
    except UserError as error:
        assert str(error).strip()
        return
    assert words.subcommand in (*grammar.subcommands, "help")
    assert words.host in (None, *HOSTS)
    assert words.subcommand == "help" or len(split(text)) <= 1 + bool(words.host) + bool(words.run_id) + len(
        words.options
    ) + text.lower().count("deep") + text.lower().count("serve"), "no word was dropped"


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True),
        st.from_regex(r"[A-Za-z0-9./:@{}-][A-Za-z0-9./:@{} -]{0,12}[A-Za-z0-9]", fullmatch=True),
        max_size=4,
    ),
    st.sampled_from(['"', "'", "“”"]),
)
def test_options_keep_their_values_in_any_quotes(options: dict[str, str], quotes: str) -> None:
    typed = " ".join(f"{name}={quotes[0]}{value}{quotes[-1]}" for name, value in options.items())
    words = parse(f"start serve2 {typed}", GRAMMAR, HOSTS)
    assert (words.subcommand, words.host, words.options) == ("start", "serve2", options)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("start qps = 3 duration= 20", {"qps": "3", "duration": "20"}),
        ("start --max-tokens=5", {"max_tokens": "5"}),
        ("start —qps=3", {"qps": "3"}),
        ("start\u00a0qps=3", {"qps": "3"}),
        ("START QPS=3", {"qps": "3"}),
        ("start url=http://x/?a=b&amp;c", {"url": "http://x/?a=b&c"}),
    ],
)
def test_what_keyboards_and_slack_do_to_a_text_is_undone(text: str, options: dict[str, str]) -> None:
    assert parse(text, GRAMMAR, HOSTS).options == options


def test_a_default_subcommand_takes_hosts_and_flags_but_no_misspelt_subcommand() -> None:
    words = parse("serve2 deep", LOOSE, HOSTS)
    assert (words.subcommand, words.host, words.options) == ("start", "serve2", {"deep": "true"})
    with pytest.raises(UserError, match="Did you mean 'status'"):
        parse("staus", LOOSE, HOSTS)
    with pytest.raises(UserError, match="one host at a time"):
        parse("serve1 serve2", LOOSE, HOSTS)


@pytest.mark.parametrize("word", ["`fb-7k2m`", "fb-7k2m,", "*FB-7k2m*", "fb-7k2m.", "(fb-7k2m)"])
def test_a_run_id_in_a_sentence_is_found(word: str) -> None:
    assert run_id_of(word) == "fb-7k2m"
    assert parse(f"status {word}", GRAMMAR, HOSTS).run_id == "fb-7k2m"


def arguments_of(spec: ActionSpec) -> Frozen:
    """Return an action's arguments with every option given."""
    given: dict[str, object] = {}
    for name, field in spec.arguments.model_fields.items():
        for value in ("64", "7", "true", "quick", "knee", "poisson", "router", "0.5", "a b", field.default):
            try:
                spec.arguments.model_validate({**given, name: value})
            except ValidationError:
                continue
            given[name] = value
            break
    return spec.arguments.model_validate(given)


@pytest.mark.parametrize(
    ("action", "arguments"),
    [
        ("loadtest", LoadTestArguments(qps=3, max_new_tokens=64)),
        ("loadtest", LoadTestArguments()),
        ("triage", TriageArguments(deep=True)),
        ("fallback", FallbackArguments(reason="the switch is being replaced")),
        ("fallback", FallbackArguments(reason='it says "bad" & <down>')),
        *((spec.name, arguments_of(spec)) for spec in actions().values()),
    ],
)
def test_the_command_that_a_plan_offers_gives_the_same_arguments_again(
    action: str, arguments: Frozen
) -> None:
    step = Step(id="a", verb="toy.count", title="a")
    plan = Plan(
        action=action, host="serve1", title="x", steps=(step,), options=arguments.model_dump(mode="json")
    )
    shown = str(plan_message(plan, RenderContext(now=0)).blocks[1]["text"]["text"])
    offered = re.search(rf"To run it: `/{action} ([^`]*)`", shown)
    assert offered, shown
    words = parse(offered[1], COMMANDS[action].grammar(f"/{action}"), HOSTS)
    assert (words.subcommand, words.host) == ("start", "serve1")
    assert type(arguments).model_validate(words.options) == arguments
