"""`python -m demo.workspace`: the local workspace as a process of its own, until SIGINT or SIGTERM."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.workspace.guard import checked_bind_address
from demo.workspace.seed import DEFAULT_APP_TOKEN, DEFAULT_BOT_TOKEN, Seed, read_manifest_commands
from demo.workspace.server import DEFAULT_PORT, Workspace

USAGE_ERROR = 2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m demo.workspace",
        description="A Slack-compatible workspace on this machine: page at /, Web API at /api/, Socket Mode.",
        epilog=(
            "The bot's tokens are read from SLACK_BOT_TOKEN and SLACK_APP_TOKEN "
            f"(else {DEFAULT_BOT_TOKEN} and {DEFAULT_APP_TOKEN})."
        ),
    )
    made.add_argument("--host", default="127.0.0.1", help="loopback address to listen on (default 127.0.0.1)")
    made.add_argument("--port", type=int, default=DEFAULT_PORT, help="port, 0 for a free one (default 8800)")
    made.add_argument("--state", type=Path, metavar="FILE", help="SQLite file that keeps messages and files")
    made.add_argument(
        "--manifest", type=Path, metavar="FILE", help="app manifest (JSON or YAML) to take commands from"
    )
    made.add_argument(
        "--panel-url", metavar="URL", help="service that lists and runs the side panel's buttons"
    )
    return made


async def serve(arguments: argparse.Namespace) -> int:
    """Run until a signal. Exit code 0; 1 when the port is taken; 2 for a wrong argument, said on stderr."""
    try:
        host = checked_bind_address(arguments.host)
        commands = read_manifest_commands(arguments.manifest) if arguments.manifest else ()
        workspace = Workspace(
            host=host,
            port=arguments.port,
            seed=Seed(commands=commands),
            state_file=arguments.state,
            bot_token=os.environ.get("SLACK_BOT_TOKEN") or DEFAULT_BOT_TOKEN,
            app_token=os.environ.get("SLACK_APP_TOKEN") or DEFAULT_APP_TOKEN,
            panel_url=arguments.panel_url,
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
    """Parse and serve; gives the exit code."""
    return asyncio.run(serve(parser().parse_args(arguments)))


if __name__ == "__main__":
    raise SystemExit(main())
