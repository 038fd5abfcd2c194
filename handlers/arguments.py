"""Parse the words of a command: subcommand, host, run id, flags, `name=value` options.

Pure functions. They undo what a phone keyboard does to text (curly quotes, long dashes, odd spaces, a capital first letter)
and answer anything else they cannot parse with one line that says what would be accepted.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from bot.presenter.mrkdwn import unescape
from bot.store.records import UserError

MAX_TEXT = 2000
HELP_WORDS = ("help", "?", "h")
RUN_ID = re.compile(r"^[a-z]{2,4}-[a-z0-9]{4,12}$")
_KEY = re.compile(r"^-{0,2}([A-Za-z][A-Za-z0-9_.-]*)$")
_TYPOGRAPHY = str.maketrans({
    "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "—": "--", "–": "--", "\u00a0": " ", "\u202f": " ", "\u200b": "",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """What a command accepts. `name` is as typed, with its slash; `default` is the subcommand that may be left out."""

    name: str
    subcommands: tuple[str, ...]
    default: str = ""
    flags: tuple[str, ...] = ()
    takes_options: bool = True


@dataclass(frozen=True, kw_only=True)
class Words:
    """The parsed words. `host` and `run_id` are None if not given; the action's own types validate the options."""

    subcommand: str
    host: str | None = None
    run_id: str | None = None
    options: dict[str, str] = field(default_factory=dict)


def split(text: str) -> list[str]:
    """Split a text into words. Quotes keep words together; an unclosed quote is an ordinary character."""
    clean = unescape(text.translate(_TYPOGRAPHY))[:MAX_TEXT]
    clean = re.sub(r"\s*=\s*", "=", clean) if re.search(r"\w\s+=|=\s+\w", clean) else clean
    words = re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*'|["'])+""", clean)
    return [
        re.sub(r'"([^"]*)"|' + r"'([^']*)'", lambda found: found[1] or found[2] or "", word) for word in words
    ]


def parse(text: str, grammar: Grammar, hosts: Sequence[str]) -> Words:
    """Parse a command's text. Raises UserError with one line for anything that is not understood."""
    subcommand, rest = _subcommand(split(text), grammar, hosts)
    host: str | None = None
    run_id: str | None = None
    options: dict[str, str] = {}
    for word in rest:
        lowered = word.lower()
        key, sign, value = word.partition("=")
        if sign and key.lower().lstrip("-") == "host":
            if value.lower() not in hosts:
                raise UserError(f"I know no host {value!r};{_hosts_are(value, hosts)}")
            host = _one_host(host, value.lower())
        elif sign:
            name = _option_name(key, grammar, subcommand)
            if name in options:
                raise UserError(f"{name} is given twice; give it once.")
            if not value:
                raise UserError(f"{name} has no value; write {name}=VALUE.")
            options[name] = value
        elif (flag := lowered.lstrip("-").replace("-", "_")) in grammar.flags:
            options[flag] = "true"
        elif lowered in hosts:
            host = _one_host(host, lowered)
        elif RUN_ID.match(run_id_of(word)) and subcommand != "start" and run_id is None:
            run_id = run_id_of(word)
        else:
            raise UserError(_not_understood(word, grammar, hosts))
    return Words(subcommand=subcommand, host=host, run_id=run_id, options=options)


def _one_host(known: str | None, named: str) -> str:
    if known is not None and known != named:
        raise UserError(f"I take one host at a time; you named {known} and {named}.")
    return named


def _hosts_are(word: str, hosts: Sequence[str]) -> str:
    return f"{did_you_mean(word, hosts)} Hosts: {', '.join(hosts) or 'none'}."


def run_id_of(word: str) -> str:
    """Return the run id in a word as people paste it: with back ticks around it, or punctuation behind it."""
    return word.lower().strip("`*_~.,:;!?()")


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word that was probably meant, or None."""
    found = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.55)
    return found[0] if found else None


def did_you_mean(word: str, known: Sequence[str], otherwise: str = "") -> str:
    """Return ` Did you mean 'start'?` for a misspelt word, else `otherwise`."""
    meant = nearest(word, known)
    return f" Did you mean {meant!r}?" if meant else otherwise


def _subcommand(words: list[str], grammar: Grammar, hosts: Sequence[str]) -> tuple[str, list[str]]:
    first = words[0].lower().lstrip("-") if words else grammar.default or "help"
    if first in HELP_WORDS:
        return "help", []
    if first in grammar.subcommands:
        return first, words[1:]
    if grammar.default:
        # A misspelt subcommand must not be read as a host.
        free = (*hosts, *grammar.flags)
        if "=" in first or nearest(first, free) or not nearest(first, grammar.subcommands):
            return grammar.default, words
    elif first in hosts:
        examples = " or ".join(f"{grammar.name} {sub} {first}" for sub in grammar.subcommands[:2])
        raise UserError(f"{words[0]!r} is a host; first say what to do with it, for example {examples}.")
    known = (*grammar.subcommands, "help")
    raise UserError(
        f"{grammar.name} has no subcommand {words[0]!r}.{did_you_mean(first, known)} It takes: {', '.join(known)}."
    )


def _option_name(key: str, grammar: Grammar, subcommand: str) -> str:
    found = _KEY.match(key)
    if found is None:
        raise UserError(f"{key!r} is not an option name; options look like duration=20.")
    if not grammar.takes_options or subcommand not in ("start", "plan"):
        which = f"{grammar.name} {subcommand if grammar.takes_options else ''}".strip()
        raise UserError(f"{which} takes no options, so {key}= means nothing here.")
    return found[1].replace("-", "_").lower()


def _not_understood(word: str, grammar: Grammar, hosts: Sequence[str]) -> str:
    flags = f" It also takes: {', '.join(grammar.flags)}." if grammar.flags else ""
    return f"I know no host {word!r}." + did_you_mean(
        word.lstrip("-"),
        (*hosts, *grammar.flags),
        f" Hosts: {', '.join(hosts)}.{flags} Options are written name=value; see {grammar.name} help.",
    )
