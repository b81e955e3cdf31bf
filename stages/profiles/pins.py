"""data.dvc of a profile: what it imports, with the hashes that DVC added when it was fetched before."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import yaml

from stages.core import layout
from stages.core.outputs import whole_file
from stages.core.params import parse_settings

KEPT: Final = layout.SCRATCH / "profiles"
"""What data.dvc was for other sources: DVC's cache still has what they pin."""


def imported(text: str, data: dict[str, Any] | None, root: Path) -> str:
    """data.dvc with another import; as it is if it imports the same already. Comments above its first key stay."""
    if data is None or (text and _source(_tree(text)) == _source(data)):
        return text
    head = "".join(line for line in _head(text))
    kept = root / KEPT / _name(_source(data))
    if "md5" not in data["outs"][0] and kept.is_file():
        return head + kept.read_text(encoding="utf-8")
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)


def keep(text: str, root: Path) -> None:
    """Keep what a data.dvc pins, for when a profile imports the same again; one without a hash pins nothing."""
    if not text or "md5" not in _tree(text)["outs"][0]:
        return
    path = root / KEPT / _name(_source(_tree(text)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(text[len("".join(_head(text))) :], encoding="utf-8")


def _tree(text: str) -> dict[str, Any]:
    return parse_settings(text, layout.DATA_DVC)


def _source(data: dict[str, Any]) -> str:
    return str((data.get("deps") or [{}])[0].get("path"))


def _name(source: str) -> str:
    return f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.dvc"


def _head(text: str) -> list[str]:
    lines = []
    for line in text.splitlines(keepends=True):
        if not line.startswith("#") and line.strip():
            break
        lines.append(line)
    return lines
