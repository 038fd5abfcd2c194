"""What a text needs besides the record it shows: the current time, the command names, and who holds each role.

Pure data, so that every text is a function of a record and this context.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bot.presenter.mrkdwn import code
from gpu_actions.registry import actions


@dataclass(frozen=True)
class RenderContext:
    """`now` in Unix seconds; `commands` maps renamed commands to their slash names; `roles` maps a role to its mention."""

    now: float
    commands: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    bot_user_id: str = ""

    def command(self, name: str, rest: str = "") -> str:
        """Return a slash command to type, in code type: `/fallback start demo`."""
        return code(self.typed(name, rest))

    def typed(self, name: str, rest: str = "") -> str:
        """Return a slash command as a person types it, under the name that it has in the settings."""
        return f"{self.commands.get(name, '/' + name)} {rest}".strip()

    def start(self, action: str, host: str) -> str:
        """Return the command that starts an action on a host."""
        spec = actions().get(action)
        return self.command(action, spec.start_words(host) if spec else f"start {host}")

    def mention(self, rest: str) -> str:
        """Return what to type to the bot in a thread: `@gpu-oncall approve rs-7k2m`."""
        bot = f"<@{self.bot_user_id}>" if self.bot_user_id else "@gpu-oncall"
        return f"{bot} {code(rest)}"

    def role(self, role: str) -> str:
        """Return who holds a role, as mentions, or the role's name if nobody does."""
        nobody = f"the role {code(role)} (nobody has it: see access.roles in the settings)"
        return self.roles.get(role) or nobody
