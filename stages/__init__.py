"""The pipeline: one module a stage, each runnable as `python -m stages.<name>`."""
