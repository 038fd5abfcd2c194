"""`/gpu COMMAND ...`: the umbrella that reaches every command, also where another app has taken a command's name.

A mention in a thread (`@gpu-oncall fallback status`) takes the same way, because slash commands cannot be used in threads.
"""

from collections.abc import Mapping

from bot.presenter import answers
from bot.presenter.help import overview
from bot.presenter.mrkdwn import one_line
from bot.store.records import UserError
from handlers.arguments import nearest
from handlers.call import Call
from handlers.command import Command


async def run(call: Call, text: str, commands: Mapping[str, Command]) -> None:
    """Hand the words to the command they name. Raises UserError, with the nearest name, where they name none."""
    name, _, rest = text.strip().partition(" ")
    name = name.lower().lstrip("/-")
    if name in ("", "help", "?", "h"):
        services = call.services
        helps = [command.help(call) for command in commands.values()]
        await call.answer(overview(helps, call.view, hosts=services.hosts))
        return
    if name in ("status", "runs"):
        await call.answer(answers.runs_message(call.services.runs.list(active_only=True), call.view))
        return
    renamed = {call.services.settings.slack.command(known).removeprefix("/"): known for known in commands}
    known = name if name in commands else renamed.get(name)
    if known is None:
        meant = nearest(name, [*commands, *renamed, "status", "help"])
        hint = (
            f" Did you mean {meant!r}?" if meant else f" I know: {', '.join((*commands, 'status', 'help'))}."
        )
        raise UserError(f"I do not know {one_line(name, 60)!r}.{hint}")
    await commands[known].run(call, rest)
