"""A profile's .dvc files: what they import, with the hashes DVC recorded on the last fetch."""

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
"""Earlier .dvc files of other sources: DVC's cache still has what they pin."""
_PROFILE: Final = "profile"
"""Key of `meta` in a file that a profile wrote and may remove."""


def with_import(text: str, data: dict[str, Any] | None, root: Path) -> str:
    """data.dvc with the import `data`; unchanged if it is None or the present import.

    Takes the hashes from SAVED_PINS if there are any. Comments above the first key stay.
    """
    if data is None:
        return text
    return _with_import(text, data, layout.DATA_DVC, root)


def with_released(text: str, released: dict[str, Any] | None, profile: str, root: Path) -> str:
    """infra/released.dvc with the import `released` of a profile, whose name it then carries.

    If it is None, the text is empty, so that the file is removed; but unchanged if no profile wrote
    it.
    """
    if released is not None:
        marked = released | {"meta": {**released.get("meta", {}), _PROFILE: profile}}
        return _with_import(text, marked, layout.RELEASED_DVC, root)
    return "" if _PROFILE in parse_dvc_file(text, layout.RELEASED_DVC).meta else text


def _with_import(text: str, data: dict[str, Any], path: Path, root: Path) -> str:
    wanted = DvcFile.model_validate(data)
    if text and _import(parse_dvc_file(text, path)) == _import(wanted):
        return text
    saved = root / SAVED_PINS / _file_name(wanted)
    if wanted.outs[0].md5 is None and saved.is_file():
        return _head(text) + saved.read_text(encoding="utf-8")
    return _head(text) + dump_yaml(data)


def save_pin(text: str, path: Path, root: Path) -> None:
    """Save what a .dvc file pins for the next use of its profile; nothing if it has no hashes.

    `path`: the file, which errors name.
    """
    pinned = parse_dvc_file(text, path)
    if not pinned.outs or pinned.outs[0].md5 is None:
        return
    saved = root / SAVED_PINS / _file_name(pinned)
    saved.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(saved) as temporary:
        temporary.write_text(text.removeprefix(_head(text)), encoding="utf-8")


def _import(file: DvcFile) -> tuple[str, ...]:
    """The path or address that is imported, empty if nothing is, where it is put, its revision."""
    dep = file.deps[0] if file.deps else None
    revision = (dep.repo.rev,) if dep and dep.repo and dep.repo.rev else ()
    return dep.source if dep else "", file.outs[0].path if file.outs else "", *revision


def _file_name(file: DvcFile) -> str:
    return f"{hashlib.sha256(' '.join(_import(file)).encode()).hexdigest()[:16]}.dvc"


def _head(text: str) -> str:
    """The comments and blank lines above the first key."""
    lines = text.splitlines(keepends=True)
    return "".join(takewhile(lambda line: line.startswith("#") or not line.strip(), lines))
