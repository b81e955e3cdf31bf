"""Snapshot of the workspace while new data is validated; one retraining at a time.

`save` copies data.dvc and dvc.lock to `.scratch/flows/before/` before the source is fetched;
`commit` accepts the new data and deletes the snapshot, `rollback` restores it. A snapshot that a
killed run left behind is restored by the next run first.
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

LOCK: Final = layout.FLOWS / "retrain.lock"
SNAPSHOT: Final = layout.FLOWS / "before"
REFUSED: Final = layout.FLOWS / "refused"
"""What the latest refused corpus was refused for: its quarantine, locations and data tests."""
VALIDATION_STAGES: Final = ("download", "resize", "splits")
"""Groups of stages that are run to validate new data."""
_FILES: Final = (layout.DATA_DVC, Path(LOCK_FILE))


class AlreadyRunningError(InputError):
    """Another retraining, promotion or rollback runs in the workspace."""


@contextmanager
def champion_lock(root: Path) -> Iterator[None]:
    """Lock the champion and the source of a workspace.

    AlreadyRunningError at once if another process has the lock.
    """

    def already_running(process: str) -> AlreadyRunningError:
        return AlreadyRunningError(
            f"process {process} is retraining, promoting or rolling back in {root}: wait for it"
        )

    with exclusive_lock(root / LOCK, on_conflict=already_running, holder=str(os.getpid())):
        yield


def save(root: Path) -> None:
    """Copy data.dvc, and dvc.lock if there is one."""
    with atomic_directory(root / SNAPSHOT) as folder:
        for file in _FILES:
            if (root / file).is_file():
                shutil.copyfile(root / file, folder / _copy_name(file))


def exists(root: Path) -> bool:
    """Is there a snapshot: a killed run neither accepted nor refused its data."""
    return (root / SNAPSHOT).is_dir()


def commit(root: Path) -> None:
    """Accept the new data: delete the snapshot."""
    shutil.rmtree(root / SNAPSHOT)


def keep_findings(root: Path) -> Path | None:
    """Copy what the stages found in a refused corpus to REFUSED, before `rollback` restores theirs.

    Returns the folder, or None if no stage got to read the corpus: data/ then describes the one
    before it. Findings of an earlier refusal are removed.
    """
    saved_at = (root / SNAPSHOT).stat().st_mtime_ns
    # what stage download writes first; what it leaves as it was may keep an old time
    first = [root / layout.QUARANTINE / "download.parquet", root / layout.LOCATIONS]
    # others that are older describe the corpus before, or parts that both have
    others = [*(root / layout.QUARANTINE / "resize").glob("*.parquet"), root / layout.DATA_TESTS]
    new = [
        path for path in (*first, *others) if path.is_file() and path.stat().st_mtime_ns >= saved_at
    ]
    if not new:
        shutil.rmtree(root / REFUSED, ignore_errors=True)
        return None
    with atomic_directory(root / REFUSED) as folder:
        for path in {*new, *filter(Path.is_file, first)}:
            target = folder / path.relative_to(root / layout.DATA)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return REFUSED


def rollback(root: Path) -> str | None:
    """Restore data.dvc, dvc.lock, the corpus and its derived files.

    Returns None, or a message on what could not be restored.
    """
    for file in _FILES:
        copy = root / SNAPSHOT / _copy_name(file)
        if copy.is_file():
            with atomic_file(root / file) as temporary:
                shutil.copyfile(copy, temporary)
        else:
            (root / file).unlink(missing_ok=True)
    names = read_locked_stages(root)
    stages = [name for name in names if name.partition("@")[0] in VALIDATION_STAGES]
    message = None
    try:
        dvc(root, "checkout", "--quiet", "--force", str(layout.DATA_DVC), *stages)
    except InputError as error:
        message = (
            "some files of the previous corpus are missing from DVC's cache (run `dvc repro"
            f" {' '.join(VALIDATION_STAGES)}` to restore them): {error}"
        )
    shutil.rmtree(root / SNAPSHOT)
    return message


def _copy_name(file: Path) -> str:
    """A name that DVC does not mistake for one of its own files."""
    return f"{file.name}.before"
