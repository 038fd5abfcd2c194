"""What a person types, as Slack stores it: escaped text with mentions and links marked."""

import re

from demo.workspace.state import State

_MENTION = re.compile(r"(?<![\w<@#])([@#])([a-z0-9][a-z0-9._-]*)")
_BARE_LINK = re.compile(r"(?<![<|\w])(https?://[^\s<>]+[^\s<>.,;:!?)\]])")
_COMMAND = re.compile(r"^/[a-z][\w-]*(?=\s|$)", re.IGNORECASE)


def slash_command_of(text: str) -> tuple[str, str] | None:
    """Return `("/triage", "deep")` for a typed slash command, or None if the text is a message."""
    found = _COMMAND.match(text)
    return (found.group(0).lower(), text[found.end() :].strip()) if found else None


def escaped(text: str) -> str:
    """Escape `&`, `<` and `>` as Slack does."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def stored_text(state: State, typed: str) -> str:
    """Return the text to store: escaped, with known `@name` and `#channel` resolved and links marked.

    Mentions already in Slack's form (`<@U0LEAD>`, `<#C0INCIDENTS>`) are kept, so that a program can write them too.
    """
    parts = re.split(r"(<[@#][A-Za-z0-9|._-]+>)", typed)
    return "".join(part if index % 2 else _marked(state, part) for index, part in enumerate(parts))


def _marked(state: State, text: str) -> str:
    def mention(found: re.Match[str]) -> str:
        prefix, name = found.groups()
        trail = name[len(name.rstrip(".-_")) :]
        word = name[: len(name) - len(trail)]
        if prefix == "#":
            channel = state.channel_by_name(word)
            return f"<#{channel.id}|{channel.name}>{trail}" if channel else found.group(0)
        if word == state.team.app.name:
            return f"<@{state.bot_user}>{trail}"
        if word in ("here", "channel", "everyone"):
            return f"<!{word}>{trail}"
        group = next((entry for entry in state.team.groups if entry.handle == word), None)
        if group:
            return f"<!subteam^{group.id}|@{group.handle}>{trail}"
        person = state.user_by_name(word)
        return f"<@{person.id}>{trail}" if person else found.group(0)

    pieces = _BARE_LINK.split(escaped(text))
    return "".join(
        f"<{piece}>" if index % 2 else _MENTION.sub(mention, piece) for index, piece in enumerate(pieces)
    )
