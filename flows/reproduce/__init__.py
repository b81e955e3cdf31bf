"""Bring everything stale up to date."""
