"""Triage: collect a snapshot of the host, judge it by rules, and give one verdict with its evidence."""
