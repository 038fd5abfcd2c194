"""The words behind a command, parsed: subcommand, host, run id, flags, `name=value` options.

Pure functions. They forgive what a phone's keyboard does to text (curly quotes, long dashes, odd spaces, a capital first
letter), and answer everything else they do not understand with one line that says what would be understood.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from bot.presenter.mrkdwn import unescape
from bot.store.records import UserError

RUN_ID = re.compile(r"^[a-z]{2,4}-[a-z0-9]{4,12}$")
_KEY = re.compile(r"^-{0,2}([A-Za-z][A-Za-z0-9_.-]*)$")
_TYPOGRAPHY = str.maketrans(
    {
        "“": '"',
        "”": '"',
        "„": '"',
        "‘": "'",
        "’": "'",
        "—": "--",
        "–": "--",
        "\u00a0": " ",
        "\u202f": " ",
        "\u200b": "",
    }
)
MAX_TEXT = 2000


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """What a command understands. `default` is the subcommand meant when the first word is none; empty: one must be given."""

    name: str
    subcommands: tuple[str, ...]
    default: str = ""
    flags: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    takes_options: bool = True


@dataclass(frozen=True, kw_only=True)
class Words:
    """The parsed words. `host` and `run_id` are None where none was named; the action's own types judge the raw options."""

    subcommand: str
    host: str | None = None
    run_id: str | None = None
    options: dict[str, str] = field(default_factory=dict)


def split(text: str) -> list[str]:
    """Words of a text; quotes keep words together, an unclosed quote is a letter like any other."""
    clean = unescape(text.translate(_TYPOGRAPHY))[:MAX_TEXT]
    clean = re.sub(r"\s*=\s*", "=", clean) if re.search(r"\w\s+=|=\s+\w", clean) else clean
    words = re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*'|["'])+""", clean)
    return [_unquote(word) for word in words]


def parse(text: str, grammar: Grammar, hosts: Sequence[str]) -> Words:
    """Words of a command's text. Raises UserError with one clear line for anything not understood."""
    words = split(text)
    subcommand, rest = _subcommand(words, grammar, hosts)
    host: str | None = None
    run_id: str | None = None
    options: dict[str, str] = {}
    for word in rest:
        lowered = word.lower()
        key, sign, value = word.partition("=")
        if sign:
            name = _option_name(key, grammar, subcommand)
            if name in options:
                raise UserError(f"{name} is given twice; give it once.")
            if not value:
                raise UserError(f"{name} has no value; write {name}=VALUE.")
            options[name] = value
        elif (flag := lowered.lstrip("-").replace("-", "_")) in grammar.flags:
            options[flag] = "true"
        elif lowered in hosts:
            if host is not None and host != lowered:
                raise UserError(f"I take one host at a time; you named {host} and {lowered}.")
            host = lowered
        elif RUN_ID.match(run_id_of(word)) and subcommand != "start" and run_id is None:
            run_id = run_id_of(word)
        else:
            raise UserError(_not_understood(word, grammar, hosts))
    return Words(subcommand=subcommand, host=host, run_id=run_id, options=options)


def run_id_of(word: str) -> str:
    """The run id in a word as people write it in a sentence: copied with its back ticks, or with a comma behind it."""
    return word.lower().strip("`*_~.,:;!?()")


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant."""
    found = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.55)
    return found[0] if found else None


def _subcommand(words: list[str], grammar: Grammar, hosts: Sequence[str]) -> tuple[str, list[str]]:
    if not words:
        return grammar.default or "help", []
    first = words[0].lower().lstrip("-")
    if first in ("help", "?", "h"):
        return "help", []
    if first in grammar.subcommands:
        return first, words[1:]
    if grammar.default:
        # Where a subcommand may be left out, a typo of one must not be read as a host.
        meant = nearest(first, grammar.subcommands)
        if (
            meant is None
            or first in hosts
            or first in grammar.flags
            or "=" in first
            or nearest(first, [*hosts, *grammar.flags])
        ):
            return grammar.default, words
        raise UserError(f"{words[0]!r} is not something /{grammar.name} knows. Did you mean {meant!r}?")
    if first in hosts:
        example = " or ".join(f"/{grammar.name} {sub} {first}" for sub in grammar.subcommands[:2])
        raise UserError(f"{words[0]!r} is a host; say first what to do with it, for example {example}.")
    meant = nearest(first, [*grammar.subcommands, "help"])
    hint = f" Did you mean {meant!r}?" if meant else ""
    raise UserError(
        f"{words[0]!r} is not something /{grammar.name} knows.{hint} It knows: {', '.join((*grammar.subcommands, 'help'))}."
    )


def _option_name(key: str, grammar: Grammar, subcommand: str) -> str:
    found = _KEY.match(key)
    if found is None:
        raise UserError(f"{key!r} is no name of an option; options look like duration=20.")
    if not grammar.takes_options or subcommand not in ("start", "plan"):
        where = "takes no options" if not grammar.takes_options else f"{subcommand} takes no options"
        raise UserError(f"/{grammar.name} {where}, so I do not know what to do with {key}=.")
    name = found.group(1).replace("-", "_").lower()
    if grammar.options and name not in grammar.options:
        meant = nearest(name, grammar.options)
        hint = f" Did you mean {meant!r}?" if meant else f" It takes: {', '.join(grammar.options)}."
        raise UserError(f"/{grammar.name} has no option {name!r}.{hint}")
    return name


def _not_understood(word: str, grammar: Grammar, hosts: Sequence[str]) -> str:
    meant = nearest(word.lstrip("-"), [*hosts, *grammar.flags])
    if meant:
        return f"I know no host {word!r}. Did you mean {meant!r}?"
    known = f"Hosts: {', '.join(hosts)}."
    flags = f" Words it understands: {', '.join(grammar.flags)}." if grammar.flags else ""
    return (
        f"I know no host {word!r}. {known}{flags} Options are written name=value; see /{grammar.name} help."
    )


def _unquote(word: str) -> str:
    return re.sub(r'"([^"]*)"|' + r"'([^']*)'", lambda found: found.group(1) or found.group(2) or "", word)
