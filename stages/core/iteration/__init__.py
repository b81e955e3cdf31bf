"""Iterate over much: bounded prefetch, lazy sequences, progress."""
