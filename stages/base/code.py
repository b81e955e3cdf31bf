"""Code that a model brings along (`auto_map`): said, never run, and not passed on.

With it left in, whoever opens a checkpoint with trust_remote_code would run what somebody else may
have changed since.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from stages.core.errors import InputError
from stages.core.outputs import read_json, write_json

_KEY = "auto_map"


def drop_code(folder: Path, source: str) -> None:
    """Take every `auto_map` out of the JSON files of a checkpoint, and say so.

    Raises InputError if the model's type is none of transformers' own, so that it could not be
    opened without that code.
    """
    from transformers import CONFIG_MAPPING

    config = read_json(folder / "config.json", "take another copy of the model")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in CONFIG_MAPPING:
        brings = (
            f" and is opened by code of its own ({_first(config)}), which is never run"
            if _named(config)
            else ""
        )
        raise InputError(
            f"base.source = {source!r} is of the type {kind!r}, which transformers does not"
            f" know{brings}: take a model of a type it knows, such as qwen2_vl, or a newer"
            " transformers"
        )
    for path in sorted(folder.glob("*.json")):
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # whoever needs it says what is wrong
        if isinstance(tree, dict) and _named(tree):
            print(
                f"base: {path.name} names code that {source} brings along ({_first(tree)}): left"
                " out, never run",
                file=sys.stderr,
            )
            write_json(path, {key: value for key, value in tree.items() if key != _KEY})


def _named(tree: Any) -> bool:
    return isinstance(tree, dict) and bool(tree.get(_KEY))


def _first(tree: dict[str, Any]) -> str:
    entries = tree[_KEY]
    return str(next(iter(entries.values())) if isinstance(entries, dict) else entries)
