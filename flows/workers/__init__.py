"""Stages on several hosts, each in a checkout of its own."""
