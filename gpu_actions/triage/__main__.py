"""`python -m gpu_actions.triage`: triage of this host, without Slack and without the bot."""

import sys

from gpu_actions.triage.cli import main

if __name__ == "__main__":
    sys.exit(main())
