"""`/restore plan|start|status|stop [host]`: bring the full tier back, behind approvals, traffic shifted in steps."""

from bot.presenter.help import SubcommandHelp
from handlers.arguments import Grammar
from handlers.command import Command, run_subcommands

COMMAND = Command(
    name="restore",
    summary="starts the full tier beside the fallback, proves it, and shifts the traffic back in steps.",
    grammar=Grammar(name="restore", subcommands=("plan", "start", "status", "stop")),
    usages=(
        SubcommandHelp("plan [host]", "show every step, what is lost, and who must approve"),
        SubcommandHelp("start [host]", "ask for the approvals, then run it"),
        SubcommandHelp("status [host]", "where it stands"),
        SubcommandHelp("stop [host]", "stop it; the traffic goes back to the fallback"),
    ),
    subcommands=run_subcommands("restore", "plan", "start", "status", "stop"),
)
