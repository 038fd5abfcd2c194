"""A local Slack-compatible workspace for demonstrations, drills and tests: Web API, Socket Mode and a web page.

It stands alone: any Bolt app can be pointed at it.
"""

from demo.workspace.client import WorkspaceClient
from demo.workspace.server import Workspace
from demo.workspace.side_panel import PanelAction
from demo.workspace.team import SlashCommand, Team

__all__ = ["PanelAction", "SlashCommand", "Team", "Workspace", "WorkspaceClient"]
