"""Edit `checkpoints.<name>.start` of params.yaml in place, keeping comments and order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from stages.core import layout
from stages.core.outputs import atomic_file
from stages.core.params import load_params
from stages.core.yaml_files import dump_edited, load_for_edit, read_text

CHAMPIONS: Final = layout.MODELS / "champion"
"""Champions' weights that trainings start from.

No stage makes them; dvc.lock pins them as dependencies of the trainings that start from them.
"""


def set_initial_checkpoints(root: Path, starts: Mapping[str, Path]) -> list[str]:
    """Set the initial checkpoints of trainings; the names of those whose setting changed.

    InputError, with nothing written, if params.yaml is invalid or cannot be edited without changing
    its layout.
    """
    path = root / layout.PARAMS
    checkpoints = load_params(path).checkpoints
    wanted = {name: start.as_posix() for name, start in starts.items()}
    changed = [name for name, start in wanted.items() if checkpoints[name].start != start]
    if not changed:
        return []
    tree = load_for_edit(read_text(path), path)
    for name in changed:
        tree["checkpoints"][name]["start"] = wanted[name]
    with atomic_file(path) as temporary:
        temporary.write_text(dump_edited(tree), encoding="utf-8")
    return changed
