"""Many hosts, one bot: signed orders to the hosts' workers, and what they report, through PostgreSQL. See docs/fleet.md."""
