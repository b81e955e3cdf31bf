"""Refused inputs: quarantine table, reason codes, limits."""
