"""Code shipped with a model (`auto_map`): reported, never run, never passed on.

If it stayed, anyone who opens a checkpoint with trust_remote_code would run code that a third party
can change.
"""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.core.outputs import read_json, write_json

_CODE_KEY = "auto_map"


def drop_code(folder: Path, source: str) -> None:
    """Remove each `auto_map`, nested ones too, from the JSON files of a checkpoint; report it.

    Raises InputError if transformers does not know the model's type, so that the model could not be
    opened without that code.
    """
    from transformers import CONFIG_MAPPING

    config = read_json(folder / "config.json", "take another copy of the model")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in CONFIG_MAPPING:
        names = code_names(config)
        brings = (
            f" and is opened by code of its own ({names[0]}), which is never run" if names else ""
        )
        raise InputError(
            f"base.source = {source!r} is of the type {model_type!r}, which transformers does not"
            f" know{brings}: take a model of a type it knows, such as qwen2_vl, or a newer"
            " transformers"
        )
    for path in sorted(folder.glob("*.json")):
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # whoever reads this file reports the error
        if names := code_names(tree):
            print(
                f"base: {path.name} references code of {source} ({names[0]}): removed, never run",
                file=sys.stderr,
            )
            write_json(path, _without_code(tree))


def code_names(tree: Any) -> list[str]:
    """Names of the code that a JSON value references at any depth; an empty `auto_map` has none."""
    if isinstance(tree, list):
        return list(chain.from_iterable(map(code_names, tree)))
    if not isinstance(tree, dict):
        return []
    entries = tree.get(_CODE_KEY) or ()
    own = entries.values() if isinstance(entries, dict) else filter(None, [entries])
    return [*map(str, own), *chain.from_iterable(map(code_names, tree.values()))]


def _without_code(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_without_code(each) for each in tree]
    if not isinstance(tree, dict):
        return tree
    return {key: _without_code(value) for key, value in tree.items() if key != _CODE_KEY}
