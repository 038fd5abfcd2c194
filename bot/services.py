"""The services that handlers use. `bot/app.py` builds them once; handlers translate Slack requests into their calls."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bot.presenter.render_context import RenderContext
from bot.settings.model import Settings
from bot.slack.access import Access

if TYPE_CHECKING:
    from bot.incidents.incidents import Incidents
    from bot.runs.approvals import Approvals
    from bot.runs.runs import Runs
    from bot.store.store import Store
    from bot.watch.monitors import Monitors
    from gpu_actions.action import ActionSpec


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a handler may use. `clock` returns Unix seconds."""

    settings: Settings
    runs: "Runs"
    approvals: "Approvals"
    incidents: "Incidents"
    store: "Store"
    access: Access
    monitors: "Monitors | None" = None
    actions: Mapping[str, "ActionSpec"] = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    bot_user_id: str = ""

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(host.name for host in self.settings.hosts)

    def render_context(self) -> RenderContext:
        """Return what messages need besides the records, as of now."""
        return make_render_context(self.settings, self.access, now=self.clock(), bot_user_id=self.bot_user_id)


def make_render_context(
    settings: Settings, access: Access, *, now: float, bot_user_id: str = ""
) -> RenderContext:
    """Return the command names of the settings and the mentions of the roles."""
    return RenderContext(
        now=now,
        commands={name: settings.slack.command(name) for name in settings.slack.commands},
        roles={role: mention for role in settings.access.roles if (mention := access.mention(role))},
        bot_user_id=bot_user_id,
    )
