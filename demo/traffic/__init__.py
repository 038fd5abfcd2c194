"""Realistic load for a router: open-loop arrivals, answers of seconds, and an account of what each client saw."""
