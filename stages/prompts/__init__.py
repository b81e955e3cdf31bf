"""Prompt styles and chat messages."""
