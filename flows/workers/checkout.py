"""A worker's clone: one commit, the inputs of one stage, and a cache that shares its results.

Clones are numbered folders below $MED_R1_WORK (~/.cache/med-r1). They are never deleted: the next
stage fetches only what is new, and an interrupted training resumes from the state in its clone. A
clone is locked while a worker or one of its processes uses it, so no two workers share one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

from flows.dvc_api.client import dvc
from flows.dvc_api.graph import Graph, Stage, overlap
from flows.dvc_api.lock_file import LOCK_FILE
from flows.dvc_api.repository import cache_folder
from stages.core import layout
from stages.core.errors import InputError
from stages.core.file_lock import LockedError, exclusive_lock
from stages.core.git import git, git_succeeds
from stages.core.yaml_files import dump_yaml

WORK: Final = "MED_R1_WORK"
"""Environment variable: the folder for clones; its disk must hold the corpus and some checkpoints.
"""

Inputs = Mapping[str, Mapping[str, Any]]
"""Stage -> its `cmd` and `outs` in dvc.lock, which is not committed while the pipeline runs."""


@dataclass(frozen=True)
class Clone:
    """An exclusively locked clone; its processes inherit the lock's file descriptor."""

    root: Path
    lock_fd: int


@contextmanager
def claim(repository: str, stage: str) -> Iterator[Clone]:
    """Lock a free clone of a repository, or create one.

    Among free clones, one with unfinished state of the stage is preferred.
    """
    folder = work_folder() / hashlib.sha256(repository.encode()).hexdigest()[:16]
    numbers = {int(path.stem) for path in folder.glob("*.lock") if path.stem.isdigit()}
    group, _, key = stage.partition("@")
    unfinished = {
        number
        for number in numbers
        if (folder / str(number) / layout.SCRATCH / group / key).is_dir()
    }
    known = sorted(numbers, key=lambda number: (number not in unfinished, number))
    with ExitStack() as stack:
        for number in chain(known, count(max(numbers, default=-1) + 1)):
            lock = exclusive_lock(folder / f"{number}.lock", on_conflict=LockedError, mode=0o600)
            with suppress(LockedError):
                clone = Clone(folder / str(number), stack.enter_context(lock))
                break
        yield clone


def work_folder() -> Path:
    """Where this host's clones are."""
    return Path(os.environ.get(WORK) or "~/.cache/med-r1").expanduser().resolve()


def check_out(clone: Clone, repository: str, commit: str) -> None:
    """Check out exactly the files of a commit; ignored files (caches, unfinished state) stay.

    InputError if the repository cannot be reached or has no such commit.
    """
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit):
        raise InputError(
            f"{commit!r} is not a full commit id: give what `git rev-parse HEAD` prints"
        )
    fds = [clone.lock_fd]
    has_commit = ("cat-file", "-e", f"{commit}^{{commit}}")
    if not (clone.root / ".git").is_dir():
        # clone under another name: an interrupted clone must not pass for a complete one
        incomplete = clone.root.with_suffix(".incomplete")
        shutil.rmtree(incomplete, ignore_errors=True)
        arguments = ("clone", "--quiet", "--no-checkout", "--", repository, incomplete.name)
        git(incomplete.parent, *arguments, inherit_fds=fds)
        incomplete.rename(clone.root)
    # stale locks of a killed git: the clone is locked, so no other git runs in it
    for lock in (clone.root / ".git").glob("*.lock"):
        lock.unlink()
    if not git_succeeds(clone.root, *has_commit, inherit_fds=fds):
        refs = "+refs/heads/*:refs/remotes/origin/*"
        git(clone.root, "fetch", "--quiet", "--force", "--tags", "origin", refs, inherit_fds=fds)
    if not git_succeeds(clone.root, *has_commit, inherit_fds=fds):
        raise InputError(
            f"{repository} has no commit {commit} on a branch or tag: push it, then re-run"
        )
    git(clone.root, "checkout", "--quiet", "--force", "--detach", commit, inherit_fds=fds)
    git(clone.root, "clean", "--quiet", "-ffd", inherit_fds=fds)


def pull_inputs(clone: Clone, graph: Graph, stage: Stage, inputs: Inputs) -> None:
    """Pull exactly the outputs that a stage reads from the shared remote, as `inputs` pins them.

    InputError if one is missing from `inputs` or from the remote.
    """
    producers = [graph.stages[name] for name in graph.in_order(graph.needs[stage.name])]
    names = [producer.name for producer in producers if not producer.name.endswith(".dvc")]
    if missing := [name for name in names if name not in inputs]:
        raise InputError(
            f"{stage.name} needs {', '.join(missing)}, missing from the inputs sent to this worker:"
            " start stages with `med-r1 workers`"
        )
    lock = {"schema": "2.0", "stages": {name: dict(entry) for name, entry in inputs.items()}}
    (clone.root / LOCK_FILE).write_text(dump_yaml(lock), encoding="utf-8")
    outs = chain.from_iterable(producer.outs for producer in producers)
    needed = [out for out in outs if any(overlap(out, dep) for dep in stage.deps)]
    for dep in stage.deps:
        if any(out.startswith(f"{dep}/") for out in needed):
            _remove_others(clone.root, Path(dep), [Path(out) for out in needed])
    if needed:
        dvc(clone.root, "pull", "--force", *needed, inherit_fds=[clone.lock_fd])


def clear_run_cache(clone: Clone) -> None:
    """Empty a clone's run cache, so that the next push contains the entry of one stage only."""
    cache = cache_folder(clone.root)
    if cache.resolve().is_relative_to(clone.root):  # never empty a shared cache
        shutil.rmtree(cache / "runs", ignore_errors=True)


def push_result(clone: Clone, stage: str) -> None:
    """Push a stage's outputs and run-cache entry to the shared remote; InputError if that fails."""
    dvc(clone.root, "push", "--run-cache", stage, inherit_fds=[clone.lock_fd])


def _remove_others(root: Path, folder: Path, outs: Sequence[Path]) -> None:
    """Remove everything in a folder except `outs`: leftovers of an earlier commit."""
    if not (root / folder).is_dir():
        return
    for path in sorted((root / folder).iterdir()):
        relative = path.relative_to(root)
        if relative in outs:
            continue
        if any(relative in out.parents for out in outs) and path.is_dir():
            _remove_others(root, relative, outs)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
