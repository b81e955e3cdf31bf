"""Questions a second of stage evaluate, against the published script's loop."""
