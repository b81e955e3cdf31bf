"""A profile's data.dvc: what it imports, with the hashes DVC recorded on the last fetch."""

from __future__ import annotations

import hashlib
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from stages.core import layout
from stages.core.dvc_files import DvcFile, parse_dvc_file
from stages.core.outputs import atomic_file
from stages.core.yaml_files import dump_yaml

SAVED_PINS: Final = layout.SCRATCH / "profiles"
"""Earlier data.dvc files of other sources: DVC's cache still has what they pin."""


def with_import(text: str, data: dict[str, Any] | None, root: Path) -> str:
    """data.dvc with the import `data`; unchanged if it is None or the present import.

    Takes the hashes from SAVED_PINS if there are any. Comments above the first key stay.
    """
    if data is None:
        return text
    wanted = DvcFile.model_validate(data)
    if text and _import(parse_dvc_file(text, layout.DATA_DVC)) == _import(wanted):
        return text
    saved = root / SAVED_PINS / _file_name(wanted)
    if wanted.outs[0].md5 is None and saved.is_file():
        return _head(text) + saved.read_text(encoding="utf-8")
    return _head(text) + dump_yaml(data)


def save_pin(text: str, root: Path) -> None:
    """Save what a data.dvc pins for the next use of its profile; nothing if it has no hashes."""
    pinned = parse_dvc_file(text, layout.DATA_DVC)
    if not pinned.outs or pinned.outs[0].md5 is None:
        return
    path = root / SAVED_PINS / _file_name(pinned)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(text.removeprefix(_head(text)), encoding="utf-8")


def _import(file: DvcFile) -> tuple[str, str]:
    """The path or address that is imported, empty if nothing is, and where it is put."""
    source = file.deps[0].source if file.deps else ""
    return source, file.outs[0].path if file.outs else ""


def _file_name(file: DvcFile) -> str:
    return f"{hashlib.sha256(' '.join(_import(file)).encode()).hexdigest()[:16]}.dvc"


def _head(text: str) -> str:
    """The comments and blank lines above the first key."""
    lines = text.splitlines(keepends=True)
    return "".join(takewhile(lambda line: line.startswith("#") or not line.strip(), lines))
