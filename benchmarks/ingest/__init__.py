"""Ingest benchmarks: images per second, memory, incremental work, storage formats."""
