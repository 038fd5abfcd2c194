"""`/trace start|status`: profile the live engine for a few seconds and list its top kernels."""

from bot.presenter.help import SubcommandHelp
from handlers.arguments import Grammar
from handlers.command import Command, run_subcommands

COMMAND = Command(
    name="trace",
    summary="profiles the live engine for a few seconds: the trace and its top kernels.",
    grammar=Grammar(name="trace", subcommands=("plan", "start", "status", "stop")),
    usages=(
        SubcommandHelp("start [host]", "profile it now"),
        SubcommandHelp("plan [host]", "show what it would do"),
        SubcommandHelp("status [host]", "where the last one stands"),
        SubcommandHelp("stop [host]", "end it early"),
    ),
    subcommands=run_subcommands("trace", "plan", "start", "status", "stop"),
)
