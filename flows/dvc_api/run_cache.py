"""Stale stages that DVC can restore from its run cache instead of running them.

Uses DVC's Python objects as `flows.dvc_api.graph` does: only to read, and in a single thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dvc.dependency.base import DependencyDoesNotExistError
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError
from dvc_data.hashfile.hash_info import HashInfo

from flows.dvc_api.repository import open_repository


def restorable(root: Path, names: Iterable[str]) -> set[str]:
    """Those of the given stages whose outputs `dvc repro` would restore from the run cache.

    Their inputs must be up to date: the result for a stage that waits for a stale one is
    meaningless. Changes the process's working directory to `root` meanwhile, from which DVC
    resolves paths of the run cache.
    """
    candidates = set(names)
    with open_repository(root) as repo:
        file = os.path.join(repo.root_dir, "dvc.yaml")
        stages = {
            stage.name: stage
            for stage in repo.index.stages
            if stage.path == file and stage.name in candidates
        }
        return {name for name, stage in stages.items() if _is_restorable(repo, stage)}


def _is_restorable(repo: Repo, stage: Any) -> bool:
    try:
        if stage.changed_stage() or not stage.deps_cached():
            stage.save_deps()  # hashes of the present inputs, only in memory
            for out in stage.outs:
                out.hash_info = HashInfo()  # the present outputs are of other inputs
        repo.stage_cache.restore(stage, dry=True)
    except (RunCacheNotFoundError, DependencyDoesNotExistError):
        return False
    return True
