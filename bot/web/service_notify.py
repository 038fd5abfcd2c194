"""Tell the service manager that the process is up and alive (`Type=notify`, `WatchdogSec`); without one nothing happens.

The sign of life comes from the event loop, so a loop that hangs is ended and restarted. Protocol: sd_notify(3).
"""

import asyncio
import os
import socket

MICROSECONDS = 1e6


def notify(state: str) -> None:
    """Send one state, such as `READY=1`. Do nothing where none listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
        try:
            sending.connect("\0" + address[1:] if address.startswith("@") else address)
            sending.sendall(state.encode())
        except OSError:
            return  # we are then restarted, which is what the watchdog is for


async def keep_alive() -> None:
    """Tell the service manager that we are up, then that we live, twice in each `WatchdogSec`, until cancelled."""
    notify("READY=1")
    period_s = int(os.environ.get("WATCHDOG_USEC", "0")) / MICROSECONDS / 2
    while period_s > 0:
        await asyncio.sleep(period_s)
        notify("WATCHDOG=1")
