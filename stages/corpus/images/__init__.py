"""Decode, resize, hash and store images."""
