"""DVC's command line, graph, run cache and reasons for staleness."""
