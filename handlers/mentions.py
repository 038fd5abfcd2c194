"""`@bot ...` in a channel or thread: decisions, signals, and every command without its slash.

Slash commands cannot be used in threads, and a thread is where an incident lives: mentions are the way in there.
"""

from collections.abc import Mapping

from bot.services import Services
from bot.store.records import UserError
from handlers import approvals, buttons, gpu
from handlers.arguments import run_id_of, split
from handlers.call import Call
from handlers.command import Command

_SIGNALS = ("hold", "next", "abort")


async def run(call: Call, text: str, commands: Mapping[str, Command]) -> None:
    """Do what a mention says; `text` is what stands behind the bot's name."""
    verb, _, rest = text.strip().partition(" ")
    verb = verb.lower().rstrip(":,.!")
    if verb in approvals.DECISIONS:
        await approvals.mention(call.about(f"@bot {verb}"), verb, rest)
        return
    if verb in (*_SIGNALS, "stop"):
        words = split(rest)
        run_id = run_id_of(words[0]) if words else ""
        if call.services.runs.get(run_id) is None:
            active = ", ".join(r.id for r in call.services.runs.list(active_only=True)) or "none"
            unknown = f"I know no run {run_id!r}. " if run_id else ""
            raise UserError(f"{unknown}Say which run: {verb} RUN. Active now: {active}.")
        await buttons.PRESSES[verb](call.about(f"@bot {verb}"), run_id)
        return
    await gpu.run(call.about("your mention"), text, commands)


def words_behind_mention(text: str, services: Services) -> str:
    """The text without the mention of the bot, wherever it stands in it."""
    mention = f"<@{services.bot_user_id}>"
    if services.bot_user_id and mention in text:
        before, _, after = text.partition(mention)
        return (after if after.strip() else before).strip()
    return text.partition(">")[2].strip() if text.lstrip().startswith("<@") else text.strip()
