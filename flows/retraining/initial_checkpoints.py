"""Where trainings begin: `checkpoints.<name>.start` of params.yaml, written in place, so that comments and order stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import whole_file
from stages.core.params import load_params

CHAMPIONS: Final = layout.MODELS / "champion"
"""Where champions' weights lie from which trainings begin. Not an output of DVC, but dependencies, pinned by hash in dvc.lock."""


def write_starts(root: Path, starts: Mapping[str, Path]) -> list[str]:
    """Set where the trainings of some checkpoints begin; those whose start was another before.

    InputError, with nothing written, if an entry is not written on one line with its start.
    """
    path = root / layout.PARAMS
    text = path.read_text(encoding="utf-8")
    known = load_params(path).checkpoints
    moved = [name for name, start in starts.items() if known[name].start != start.as_posix()]
    for name in moved:
        entry = re.compile(rf"^(  {re.escape(name)}: \{{[^}}\n]*\bstart: )[^,}}\s]+", re.MULTILINE)
        text, found = entry.subn(lambda match, name=name: f"{match[1]}{starts[name].as_posix()}", text)  # type: ignore[misc]
        if found != 1:
            raise InputError(
                f"{path}: checkpoints.{name} is not one line with `start: ...`: write `start: {starts[name].as_posix()}` there yourself "
                "and run again without --start-from"
            )
    if moved:
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return moved
