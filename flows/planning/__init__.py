"""The plan of a run: what is stale, why, and for how long."""
