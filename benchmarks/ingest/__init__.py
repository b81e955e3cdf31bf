"""What the ingest promises: pictures a second, memory, work for new data, and what its storage costs DVC and training."""
