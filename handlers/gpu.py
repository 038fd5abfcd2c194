"""`/gpu COMMAND ...` reaches every command, even where another app owns a command's name. Mentions use it too."""

from collections.abc import Mapping

from bot.presenter import private_answers
from bot.presenter.help import CommandText, overview
from bot.store.records import UserError
from handlers import hosts, whoami
from handlers.arguments import HELP_WORDS, did_you_mean
from handlers.call import Call
from handlers.command import Command

UMBRELLA = CommandText(
    name="gpu",
    summary="Reach every command of gpu-oncall, and list what is running.",
    hint="help | hosts | status | whoami | triage | fallback start | ...",
)


async def run(call: Call, text: str, commands: Mapping[str, Command]) -> None:
    """Pass the words on to the command they name. Raises UserError, with the nearest name, if they name none."""
    name, _, rest = text.strip().partition(" ")
    name = name.lower().lstrip("/-")
    if not name or name in HELP_WORDS:
        await call.answer(overview(list(commands.values()), call.context, hosts=call.services.hosts))
        return
    if name in ("status", "runs"):
        await call.answer(
            private_answers.runs_message(call.services.runs.list(active_only=True), call.context)
        )
        return
    if name == "hosts":
        await hosts.answer(call)
        return
    if name in ("whoami", "who"):
        await whoami.answer(call)
        return
    by_name = {call.slash(command.name)[1:]: command for command in commands.values()} | dict(commands)
    if name not in by_name:
        known = (*(call.slash(command)[1:] for command in commands), "hosts", "status", "whoami", "help")
        hint = did_you_mean(name, (*by_name, *known), f" I know: {', '.join(known)}.")
        raise UserError(f"I do not know {name[:60]!r}.{hint}")
    await by_name[name].run(call, rest)
