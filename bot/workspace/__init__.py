"""The local Slack-compatible workspace: Web API, Socket Mode and a web page, for demonstration, drills and tests."""

from bot.workspace.client import WorkspaceClient
from bot.workspace.panel import PanelAction
from bot.workspace.seed import Seed, SlashCommand
from bot.workspace.server import Workspace

__all__ = ["PanelAction", "Seed", "SlashCommand", "Workspace", "WorkspaceClient"]
