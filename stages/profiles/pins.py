"""A profile's data.dvc: what it imports, with the hashes DVC recorded on the last fetch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

from stages.core import layout
from stages.core.dvc_files import DvcFile, parse_dvc_file
from stages.core.outputs import atomic_file
from stages.core.yaml_files import dump_yaml

KEPT: Final = layout.SCRATCH / "profiles"
"""What data.dvc was for other sources: DVC's cache still has what they pin."""


def imported(text: str, data: dict[str, Any] | None, root: Path) -> str:
    """data.dvc with another import; as it is if it imports the same already.

    Comments above its first key stay.
    """
    if data is None:
        return text
    wanted = DvcFile.model_validate(data)
    if text and _source(parse_dvc_file(text, layout.DATA_DVC)) == _source(wanted):
        return text
    head = "".join(_head(text))
    pinned = root / KEPT / _name(_source(wanted))
    if wanted.outs[0].md5 is None and pinned.is_file():
        return head + pinned.read_text(encoding="utf-8")
    return head + dump_yaml(data)


def keep(text: str, root: Path) -> None:
    """Remember what a data.dvc pins for the next use of its profile; without hashes, nothing."""
    pinned = parse_dvc_file(text, layout.DATA_DVC)
    if not pinned.outs or pinned.outs[0].md5 is None:
        return
    path = root / KEPT / _name(_source(pinned))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(text[len("".join(_head(text))) :], encoding="utf-8")


def _source(file: DvcFile) -> str:
    """The path or address that is imported; empty if nothing is."""
    return file.deps[0].source if file.deps else ""


def _name(source: str) -> str:
    return f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.dvc"


def _head(text: str) -> list[str]:
    lines = []
    for line in text.splitlines(keepends=True):
        if not line.startswith("#") and line.strip():
            break
        lines.append(line)
    return lines
