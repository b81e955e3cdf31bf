"""Which stale stages DVC need not run, since it keeps what they once made of the same inputs.

Uses DVC's Python objects as `flows.dvc_api.graph` does: only to read, and in the only thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dvc.dependency.base import DependencyDoesNotExistError
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError
from dvc_data.hashfile.hash_info import HashInfo


def restorable(root: Path, names: Iterable[str]) -> set[str]:
    """Those of the given stages whose outputs `dvc repro` would take from the run-cache.

    All that they read has to be as it will be when they run: a stage that waits for a stale one
    cannot be judged yet. While this looks, the process's working directory is `root`, from which
    DVC resolves what its run-cache names.
    """
    wanted = set(names)
    logger = logging.getLogger("dvc")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it announces what it only tries
    try:
        with contextlib.chdir(root), Repo() as repo:
            file = os.path.join(repo.root_dir, "dvc.yaml")
            stages = {
                stage.name: stage
                for stage in repo.index.stages
                if stage.path == file and stage.name in wanted
            }
            return {name for name, stage in stages.items() if _is_kept(repo, stage)}
    finally:
        logger.setLevel(level)


def _is_kept(repo: Repo, stage: Any) -> bool:
    try:
        if stage.changed_stage() or not stage.deps_cached():
            stage.save_deps()  # hashes of what is there now, in memory
            for out in stage.outs:
                out.hash_info = HashInfo()  # what is there was made of other inputs
        repo.stage_cache.restore(stage, dry=True)
    except (RunCacheNotFoundError, DependencyDoesNotExistError):
        return False
    return True
