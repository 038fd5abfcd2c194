"""Load test: an open-loop generator whose latencies count from the due time."""
