"""Readers of other published and private forms of questions, converted into one corpus folder."""
