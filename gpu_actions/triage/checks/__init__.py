"""Checks: pure functions from a snapshot to findings. Each finding is a row of the rules table with its evidence."""
