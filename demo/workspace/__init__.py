"""The local Slack-compatible workspace: Web API, Socket Mode and a web page, for demonstration, drills and tests."""

from demo.workspace.client import WorkspaceClient
from demo.workspace.panel import PanelAction
from demo.workspace.seed import Seed, SlashCommand
from demo.workspace.server import Workspace

__all__ = ["PanelAction", "Seed", "SlashCommand", "Workspace", "WorkspaceClient"]
