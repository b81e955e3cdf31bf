"""Where the corpus comes from: probe, transfer, fetch."""
