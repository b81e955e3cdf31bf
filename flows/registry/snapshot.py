"""Snapshot of the workspace before new data is tried.

One retraining at a time; `rollback` restores the workspace until `commit` accepts the data.

What was there before is kept in `.scratch/flows/before/` from before the source is fetched until
the data is found good. It is there after a kill too: whoever comes next finds it and goes back
first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flows.dvc_api.client import dvc
from flows.dvc_api.lock_file import LOCK_FILE, read_locked_stages
from stages.core import layout
from stages.core.errors import InputError
from stages.core.file_lock import exclusive_lock
from stages.core.outputs import atomic_directory, atomic_file

LOCK: Final = layout.SCRATCH / "flows" / "retrain.lock"
BEFORE: Final = layout.SCRATCH / "flows" / "before"
TRIED: Final = ("download", "resize", "splits")
"""Groups of stages that are run to find out whether data is good."""
_FILES: Final = (layout.DATA_DVC, Path(LOCK_FILE))


class AlreadyRunningError(InputError):
    """Another retraining holds the workspace."""


@contextmanager
def only_retraining(root: Path) -> Iterator[None]:
    """Hold the champion and the source of a workspace.

    AlreadyRunningError at once if another process does.
    """

    def taken(process: str) -> AlreadyRunningError:
        return AlreadyRunningError(f"a retraining (process {process}) runs in {root} already")

    with exclusive_lock(root / LOCK, on_conflict=taken, holder=str(os.getpid())):
        yield


def save(root: Path) -> None:
    """Keep what is needed to go back: data.dvc, and dvc.lock if there is one."""
    with atomic_directory(root / BEFORE) as folder:
        for file in _FILES:
            if (root / file).is_file():
                shutil.copyfile(root / file, folder / _kept(file))


def on_trial(root: Path) -> bool:
    """Is there data that was neither found good nor bad: a run was killed over it."""
    return (root / BEFORE).is_dir()


def commit(root: Path) -> None:
    """The data is good: there is no way back any more."""
    shutil.rmtree(root / BEFORE)


def rollback(root: Path) -> str | None:
    """Restore data.dvc, dvc.lock, the corpus and its derived files.

    Returns None, or a message on what could not be restored.
    """
    for file in _FILES:
        kept = root / BEFORE / _kept(file)
        if kept.is_file():
            with atomic_file(root / file) as temporary:
                shutil.copyfile(kept, temporary)
        elif (root / file).is_file():
            (root / file).unlink()
    known = [name for name in read_locked_stages(root) if name.partition("@")[0] in TRIED]
    try:
        dvc(root, "checkout", "--quiet", "--force", str(layout.DATA_DVC), *known)
        word = None
    except InputError as error:
        word = (
            "not all files of the corpus before could be brought back from DVC's cache (`dvc repro"
            f" {' '.join(TRIED)}` makes them): {error}"
        )
    shutil.rmtree(root / BEFORE)
    return word


def _kept(file: Path) -> str:
    """A name that DVC does not take for one of its own."""
    return f"{file.name}.before"
