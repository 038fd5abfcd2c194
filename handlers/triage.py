"""`/triage [host] [deep]`: read everything, judge it, post the verdict card."""

from bot.presenter.help import SubcommandHelp
from handlers.arguments import Grammar
from handlers.command import Command, run_subcommands

COMMAND = Command(
    name="triage",
    summary="says what is wrong with a host, with its evidence and what to do. Reads only.",
    grammar=Grammar(
        name="triage",
        subcommands=("start", "status"),
        default="start",
        flags=("deep",),
    ),
    usages=(
        SubcommandHelp("[host]", "look at everything within seconds and post the verdict"),
        SubcommandHelp("[host] deep", "also run collectives, copies and a matrix product on the GPUs"),
        SubcommandHelp("status [host]", "the last verdict"),
    ),
    subcommands=run_subcommands("triage", "start", "status"),
)
