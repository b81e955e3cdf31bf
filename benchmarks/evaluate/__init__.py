"""Questions per second of stage evaluate, compared with the published script's loop."""
