"""Stub until merged."""

from pathlib import Path


def record(root: Path, stage: str, seconds: float) -> None: ...
