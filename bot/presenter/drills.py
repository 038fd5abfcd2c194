"""The texts of drills: their schedule, and the alert of one that was slower than it may be."""

from collections.abc import Sequence
from datetime import datetime

from bot.presenter.message import Lines, Message, compose, header, section
from bot.presenter.mrkdwn import code, one_line
from gpu_actions.drill.history import Drill

SHOWN_DRILLS = 5


def schedule(
    host: str, cron: str, due: Sequence[datetime], history: Sequence[Drill], *, speed: float, start: str
) -> Message:
    """Return when the drills of a host are due, and what the last ones took."""
    if cron:
        times = ", ".join(at.strftime("%a %Y-%m-%d %H:%M UTC") for at in due)
        first = f"Drills on {one_line(host)} run by schedule {code(cron)}, next: {times}."
        if speed != 1:
            first += f" The schedule's clock runs {speed:g} times as fast."
    else:
        first = f"No drill is scheduled on {one_line(host)}: set `drills.cron`, or use {code(start)}."
    lines = [
        f"{code(drill.run_id)} {one.fault}: "
        + ", ".join(f"{phase} {took_s:.1f} s" for phase, took_s in one.phase_s.items())
        for drill in history[-SHOWN_DRILLS:]
        for one in drill.faults
    ]
    shown = Lines(tuple(lines) or ("No drill has ended yet.",), noun="drills", drop="start")
    return compose(first, [section(first), shown])


def alert(run_id: str, host: str, problems: Sequence[str]) -> Message:
    """Return the alert of a drill that failed or was slower than it may be."""
    first = f"ALERT: the drill {run_id} on {host} did not pass"
    lines = "\n".join(f"• {one_line(problem, 300)}" for problem in problems)
    todo = "*Next:* read its report, and mend the path before an incident needs it. Limits: `hosts.drill`."
    return compose(one_line(first), [header(first), section(f":warning: {lines}\n{todo}")])
