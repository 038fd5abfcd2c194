"""Serving: engines, units that start and stop tiers, and the router in front of them."""
