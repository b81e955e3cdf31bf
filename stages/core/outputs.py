"""Outputs that are whole or absent: written under a temporary name, renamed when complete.

A stage that is killed, or whose disk is full, leaves nothing under a final name. What an earlier
kill left under a temporary name is removed by the next run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from stages.core.errors import InputError

FORMAT: Final = 1
"""Version of the bytes that write_json and write_json_lines write; each stage module names it.

DVC does not track this file. After a change of these bytes, raise FORMAT here and its copy in each
stage module: that edit makes the stages stale (tests/core/test_formats.py).
"""
_SUFFIX = ".incomplete"
_LINE_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}{_SUFFIX}")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success, flush it to disk and rename it to `path`."""
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary directory; on success, it replaces `path` and its contents."""
    temporary = _temporary(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file: UTF-8, indented by one, keys in the order given, a newline at the end."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        json.dump(value, handle, ensure_ascii=False, indent=1, allow_nan=False)
        handle.write("\n")


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON Lines file in UTF-8, one object per line, one in memory at a time."""
    with (
        atomic_file(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as handle,
    ):
        handle.writelines(f"{_LINE_ENCODER.encode(record)}\n" for record in records)


def read_json_lines(path: Path, remedy: str) -> Iterator[dict[str, Any]]:
    """Iterate over the objects of a JSON Lines file, one in memory at a time.

    The n-th object is on line n, from 1.

    Raises InputError, with the remedy, if the file is missing, or at the first line that is not a
    JSON object in UTF-8.
    """
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {remedy}") from None
    with handle:
        for number, line in enumerate(handle, start=1):
            try:
                record = json.loads(line.decode("utf-8"))
            except ValueError as error:
                raise InputError(
                    f"{path}, line {number} is not JSON ({error}): {remedy}"
                ) from error
            if not isinstance(record, dict):
                raise InputError(
                    f"{path}, line {number} is not a JSON object but {record!r:.60}: {remedy}"
                )
            yield record


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file. Raises InputError, with the remedy, if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): {remedy}") from error
