"""Publication of finished checkpoints: contents, checks, and the two destinations."""
