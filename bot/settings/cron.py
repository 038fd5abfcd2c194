"""Cron expressions as people write them, for APScheduler."""

import re
from datetime import UTC

from apscheduler.triggers.cron import CronTrigger

DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")


def cron_trigger(expression: str) -> CronTrigger:
    """Return the trigger of a five-field cron expression in UTC. Raises ValueError if it cannot be read.

    APScheduler counts weekdays from Monday, cron from Sunday; the numbers become names, which mean the same in both.
    """
    fields = expression.split()
    if len(fields) != 5:
        raise ValueError(f"{expression!r} is not a cron expression: it has five fields, such as `0 10 * * 2`")
    fields[4] = re.sub(r"(?<![/\d])[0-7](?!\d)", lambda found: DAYS[int(found[0])], fields[4])
    return CronTrigger.from_crontab(" ".join(fields), timezone=UTC)
