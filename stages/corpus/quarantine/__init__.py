"""Refused inputs: ledger, reason codes, limits."""
