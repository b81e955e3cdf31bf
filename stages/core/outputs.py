"""Outputs that are whole or absent: written under a temporary name, renamed when complete.

A stage that is killed, or whose disk is full, leaves nothing under a final name. What an earlier kill left under a
temporary name is removed by the next run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from stages.core.errors import InputError

_SUFFIX = ".incomplete"


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}{_SUFFIX}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it is flushed to disk and takes the place of `path`."""
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary directory; on success it takes the place of `path` and all that was in it."""
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
    """Write JSON as UTF-8, indented by one, keys in the order given, a newline at the end."""
    if type(value) is list:  # the long ones: no file is in memory as a whole
        write_elements(path, map(as_element, value))
        return
    if type(value) is dict and all(type(key) is str for key in value):
        write_items(path, value.items())
        return
    with whole_file(path) as temporary:
        temporary.write_text(_indented(value, 0) + "\n", encoding="utf-8")


def as_element(value: Any) -> str:
    """A value as it stands in a list that `write_json` writes: for what is written into several files."""
    return _indented(value, 1)


def write_elements(path: Path, elements: Iterable[str]) -> None:
    """Write a list of what `as_element` gave, to the bytes that `write_json` gives it."""
    _write_each(path, "[]", elements)


def write_items(path: Path, items: Iterable[tuple[str, Any]]) -> None:
    """Write an object of these (key, value) to the bytes that `write_json` gives it, one by one."""
    _write_each(path, "{}", (f"{encode_basestring(key)}: {_indented(value, 1)}" for key, value in items))


def _write_each(path: Path, brackets: str, elements: Iterable[str]) -> None:
    opening, closing = brackets[0], brackets[1]
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        before = f"{opening}\n "
        for element in elements:
            handle.write(before + element)
            before = ",\n "
        handle.write(f"{brackets}\n" if before[0] == opening else f"\n{closing}\n")


def _indented(value: Any, level: int) -> str:
    """What json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) gives, `level` deep in another value.

    The standard library indents token by token: for lists of objects of texts, a corpus or its splits, this takes a sixth of the time.
    """
    if type(value) is str:
        return encode_basestring(value)
    inner, outer = "\n" + " " * (level + 1), "\n" + " " * level
    if type(value) is dict and value and set(map(type, value)) == {str}:
        deeper = level + 1
        items = [
            f"{encode_basestring(key)}: {encode_basestring(each) if type(each) is str else _indented(each, deeper)}"
            for key, each in value.items()
        ]
        return "{" + inner + f",{inner}".join(items) + outer + "}"
    if type(value) is list and value:
        return "[" + inner + f",{inner}".join([_indented(each, level + 1) for each in value]) + outer + "]"
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False).replace("\n", outer)


def read_json(path: Path, remedy: str, each_object: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """What a JSON file holds, with `each_object` of every object in place of it, if given.

    Raises InputError, with the remedy, if it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_hook=each_object)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): {remedy}") from error
