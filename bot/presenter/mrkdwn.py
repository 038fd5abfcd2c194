"""Format text for Slack's mrkdwn: escaping, durations, sizes, mentions, links. Pure functions.

All text from people, logs and hosts goes through `escape` or `one_line`: a `<!channel>` in a log line notifies nobody, and
secrets are removed. Times use Slack's date format, which shows them in the reader's own time zone.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from bot.store.records import Person
from gpu_actions.system.redact import redact

_CLAUSE_END = re.compile(r"(?<=[;.!?]) (?=\S)")
_CONTROL = {code: " " for code in range(32) if code != 10} | {127: " "}


def escape(text: str) -> str:
    """Return text that Slack shows literally, without its secrets. Line breaks are kept, control characters become spaces."""
    return _entities(redact(text).text)


def _entities(text: str) -> str:
    return text.translate(_CONTROL).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def unescape(text: str) -> str:
    """Return what a person typed, from the form in which Slack sends it."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def one_line(text: str, limit: int = 300) -> str:
    """Return escaped text on one line. Secrets are removed before clipping, because half a secret is still one."""
    return _entities(clip(" ".join(redact(text).text.split()), limit))


def gist(text: str, words: int, *, chars: int = 300) -> str:
    """Return the first whole clauses of a text that fit into `words` words, escaped on one line.

    A first clause that is itself too long is cut at a pause in it, else at a word. Secrets are removed before anything is cut.
    """
    clean = " ".join(redact(text).text.split())
    kept: list[str] = []
    for clause in _CLAUSE_END.split(clean):
        if kept and sum(len(part.split()) for part in (*kept, clause)) > words:
            break
        kept.append(clause)
    shown = " ".join(" ".join(kept).split()[:words])
    if len(shown) < len(clean):
        if len(kept) == 1 and len(kept[0].split()) > words:
            pause = max(shown.rfind(", "), shown.rfind(": "), shown.rfind(" ("))
            shown = shown[:pause] if pause > len(shown) // 3 else shown
        shown = shown.rstrip(" ;,:.-")
        after = clean[len(shown) : len(shown) + 1]
        shown += (
            ""
            if len(kept) > 1 or after in (";", ".", ":", ",") or clean[len(shown) :].startswith(" (")
            else "..."
        )
    return _entities(clip(shown, chars))


def capitalized(text: str) -> str:
    """Return the text as the beginning of a sentence; unlike `str.capitalize` it changes only the first letter."""
    return text[:1].upper() + text[1:]


def first_line(text: str) -> str:
    """Return the first line that is not blank, or an empty string."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def clip(text: str, limit: int) -> str:
    """Return at most `limit` characters, ending in three dots if the text was cut."""
    return text if len(text) <= limit else text[: max(0, limit - 3)].rstrip() + "..."


def code(text: str, limit: int = 2800) -> str:
    """Return a short literal in code type. Back ticks in it are replaced, because they would end it."""
    return f"`{one_line(text, limit).replace('`', chr(39))}`"


def literal(text: str) -> str:
    """Return text in code type as it is, without looking for secrets: for a command to send back, whose values are clean."""
    return f"`{_entities(' '.join(text.split())).replace('`', chr(39))}`"


def code_block(text: str, limit: int = 2800) -> str:
    """Return several lines in code type, cut at whole lines to at most `limit` characters after escaping."""
    kept: list[str] = []
    length = 0
    lines = escape(text.strip("\n")).replace("```", "'''").splitlines()
    for number, line in enumerate(lines):
        shown = clip_escaped(line, limit - 40)
        if length + len(shown) + 1 > limit - 40:
            kept.append(f"... {len(lines) - number} more lines")
            break
        kept.append(shown)
        length += len(shown) + 1
    return "```\n" + "\n".join(kept) + "\n```"


def clip_escaped(text: str, limit: int) -> str:
    """Clip escaped text to at most `limit` characters without leaving half an entity."""
    if len(text) <= limit:
        return text
    cut = text[: max(0, limit - 3)]
    ampersand = cut.rfind("&")
    if ampersand > cut.rfind(";"):
        cut = cut[:ampersand]
    return cut.rstrip() + "..."


def user(person: Person) -> str:
    """Return a person as a mention if the id is a Slack id, else by name (a shell, a monitor)."""
    if person.id and person.id[0] in "UW" and person.id.isalnum():
        return f"<@{person.id}>"
    return gist(person.name or person.id or "unknown", 3, chars=60) or "unknown"


def link(url: str, title: str) -> str:
    """Return a link. Characters that would end it early are encoded in the address and replaced in the title."""
    address = url.replace("&", "&amp;").replace("<", "%3C").replace(">", "%3E").replace("|", "%7C")
    return f"<{address}|{one_line(title, 120).replace('|', '/')}>"


def duration(seconds: float) -> str:
    """Return a duration for people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def size(size_bytes: int) -> str:
    """Return a size in binary units: `812 B`, `14 KiB`, `2.5 MiB`."""
    amount, unit = float(size_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"


def clock(at: float, *, with_date: bool = False) -> str:
    """Return a moment in the reader's time zone, or in UTC if a client cannot show it."""
    form = "{date_short_pretty} {time_secs}" if with_date else "{time_secs}"
    utc = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"<!date^{int(at)}^{form}|{utc}>"


def until(at: float) -> str:
    """Return the time of day of a moment, in the reader's time zone."""
    utc = datetime.fromtimestamp(at, UTC).strftime("%H:%M UTC")
    return f"<!date^{int(at)}^{{time}}|{utc}>"


def ago(at: float) -> str:
    """Return how long ago a moment is (`3 minutes ago`), kept up to date by the client; in UTC if it cannot show that."""
    utc = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"<!date^{int(at)}^{{ago}}|{utc}>"


def moment(at: float) -> str:
    """Return a moment to come in the reader's time zone (`tomorrow at 10:00`); in UTC if the client cannot show that."""
    utc = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"<!date^{int(at)}^{{date_short_pretty}} at {{time}}|{utc}>"


def words(items: Sequence[str]) -> str:
    """Return `a`, `a and b` or `a, b and c`."""
    *others, final = items or ("",)
    return f"{', '.join(others)} and {final}" if others else final
