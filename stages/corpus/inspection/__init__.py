"""Inspect a corpus before any stage runs, and advise."""
