"""Settings, outputs and processes that every stage shares; no stage lists it as a dependency."""
