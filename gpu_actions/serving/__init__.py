"""Serving: engines, units that start and stop tiers, the router, and the reference engine."""
