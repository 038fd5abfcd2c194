"""Roles: the people whom an incident needs."""

from bot.settings.model import Settings
from gpu_actions.serving.setup_checks import SetupCheck, failed


async def check_roles(settings: Settings) -> list[SetupCheck]:
    """Check that every role that an action needs has members."""
    access = settings.access
    checks = []
    if not access.roles.get(access.change):
        fix = f"set access.roles.{access.change}: nobody can start a fallback now"
        checks.append(failed("access.roles", f"nobody has the role {access.change!r}", fix))
    for action, rule in access.approvals.items():
        if not access.roles.get(rule.approvers):
            fix = f"set access.roles.{rule.approvers}: nobody could approve it"
            problem = f"nobody has the role {rule.approvers!r}"
            checks.append(failed(f"access.approvals.{action}", problem, fix))
    return checks
