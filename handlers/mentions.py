"""`@bot ...` in a channel or thread, and messages to the bot alone: decisions, signals, every command without its slash.

Slack does not allow slash commands in threads, so in an incident's thread people mention the bot.
"""

from collections.abc import Mapping

from bot.store.records import UserError
from handlers import approvals, buttons, gpu
from handlers.arguments import run_id_of, split
from handlers.call import Call
from handlers.command import Command

RUN_VERBS = ("hold", "pause", "next", "abort", "stop")


async def run(call: Call, text: str, commands: Mapping[str, Command]) -> None:
    """Do what a mention says."""
    text = _without_mention(text, f"<@{call.services.bot_user_id}>")
    verb, _, rest = text.partition(" ")
    verb = verb.lower().rstrip(":,.!")
    if verb in approvals.DECISIONS:
        await approvals.mention(call.about(f"@bot {verb}"), verb, rest)
    elif verb in RUN_VERBS:
        await _on_a_run(call.about(f"@bot {verb}"), verb, rest)
    else:
        await gpu.run(call, text, commands)


async def _on_a_run(call: Call, verb: str, rest: str) -> None:
    words = split(rest)
    run_id = run_id_of(words[0]) if words else ""
    if call.services.runs.get(run_id) is None:
        active = ", ".join(run.id for run in call.services.runs.list(active_only=True)) or "none"
        unknown = f"I know no run {run_id!r}. " if run_id else ""
        raise UserError(f"{unknown}Say which run: {verb} RUN. Running now: {active}.")
    await buttons.PRESSES["hold" if verb == "pause" else verb](call, run_id)


def _without_mention(text: str, mention: str) -> str:
    """Return the words after the bot's mention, or the words before it if none follow."""
    if mention in text:
        before, _, after = text.partition(mention)
        return (after if after.strip() else before).strip()
    return text.partition(">")[2].strip() if text.lstrip().startswith("<@") else text.strip()
