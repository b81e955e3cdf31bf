"""Licence of a base from its model card, inherited by everything trained from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from stages.core.errors import InputError
from stages.core.yaml_files import load_yaml

EMBEDDED: Final = "infra/base"
"""The source of the base that comes with the repository."""
FIELDS: Final = ("license", "license_name", "license_link")
"""Fields on licences in the front matter of a model card."""


def read_licence(folder: Path) -> dict[str, str]:
    """FIELDS in the front matter of a folder's README.md; {} if there is none."""
    try:
        card = folder / "README.md"
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    begin, _, rest = text.partition("---\n")
    front, end, _ = rest.partition("\n---")
    if begin.strip() or not end:
        return {}
    try:
        tree = load_yaml(front, card)
    except InputError:
        return {}
    return (
        {key: str(tree[key]) for key in FIELDS if tree.get(key)} if isinstance(tree, dict) else {}
    )


def carried_licence(facts: Mapping[str, Any]) -> dict[str, str]:
    """Licence fields of a model with provenance `facts`: its base's; "other" if not recorded."""
    base = facts.get("base_model") or {}
    source = base.get("source") or ((facts.get("params") or {}).get("base") or {}).get("source")
    if source == EMBEDDED:
        return {"license": "apache-2.0"}
    return base.get("licence") or {"license": "other", "license_name": "as-the-base"}
