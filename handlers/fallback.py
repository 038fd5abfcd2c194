"""`/fallback plan|start|status|stop [host]`: serve from one healthy GPU while the full tier is looked at."""

from bot.presenter.help import SubcommandHelp
from handlers.arguments import Grammar
from handlers.command import Command, run_subcommands

COMMAND = Command(
    name="fallback",
    summary="saves the evidence, stops the broken tier and serves from one healthy GPU.",
    grammar=Grammar(name="fallback", subcommands=("plan", "start", "status", "stop")),
    usages=(
        SubcommandHelp(
            "plan [host]", "show every step with its commands, files and weights; changes nothing"
        ),
        SubcommandHelp("start [host]", "run it; one message shows each step"),
        SubcommandHelp("status [host]", "where it stands"),
        SubcommandHelp("stop [host]", "stop it and leave one defined state"),
    ),
    subcommands=run_subcommands("fallback", "plan", "start", "status", "stop"),
)
