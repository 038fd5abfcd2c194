"""`/loadtest start|status|stop`: an open-loop load test through the router, with figures that can be believed."""

from bot.presenter.help import SubcommandHelp
from handlers.arguments import Grammar
from handlers.command import Command, run_subcommands

COMMAND = Command(
    name="loadtest",
    summary="loads the service at a fixed rate and reports latency, errors and throughput.",
    grammar=Grammar(name="loadtest", subcommands=("plan", "start", "status", "stop")),
    usages=(
        SubcommandHelp("start [host] qps=3 duration=20", "run one; options may be left out"),
        SubcommandHelp("plan [host]", "show what it would send"),
        SubcommandHelp("status [host]", "progress and the figures so far"),
        SubcommandHelp("stop [host]", "end it early and keep what was measured"),
    ),
    subcommands=run_subcommands("loadtest", "plan", "start", "status", "stop"),
)
