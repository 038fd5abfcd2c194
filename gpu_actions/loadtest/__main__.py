"""`python -m gpu_actions.loadtest`: see `cli.py`."""

import sys

from gpu_actions.loadtest.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
