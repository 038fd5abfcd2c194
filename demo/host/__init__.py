"""The demonstration: a whole incident on one machine without GPUs and without Slack, with every part real."""
