"""`/drill plan|start|status|stop|schedule`: play an incident on a tier of its own, and see when the next drill is due."""

from datetime import UTC, datetime

from bot.presenter import drills as texts
from bot.watch.scheduler import next_times
from gpu_actions.drill.action import SPEC, history_path
from gpu_actions.drill.history import read_history
from handlers.call import Call
from handlers.command import action_command

SHOWN_TIMES = 3


async def schedule(call: Call, text: str) -> None:
    """Say when drills run by themselves, and what the last ones took."""
    settings = call.services.settings
    host = settings.drills.host or settings.default_host.name
    cron, speed = settings.drills.cron, settings.drills.clock_speed
    due = (
        next_times(cron, datetime.fromtimestamp(call.services.store.clock(), UTC), SHOWN_TIMES)
        if cron
        else []
    )
    history = read_history(history_path(settings.host_dir(host)))
    await call.answer(
        texts.schedule(host, cron, due, history, speed=speed, start=call.slash("drill", "start"))
    )


COMMAND = action_command(
    SPEC,
    usages={"schedule": "show when the next drills are due, and what the last ones took"},
    free_text={"schedule": schedule},
)
