"""The nursery of `gpu-oncall up`: it imports what the bot and the worker share, forks them, and ends.

What both have imported is in memory once, as far as neither changes it. What only one of them needs, that one imports.
"""

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import aiohttp  # noqa: F401  (shared by both)

from bot.settings.load import SettingsError, load_settings
from bot.settings.model import Settings
from bot.slack.tokens import CannotStart, check_tokens
from bot.web.service_notify import CANNOT_START
from bot.worker import serve_worker
from gpu_actions.system import detectors
from gpu_actions.system.stand_ins import absent

CRASHED = 70
"""Exit code of a process that ended with a traceback; EX_SOFTWARE of sysexits.h."""
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
"""From linux/prctl.h."""
ADOPTION_S = 0.005


def main() -> None:
    """Fork the processes of the orders in the last argument; each has the end of a pipe for its reports."""
    orders = json.loads(sys.argv[-1])
    config = orders["config"]
    try:
        settings = load_settings(None if config is None else Path(config))
        check_tokens(settings)
    except (SettingsError, CannotStart) as error:
        sys.stderr.write(f"settings: {error}\n")
        sys.exit(CANNOT_START)
    detectors.load()
    supervisor = os.getppid()
    gc.collect()
    gc.freeze()  # the collectors of the two do not write into the pages that they share
    for name, reports in orders["reports"].items():
        nursery = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become(name, settings, reports, float(orders["sign_s"]), nursery, supervisor)
        os.write(reports, f"PID={pid}\n".encode())
    os._exit(0)


def _become(
    name: str, settings: Settings, reports: int, sign_s: float, nursery: int, supervisor: int
) -> NoReturn:
    """Turn the forked child into the process."""
    code = CRASHED
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_NAME, f"oncall-{name}".encode(), 0, 0, 0)
        while os.getppid() == nursery:  # its end must not be taken for that of the supervisor
            time.sleep(ADOPTION_S)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != supervisor:
            os._exit(CRASHED)
        os.set_inheritable(reports, False)
        os.environ["WATCHDOG_USEC"] = str(int(sign_s * 2e6))  # `keep_alive` reports twice in it

        def tell(state: str) -> None:
            os.write(reports, f"{state}\n".encode())

        code = asyncio.run(_worker(settings, tell) if name == "worker" else _bot(settings, tell))
    except Exception:  # noqa: BLE001  (a child ends here, whatever it was)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


async def _worker(settings: Settings, tell: Callable[[str], None]) -> int:
    if settings.own_database_url.startswith("sqlite") and not settings.fleet.url:
        # On SQLite, DBOS only compares errors with classes of psycopg, which takes 8 MB.
        with absent("psycopg", "psycopg.errors"):
            import_module("dbos")
    return await serve_worker(settings, tell=tell)


async def _bot(settings: Settings, tell: Callable[[str], None]) -> int:
    from bot.app import serve  # only here: the worker does without Slack's libraries
    from handlers import check_command_names

    try:
        check_command_names(settings.slack)
    except SettingsError as error:
        sys.stderr.write(f"settings: {error}\n")
        return CANNOT_START
    return await serve(settings, tell=tell)
