"""Ingest benchmark: images per second, memory, incremental work, cost of storage."""
