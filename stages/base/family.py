"""Families of models that can be a base."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.core.outputs import read_json

FAMILIES: Final = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
}
"""transformers' model type -> name. Prompts, positions and the vision tower are used as theirs."""
_PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")


def check_family(folder: Path, source: str) -> None:
    """Raise InputError unless a checkpoint is of one of the families and brings its processor."""
    config = read_json(folder / "config.json", "take another copy of the model")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    *names, last = FAMILIES.values()
    if model_type not in FAMILIES:
        raise InputError(
            f"base.source = {source!r} is of the type {model_type!r}: take a {', '.join(names)} or"
            f" {last}, in whose form images and questions are given here"
        )
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        raise InputError(
            f"base.source = {source!r} has no {' or '.join(_PROCESSOR_FILES)}, which says how the"
            " model is given images: take another copy of it"
        )
