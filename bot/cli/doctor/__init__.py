"""`gpu-oncall doctor`: check everything that a plan would touch, before an incident needs it.

Each check reads or tries the real thing (the binary runs, the flag is in its help, the socket answers, Slack grants the
scope) and changes nothing. A check that cannot be made is a warning that says so, never a pass. A check is one function and
one line in `CHECKS` or `HOST_CHECKS`; the checks of a kind of unit or router are in that kind's own file.
"""

import asyncio
from collections.abc import Awaitable, Callable

from bot.cli.doctor.fleet import check_fleet
from bot.cli.doctor.hosts import (
    check_engines,
    check_golden,
    check_knee,
    check_page_cache,
    check_plans,
    check_router,
    check_units,
)
from bot.cli.doctor.links import check_links
from bot.cli.doctor.machine import check_artifacts, check_nvml, check_py_spy, check_state_dir
from bot.cli.doctor.paging import check_paging
from bot.cli.doctor.roles import check_roles
from bot.cli.doctor.runbook import check_runbook
from bot.cli.doctor.slack import check_slack
from bot.hosts import Hosts
from bot.settings.model import Settings
from gpu_actions.host import Host
from gpu_actions.models import Frozen
from gpu_actions.serving.setup_checks import SetupCheck

CHECKS: tuple[Callable[[Settings], Awaitable[list[SetupCheck]]], ...] = (
    check_slack,
    check_state_dir,
    check_artifacts,
    check_roles,
    check_links,
    check_paging,
    check_runbook,
    check_py_spy,
    check_nvml,
    check_fleet,
)
"""Run once."""

NOT_ON_A_WORKER = (check_slack, check_roles, check_links, check_paging)
"""What only the bot of a fleet needs."""
NOT_ON_THE_BOT = (check_runbook, check_py_spy, check_nvml)
"""What only a serving host of a fleet needs."""

HOST_CHECKS: tuple[Callable[[Host], Awaitable[list[SetupCheck]]], ...] = (
    check_units,
    check_engines,
    check_router,
    check_golden,
    check_knee,
    check_page_cache,
    check_plans,
)
"""Run for each host of the settings."""


class Report(Frozen):
    """All checks. `good` is True if none failed; warnings are for reading."""

    checks: tuple[SetupCheck, ...]

    @property
    def good(self) -> bool:
        return all(check.status != "failed" for check in self.checks)


def _elsewhere(settings: Settings) -> tuple[object, ...]:
    if not settings.fleet.url:
        return ()
    return NOT_ON_THE_BOT if settings.fleet.is_bot else NOT_ON_A_WORKER


async def examine(settings: Settings) -> Report:
    """Run every check, those of different hosts in parallel. Never raises for what a check finds."""
    hosts = Hosts(settings)

    async def of_host(name: str) -> list[SetupCheck]:
        return [found for check in HOST_CHECKS for found in await check(hosts.get(name))]

    groups = await asyncio.gather(
        *(check(settings) for check in CHECKS if check not in _elsewhere(settings)),
        *(of_host(host.name) for host in settings.hosts),
    )
    return Report(checks=tuple(check for group in groups for check in group))


def render(report: Report) -> str:
    """Return the report for a terminal: verdict first, then what failed, the warnings, and the rest."""
    marks = {"failed": "FAILED ", "warning": "WARNING", "ok": "ok     "}
    counts = {status: sum(check.status == status for check in report.checks) for status in marks}
    head = "Ready." if report.good else "Not ready: fix what failed before an incident needs it."
    lines = [f"{head} {counts['ok']} ok, {counts['warning']} warnings, {counts['failed']} failed."]
    order = list(marks)
    for check in sorted(report.checks, key=lambda check: order.index(check.status)):
        lines.append(f"  {marks[check.status]}  {check.name}: {check.detail}")
        if check.fix:
            lines.append(f"           -> {check.fix}")
    return "\n".join(lines)
