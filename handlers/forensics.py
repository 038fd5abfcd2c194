"""`/forensics [host]`: save the evidence of a fault into one bundle before anything is changed."""

from bot.presenter.help import SubcommandHelp
from handlers.arguments import Grammar
from handlers.command import Command, run_subcommands

COMMAND = Command(
    name="forensics",
    summary="saves stacks, logs, GPU state and metrics of a host into one bundle.",
    grammar=Grammar(name="forensics", subcommands=("plan", "start", "status", "stop"), default="start"),
    usages=(
        SubcommandHelp("[host]", "collect now"),
        SubcommandHelp("plan [host]", "show what it would collect"),
        SubcommandHelp("status [host]", "where the last one stands"),
        SubcommandHelp("stop [host]", "end it early"),
    ),
    subcommands=run_subcommands("forensics", "plan", "start", "status", "stop"),
)
