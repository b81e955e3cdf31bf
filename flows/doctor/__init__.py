"""Diagnose a workspace and repair what is safe to repair."""
