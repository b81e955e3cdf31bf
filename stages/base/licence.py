"""The licence of a base, as its own model card says it: what is trained from it carries it on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml

FIELDS: Final = ("license", "license_name", "license_link")
"""What the front matter of a card on the hub says of it."""


def read_licence(folder: Path) -> dict[str, str]:
    """These fields of README.md in a folder, as far as it has them; none if it is no card."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    begin, _, rest = text.partition("---\n")
    front, end, _ = rest.partition("\n---")
    if begin.strip() or not end:
        return {}
    try:
        tree = yaml.safe_load(front)
    except yaml.YAMLError:
        return {}
    return {key: str(tree[key]) for key in FIELDS if tree.get(key)} if isinstance(tree, dict) else {}
