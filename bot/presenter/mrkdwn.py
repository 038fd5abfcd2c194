"""Slack's text as pure functions: escaping, durations, sizes, mentions, links.

Everything that comes from a person, a log or a host goes through `escape` before it stands in a message: `<!channel>` in a
log line pings nobody, and a secret in a command line or a log is cut. Times are shown with Slack's date form, in the reader's
own time zone.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from bot.store.records import Person
from gpu_actions.system.redact import redact

_CONTROL = {code: " " for code in range(32) if code != 10} | {127: " "}


def escape(text: str) -> str:
    """Text that Slack shows as it is, without its secrets: entities, control characters as spaces, line breaks kept."""
    return _entities(redact(text).text)


def _entities(text: str) -> str:
    return text.translate(_CONTROL).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def unescape(text: str) -> str:
    """What a person typed, from the form in which Slack sends it."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def one_line(text: str, limit: int = 300) -> str:
    """Escaped text on one line of at most `limit` characters before escaping. Secrets go before the cut: half of one is one."""
    return _entities(clip(" ".join(redact(text).text.split()), limit))


def first_line(text: str) -> str:
    """The first line that holds something; empty when none does."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def clip(text: str, limit: int) -> str:
    """At most `limit` characters, the cut shown by three dots."""
    return text if len(text) <= limit else text[: max(0, limit - 3)].rstrip() + "..."


def code(text: str, limit: int = 2800) -> str:
    """A short literal in code type: ids, hashes, commands. Back ticks in it are replaced, they would end it."""
    return f"`{one_line(text, limit).replace('`', chr(39))}`"


def code_block(text: str, limit: int = 2800) -> str:
    """Several lines in code type, cut at whole lines to at most `limit` characters after escaping."""
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
    """Cut text that is escaped already to at most `limit` characters without leaving half an entity."""
    if len(text) <= limit:
        return text
    cut = text[: max(0, limit - 3)]
    ampersand = cut.rfind("&")
    if ampersand > cut.rfind(";"):
        cut = cut[:ampersand]
    return cut.rstrip() + "..."


def user(person: Person) -> str:
    """A person as a mention where the id is one of Slack's, else by name (a shell, a monitor)."""
    if person.id and person.id[0] in "UW" and person.id.isalnum():
        return f"<@{person.id}>"
    return escape(person.name or person.id or "somebody")


def link(url: str, title: str) -> str:
    """A link. Characters that would end it early are encoded in the address and replaced in the title."""
    address = url.replace("&", "&amp;").replace("<", "%3C").replace(">", "%3E").replace("|", "%7C")
    return f"<{address}|{one_line(title, 120).replace('|', '/')}>"


def duration(seconds: float) -> str:
    """Seconds for people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
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
    """Bytes for people, in binary units: `812 B`, `14 KiB`, `2.5 MiB`."""
    amount = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{size_bytes} B"


def clock(at: float, *, with_date: bool = False) -> str:
    """A moment in the reader's time zone; UTC where a client cannot show it."""
    form = "{date_short_pretty} {time_secs}" if with_date else "{time_secs}"
    utc = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"<!date^{int(at)}^{form}|{utc}>"


def words(items: Iterable[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    parts = list(items)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}" if parts else ""
