"""The services that handlers use. `bot/app.py` builds them once; handlers translate Slack requests into their calls."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bot.presenter.render_context import RenderContext
from bot.settings.model import Settings
from bot.slack.access import Access
from bot.slack.identity import Identity

if TYPE_CHECKING:
    from bot.incidents.incidents import Incidents
    from bot.runs.approvals import Approvals
    from bot.runs.runs import Runs
    from bot.slack.reports import Reports
    from bot.store.store import Store
    from bot.watch.alerts import Alerts
    from bot.watch.monitors import Monitors
    from gpu_actions.action import ActionSpec


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a handler may use."""

    settings: Settings
    runs: "Runs"
    approvals: "Approvals"
    incidents: "Incidents"
    store: "Store"
    access: Access
    monitors: "Monitors"
    alerts: "Alerts"
    reports: "Reports"
    actions: Mapping[str, "ActionSpec"] = field(default_factory=dict)
    identity: Identity = field(default_factory=Identity)

    @property
    def bot_user_id(self) -> str:
        """Return the bot's own user id, or an empty string while Slack has not told it."""
        return self.identity.user_id

    @property
    def hosts(self) -> tuple[str, ...]:
        return self.runs.hosts.names()

    def default_host(self) -> str:
        """Return the host that is meant where none is named. Raise UserError if there are several to choose from."""
        return self.runs.hosts.default()

    def render_context(self) -> RenderContext:
        """Return what messages need besides the records: the time, command names, and mentions of the roles."""
        slack, access = self.settings.slack, self.access
        return RenderContext(
            now=self.store.clock(),
            commands={name: slack.command(name) for name in slack.commands},
            roles={role: name for role in self.settings.access.roles if (name := access.mention(role))},
            bot_user_id=self.bot_user_id,
        )
