"""`python -m demo.workspace`: run the local workspace as a process until SIGINT or SIGTERM."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.workspace.manifest import read_manifest
from demo.workspace.rates import RateLimits
from demo.workspace.server import DEFAULT_PORT, Workspace
from demo.workspace.team import DEFAULT_APP_TOKEN, DEFAULT_BOT_TOKEN, App, Team

USAGE_ERROR = 2


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    built = argparse.ArgumentParser(
        prog="python -m demo.workspace",
        description="A Slack-compatible workspace on this machine: page at /, Web API at /api/, Socket Mode.",
        epilog=(
            "The bot's tokens are read from SLACK_BOT_TOKEN and SLACK_APP_TOKEN "
            f"(default {DEFAULT_BOT_TOKEN} and {DEFAULT_APP_TOKEN})."
        ),
    )
    add = built.add_argument
    add("--host", default="127.0.0.1", help="loopback address to listen on (default 127.0.0.1)")
    add("--port", type=int, default=DEFAULT_PORT, help="port, 0 for a free one (default 8800)")
    add("--state", type=Path, metavar="FILE", help="SQLite file that stores messages and files")
    add("--manifest", type=Path, metavar="FILE", help="app manifest (JSON or YAML): commands, scopes, events")
    add("--no-rate-limits", action="store_true", help="accept any number of calls (Slack would answer 429)")
    add("--panel-url", metavar="URL", help="service that lists and runs the side panel's buttons")
    return built


async def serve(arguments: argparse.Namespace) -> int:
    """Run until a signal. Return 0, 1 if the port is taken, 2 for a wrong argument; errors go to stderr."""
    try:
        commands, app = read_manifest(arguments.manifest, App()) if arguments.manifest else ((), App())
        workspace = Workspace(
            host=arguments.host,
            port=arguments.port,
            team=Team(commands=commands, app=app),
            state_file=arguments.state,
            bot_token=os.environ.get("SLACK_BOT_TOKEN") or DEFAULT_BOT_TOKEN,
            app_token=os.environ.get("SLACK_APP_TOKEN") or DEFAULT_APP_TOKEN,
            panel_url=arguments.panel_url,
            api_middlewares=() if arguments.no_rate_limits else (RateLimits(),),
        )
    except (ValueError, OSError) as error:
        print(f"workspace: {error}", file=sys.stderr)
        return USAGE_ERROR
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        await workspace.start()
        print(f"workspace: {workspace.url}", flush=True)
        await stopped.wait()
    except OSError as error:
        print(f"workspace: {error.strerror or error}", file=sys.stderr)
        return 1
    finally:
        await workspace.stop()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, serve, and return the exit code."""
    return asyncio.run(serve(parser().parse_args(arguments)))


if __name__ == "__main__":
    raise SystemExit(main())
