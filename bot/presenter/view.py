"""What every text needs besides its record: the current time, the command names, who holds each role, and shared words.

Pure data, so that every text is a function of a record and a view.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bot.presenter.mrkdwn import code
from gpu_actions.models import Severity, VerdictKind
from gpu_actions.registry import actions


@dataclass(frozen=True)
class View:
    """`now` in Unix seconds; `commands` maps renamed commands to their slash names; `roles` maps a role to its mention."""

    now: float
    commands: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    bot_user_id: str = ""

    def command(self, name: str, rest: str = "") -> str:
        """Return a slash command to type, in code type: `/fallback start demo`."""
        return code(f"{self.commands.get(name, '/' + name)} {rest}".strip())

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


def action_name(action: str) -> str:
    """Return an action's name as the start of a sentence."""
    spec = actions().get(action)
    return spec.label if spec else action.replace("_", " ").capitalize()


def diagnoses(action: str) -> bool:
    """Return True if the action ends with a verdict that is shown as a card."""
    spec = actions().get(action)
    return spec is not None and spec.diagnoses


def count(number: int, noun: str) -> str:
    """Return `1 approval`, `2 approvals`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


VERDICT_WORDS = {
    VerdictKind.HEALTHY: "HEALTHY",
    VerdictKind.WATCH: "WATCH",
    VerdictKind.FALL_BACK: "FALL BACK",
    VerdictKind.UNKNOWN: "UNKNOWN",
}
VERDICT_SIGNS = {
    VerdictKind.HEALTHY: ":large_green_circle:",
    VerdictKind.WATCH: ":large_yellow_circle:",
    VerdictKind.FALL_BACK: ":red_circle:",
    VerdictKind.UNKNOWN: ":black_circle:",
}
SEVERITY_SIGNS = {
    Severity.CRITICAL: ":red_circle:",
    Severity.UNKNOWN: ":black_circle:",
    Severity.WATCH: ":large_yellow_circle:",
    Severity.INFO: ":large_blue_circle:",
    Severity.OK: ":large_green_circle:",
}
WORST_FIRST = (Severity.CRITICAL, Severity.UNKNOWN, Severity.WATCH, Severity.INFO, Severity.OK)
