"""What the ingest promises: images a second, memory, work for new data, and what its storage costs
DVC and training.
"""
