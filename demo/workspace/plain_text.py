"""Slack's mrkdwn as plain text for a terminal: mentions as names, links with their address, emoji as short words."""

import re
from collections.abc import Mapping

EMOJI_WORDS = {
    "white_check_mark": "[ok]",
    "heavy_check_mark": "[ok]",
    "x": "[failed]",
    "no_entry": "[stop]",
    "no_entry_sign": "[stop]",
    "warning": "[!]",
    "rotating_light": "[!!]",
    "hourglass": "[..]",
    "hourglass_flowing_sand": "[..]",
    "large_green_circle": "[green]",
    "large_yellow_circle": "[yellow]",
    "large_orange_circle": "[orange]",
    "red_circle": "[red]",
    "white_circle": "[ ]",
    "large_blue_circle": "[blue]",
    "grey_question": "[?]",
    "question": "[?]",
}

Names = Mapping[str, str]
"""Display names by user or channel id."""

_EMOJI = re.compile(r":([a-z0-9_+-]+):")
_ANGLE_BRACKETS = re.compile(r"<([^<>]+)>")


def unescaped(text: str) -> str:
    """Replace Slack's `&lt;`, `&gt;` and `&amp;` with the characters they stand for."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def emoji_word(name: str) -> str:
    """Return a short word for an emoji, or `:name:` if there is none."""
    return EMOJI_WORDS.get(name, f":{name}:")


def plain(text: str, names: Names) -> str:
    """Render mrkdwn: mentions as names, links as `label (address)`, known emoji as words. Other markup is unchanged."""

    def resolved(found: re.Match[str]) -> str:
        body, _, label = found.group(1).partition("|")
        if body.startswith("@"):
            return f"@{names.get(body[1:], label or body[1:])}"
        if body.startswith("#"):
            return f"#{label or names.get(body[1:], body[1:])}"
        if body.startswith("!"):
            return label or "@" + body[1:].split("^")[0]
        address = body.removeprefix("mailto:")
        return f"{label} ({address})" if label and label != address else address

    with_words = _EMOJI.sub(lambda found: emoji_word(found.group(1)), text)
    return unescaped(_ANGLE_BRACKETS.sub(resolved, with_words))
