"""Tell the service manager that the process is up and alive (`Type=notify`, `WatchdogSec`); without one nothing happens.

The sign of life comes from the event loop, so a loop that hangs is ended and restarted. Protocol: sd_notify(3).
"""

import os
import socket
from collections.abc import Callable

MICROSECONDS = 1e6
CANNOT_START = 1
"""Exit code of a process that cannot start; the log says why."""


def notify(state: str) -> None:
    """Send one state, such as `READY=1`. Do nothing where none listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
        sending.setblocking(False)  # a service manager that does not read must not stop us
        try:
            sending.connect("\0" + address[1:] if address.startswith("@") else address)
            sending.sendall(state.encode())
        except OSError:
            return  # we are then restarted, which is what the watchdog is for


def keep_alive_period_s() -> float:
    """Return how often to report: twice in each `WatchdogSec`; 0 if nobody asked for it."""
    return int(os.environ.get("WATCHDOG_USEC", "0")) / MICROSECONDS / 2


async def keep_alive(tell: Callable[[str], None] = notify) -> None:
    """Tell the service manager, or another supervisor, that we are up and then that we live, until cancelled."""
    import asyncio  # only here: `bot.supervisor` does without

    tell("READY=1")
    period_s = keep_alive_period_s()
    while period_s > 0:
        await asyncio.sleep(period_s)
        tell("WATCHDOG=1")
