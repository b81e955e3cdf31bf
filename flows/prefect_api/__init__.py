"""Prefect's API and artifacts."""
