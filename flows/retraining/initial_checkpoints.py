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
"""Champions' weights from which trainings begin. Not an output of DVC, but dependencies, pinned by
hash in dvc.lock.
"""


def set_initial_checkpoints(root: Path, starts: Mapping[str, Path]) -> list[str]:
    """Set the initial checkpoint of some trainings; the names of those that had another one.

    InputError, with nothing written, if params.yaml cannot be used, or not be edited without
    changing its layout.
    """
    path = root / layout.PARAMS
    known = load_params(path).checkpoints
    moved = [name for name, start in starts.items() if known[name].start != start.as_posix()]
    if not moved:
        return []
    tree = load_for_edit(read_text(path), path)
    for name in moved:
        tree["checkpoints"][name]["start"] = starts[name].as_posix()
    with atomic_file(path) as temporary:
        temporary.write_text(dump_edited(tree), encoding="utf-8")
    return moved
