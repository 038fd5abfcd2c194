"""Run the command line: `python -m bot.cli` is `gpu-oncall`."""

from bot.cli.main import main

main()
