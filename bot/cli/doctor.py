"""`gpu-oncall doctor`: everything that a plan would touch, checked before an incident needs it.

Each check reads or tries the real thing (the binary runs, the flag is in its help, the socket answers, Slack grants the
scope) and changes nothing. A check that could not be made is a warning that says so, never a pass.
"""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bot.hosts import Hosts
from bot.settings.model import Settings
from gpu_actions.config.host import HostConfig
from gpu_actions.host import Host
from gpu_actions.models import Frozen
from gpu_actions.serving.interfaces import RouterError
from gpu_actions.serving.registry import ENGINES
from gpu_actions.serving.setup_checks import SetupCheck, failed, ok, warning
from gpu_actions.system.processes import run_process

if TYPE_CHECKING:
    from slack_sdk.web.async_client import AsyncWebClient

GIB = 1024**3


class Report(Frozen):
    """All checks. `good` when none failed; warnings are for reading."""

    checks: tuple[SetupCheck, ...]

    @property
    def good(self) -> bool:
        return all(check.status != "failed" for check in self.checks)


async def examine(settings: Settings) -> Report:
    """Make every check, the hosts' side by side. Never raises for a bad finding."""
    groups = await asyncio.gather(
        _slack(settings), _state(settings), _tools(), *(_host(settings, host) for host in settings.hosts)
    )
    return Report(checks=tuple(check for group in groups for check in group))


def render(report: Report) -> str:
    """The report for a terminal: verdict first, then what is wrong, then the rest."""
    marks = {"ok": "ok     ", "warning": "WARNING", "failed": "FAILED "}
    order = {"failed": 0, "warning": 1, "ok": 2}
    counts = {status: sum(check.status == status for check in report.checks) for status in order}
    head = "Ready." if report.good else "Not ready: mend what failed before an incident needs it."
    lines = [f"{head} {counts['ok']} ok, {counts['warning']} warnings, {counts['failed']} failed."]
    for check in sorted(report.checks, key=lambda check: order[check.status]):
        lines.append(f"  {marks[check.status]}  {check.name}: {check.detail}")
        if check.fix:
            lines.append(f"           -> {check.fix}")
    return "\n".join(lines)


async def _slack(settings: Settings) -> list[SetupCheck]:
    from slack_sdk.errors import SlackApiError
    from slack_sdk.web.async_client import AsyncWebClient

    from bot.slack.manifest import bot_scopes

    token = settings.slack.bot_token.get_secret_value()
    if not token:
        return [
            failed(
                "slack.bot_token",
                "is not set",
                "set slack.bot_token or GPU_ONCALL_SLACK__BOT_TOKEN (xoxb-...)",
            )
        ]
    if settings.slack.mode == "socket" and not settings.slack.app_token.get_secret_value():
        return [
            failed(
                "slack.app_token",
                "is not set",
                "Socket Mode needs it: GPU_ONCALL_SLACK__APP_TOKEN (xapp-...)",
            )
        ]
    client = AsyncWebClient(token=token, base_url=settings.slack.api_url, timeout=10)
    try:
        answer = await client.auth_test()
    except SlackApiError as error:
        return [
            failed(
                "slack",
                f"refuses the bot token: {error.response['error']}",
                "install the app again, copy its token",
            )
        ]
    except (OSError, TimeoutError) as error:
        return [
            failed(
                "slack",
                f"cannot be reached at {settings.slack.api_url}: {error}",
                "check the network and api_url",
            )
        ]
    checks = [ok("slack", f"reached as {answer['user']} in {answer['team']}")]
    granted = answer.headers.get("x-oauth-scopes", "")
    missing = sorted(set(bot_scopes()) - {scope.strip() for scope in granted.split(",")})
    if not granted:
        checks.append(
            warning(
                "slack.scopes", "Slack did not say which scopes the token has", "compare with the manifest"
            )
        )
    elif missing:
        fix = "apply `gpu-oncall manifest` to the app and install it again"
        checks.append(failed("slack.scopes", f"missing: {', '.join(missing)}", fix))
    else:
        checks.append(ok("slack.scopes", f"all {len(bot_scopes())} granted"))
    return [*checks, await _channel(settings, client)]


async def _channel(settings: Settings, client: "AsyncWebClient") -> SetupCheck:
    """Alerts need the incident channel: it is there, and the bot is in it."""
    from slack_sdk.errors import SlackApiError

    from bot.slack.channels import Channels, ChannelUnknown

    name = settings.slack.incident_channel
    try:
        channel = (await client.conversations_info(channel=await Channels(client).id_of(name)))["channel"]
    except ChannelUnknown as error:
        return failed("slack.incident_channel", str(error), "create it, then /invite the bot")
    except (SlackApiError, OSError, TimeoutError) as error:
        return warning("slack.incident_channel", f"#{name} cannot be looked up: {error}", "check the scopes")
    if not channel.get("is_member"):
        return failed(
            "slack.incident_channel", f"I am not in #{name}", f"write /invite @gpu-oncall in #{name}"
        )
    return ok("slack.incident_channel", f"#{name} is there, and I am in it")


async def _state(settings: Settings) -> list[SetupCheck]:
    checks = []
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=settings.state_dir):
            pass
        checks.append(ok("state_dir", f"{settings.state_dir} can be written"))
    except OSError as error:
        fix = "make the folder for the bot's user or set state_dir"
        return [failed("state_dir", f"{settings.state_dir} cannot be written: {error.strerror}", fix)]
    free_gib = shutil.disk_usage(settings.state_dir).free / GIB
    wanted_gib = max(host.fallback.min_free_disk_gib for host in settings.hosts)
    if free_gib < wanted_gib:
        fix = "free some space: evidence and artifacts are written there"
        checks.append(failed("disk", f"{free_gib:.1f} GiB free, {wanted_gib:g} GiB wanted", fix))
    else:
        checks.append(ok("disk", f"{free_gib:.1f} GiB free at {settings.state_dir}"))
    if not settings.access.roles.get(settings.access.change):
        fix = f"set access.roles.{settings.access.change}: nobody may start a fallback now"
        checks.append(failed("access.roles", f"nobody has the role {settings.access.change!r}", fix))
    for action, rule in settings.access.approvals.items():
        if not settings.access.roles.get(rule.approvers):
            fix = f"set access.roles.{rule.approvers}: nobody could approve it"
            checks.append(
                failed(f"access.approvals.{action}", f"nobody has the role {rule.approvers!r}", fix)
            )
    return checks


async def _tools() -> list[SetupCheck]:
    checks = []
    py_spy = Path(sys.executable).with_name("py-spy")
    if py_spy.exists() or shutil.which("py-spy"):
        checks.append(ok("py-spy", "found: stacks of hung ranks can be read"))
    else:
        checks.append(warning("py-spy", "not found: a hang has one witness less", "pip install py-spy"))
    nvml = await run_process(
        [sys.executable, "-c", "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount())"],
        timeout_s=20,
    )
    if nvml.exit_code == 0:
        checks.append(ok("nvml", f"answers: {nvml.stdout.strip()} GPUs"))
    else:
        reason = nvml.stderr.strip().splitlines()[-1] if nvml.stderr.strip() else "no answer in 20 s"
        checks.append(
            warning("nvml", f"does not answer here ({reason})", "expected on a machine without NVIDIA GPUs")
        )
    return checks


async def _host(settings: Settings, config: HostConfig) -> list[SetupCheck]:
    host = Hosts(settings).get(config.name)
    checks: list[SetupCheck] = []
    for name, tier in config.tiers.items():
        hazard = ENGINES[tier.engine.kind].group_stop_hazard
        checks += await tier.unit.setup_checks(f"{config.name}.{name}.unit", group_stop_hazard=hazard)
        if await host.tiers[name].engine.is_live():
            checks.append(ok(f"{config.name}.{name}.engine", f"answers at {tier.engine.url}"))
        else:
            state = await host.tiers[name].unit.state()
            text = f"does not answer at {tier.engine.url} ({'running' if state.active else 'not running'})"
            status: Callable[[str, str, str], SetupCheck] = (
                warning if name == "fallback" or state.frozen else failed
            )
            checks.append(
                status(
                    f"{config.name}.{name}.engine",
                    text,
                    "fine while it is meant to be down" if name == "fallback" else "see /triage",
                )
            )
    checks += await _router(host)
    checks += await _plans(host)
    return checks


async def _router(host: Host) -> list[SetupCheck]:
    name = f"{host.name}.router"
    config = host.config.router
    checks = await config.setup_checks(name)
    if any(check.status == "failed" for check in checks):
        return checks
    try:
        servers = await host.router.servers()
    except RouterError as error:
        fix = (
            "it is started by the first plan"
            if config.managed
            else f"check the router and {host.router.address}"
        )
        return [*checks, (warning if config.managed else failed)(name, str(error), fix)]
    shown = ", ".join(f"{s.server}={s.weight}" for s in servers if s.backend == config.backend)
    return [*checks, ok(name, f"answers; weights {shown}")]


async def _plans(host: Host) -> list[SetupCheck]:
    """Ask each changing action for its plan, as an incident would; what preflight refuses is shown, not run."""
    from gpu_actions.action import PlanRefused, PlanRequest
    from gpu_actions.registry import actions

    specs = actions()

    async def attempt(action: str) -> SetupCheck:
        spec = specs[action]
        try:
            plan = await spec.plan(PlanRequest(host=host, arguments=spec.arguments()))
        except PlanRefused as refused:
            return warning(
                f"{host.name}.plan.{action}", "; ".join(refused.problems), "what preflight would say now"
            )
        return ok(f"{host.name}.plan.{action}", f"{len(plan.steps)} steps, about {plan.expected_s:.0f} s")

    attempts: list[Awaitable[SetupCheck]] = [attempt(action) for action in ("fallback", "restore")]
    return list(await asyncio.gather(*attempts))
