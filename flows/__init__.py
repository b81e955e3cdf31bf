"""When and where the pipeline runs: DVC decides what is stale, Prefect decides the rest."""
