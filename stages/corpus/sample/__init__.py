"""Phantoms and the embedded sample corpus."""
