"""Remote execution: requirements on repository and remote, and the pinned inputs of each stage."""

from __future__ import annotations

import os
from collections.abc import Iterable
from configparser import ConfigParser
from configparser import Error as ParsingError
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Final
from urllib.parse import urlsplit

from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.dvc_api.client import dvc
from flows.dvc_api.graph import Graph, Stage, overlap
from flows.dvc_api.lock_file import LOCK_FILE, read_locked_stages
from flows.workers.checkout import Inputs
from stages.core.errors import InputError
from stages.core.git import git, git_succeeds, git_value
from stages.core.provenance import CODE

_CONFIG: Final = ".dvc/config"


@dataclass(frozen=True)
class CodeSource:
    """Where workers get the code: a git repository that they can reach, and the commit."""

    repository: str
    commit: str


def check(root: Path, graph: Graph, names: Iterable[str], repository: str | None) -> CodeSource:
    """The code source of the workspace `root` for these stages: a named repository or its origin.

    InputError if what these stages read is not committed, if the commit is not in the repository,
    or if there is no DVC remote that all hosts can share.
    """
    commit = git(root, "rev-parse", "HEAD").strip()
    _check_committed(root, graph, names)
    _check_remote(root)
    found = repository or git_value(root, "config", "--get", "remote.origin.url")
    if not found:
        raise InputError(
            "the workspace has no git remote `origin` for workers to clone: push it somewhere, or"
            " name one with --repository"
        )
    address = urlsplit(found)
    if address.password or (address.username and address.scheme in ("http", "https")):
        raise InputError(
            "the repository's address carries a user or password, which everybody would see in the"
            " dashboard: give the address without, and those to git on each host (a credential"
            " helper, or SSH)"
        )
    source = CodeSource(str((root / found).resolve()) if (root / found).exists() else found, commit)
    _check_reachable(root, source)
    return source


def _check_committed(root: Path, graph: Graph, names: Iterable[str]) -> None:
    made = set(chain.from_iterable(stage.outs for stage in graph.stages.values()))
    files = (
        set(CODE)
        | {_CONFIG, ".dvcignore"}
        | {name for name in graph.stages if name.endswith(".dvc")}
    )
    for name in names:
        deps = graph.stages[name].deps
        files |= {dep for dep in deps if not any(overlap(dep, out) for out in made)}
    changed = (
        git(root, "status", "--porcelain", "--untracked-files=all", "--", *sorted(files))
        .rstrip()
        .splitlines()
    )
    if changed:
        raise InputError(
            "workers run what is committed, and here something is not:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nCommit and push it (or take it back), then start again"
        )


def _check_reachable(root: Path, source: CodeSource) -> None:
    try:
        listed = git(root, "ls-remote", "--heads", "--tags", "--", source.repository)
    except InputError as error:
        raise InputError(f"workers cannot clone {source.repository}: {error}") from error
    tips = {line.partition("\t")[0]: line.partition("\t")[2] for line in listed.splitlines()}
    if source.commit in tips:
        return
    for tip, ref in tips.items():
        if not git_succeeds(root, "cat-file", "-e", tip):
            git(
                root,
                "fetch",
                "--quiet",
                "--no-tags",
                "--no-write-fetch-head",
                "--",
                source.repository,
                ref.removesuffix("^{}"),
            )
        if git_succeeds(root, "merge-base", "--is-ancestor", source.commit, tip):
            return
    raise InputError(
        f"commit {source.commit[:12]} is on no branch or tag of {source.repository}: `git push` it,"
        " then start again"
    )


def _check_remote(root: Path) -> None:
    """Raise InputError if the committed configuration has no shared, reachable default remote."""
    config = ConfigParser(interpolation=None)
    try:
        config.read(root / _CONFIG, encoding="utf-8")
    except (ParsingError, UnicodeDecodeError) as error:
        raise InputError(f"{root / _CONFIG} cannot be read: {error}") from error
    # not by `dvc config`, which makes a relative path absolute
    name = config.get("core", "remote", fallback="")
    url = config.get(f"'remote \"{name}\"'", "url", fallback="")
    if not name or not url:
        raise InputError(
            f"hosts exchange data through a DVC remote, and {_CONFIG} names none: `dvc remote add"
            " --default shared s3://...` (or ssh, gs, azure, or the path of a folder that all"
            " hosts mount), commit it; secrets by the environment of each host"
        )
    scheme = urlsplit(url).scheme
    if scheme in ("http", "https"):
        raise InputError(
            f"the remote {name!r} ({url}) is of a kind that cannot hold DVC's run-cache: use s3,"
            " ssh, gs, azure or a folder"
        )
    if not scheme:
        if not os.path.isabs(url):
            raise InputError(
                f"the remote {name!r} is {url}, which is another folder for every clone: give its"
                " absolute path"
            )
        if not os.path.isdir(url):  # DVC would make it, on the wrong disk if a share is not mounted
            raise InputError(
                f"the remote {name!r} cannot be reached: there is no folder {url}. Mount it, or"
                " `mkdir` it if it is new"
            )
        return
    try:
        with Repo(str(root)) as repo:
            odb = repo.cloud.get_remote_odb(name)
            odb.fs.exists(odb.path)
    except Exception as error:  # each kind of remote has its own
        raise InputError(
            f"the remote {name!r} ({url}) cannot be reached: {error}. Try `dvc push` here, and mend"
            " what it says"
        ) from error


class RemoteInputs:
    """What workers need of a workspace: pushes each stage's outputs once, and tells their hashes.

    For several threads.
    """

    def __init__(self, root: Path, graph: Graph) -> None:
        self._root = root
        self._graph = graph
        self._lock = Lock()
        self._there: set[str] = set()

    def push(self, stage: Stage) -> Inputs:
        """Have the stage's inputs in the shared remote; the entries of dvc.lock that pin them.

        InputError if that fails.
        """
        makers = self._graph.in_order(self._graph.needs[stage.name])
        with self._lock:
            new = [name for name in makers if name not in self._there]
            if new:
                dvc(self._root, "push", *new)
                self._there.update(new)
        return read_entries(self._root, [name for name in makers if not name.endswith(".dvc")])

    def has(self, stage: str) -> None:
        """Take note that a worker has put the stage's outputs into the remote."""
        with self._lock:
            self._there.add(stage)


def read_entries(root: Path, names: Iterable[str]) -> Inputs:
    """`cmd` and `outs` of stages as dvc.lock has them. InputError for a stage that is not in it."""
    try:
        # DVC writes the file in place: read while no other does
        with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
            stages = read_locked_stages(root)
    except DvcException as error:
        raise InputError(
            f"{root / LOCK_FILE} cannot be read: {error}. `med-r1 doctor` says more"
        ) from error
    names = list(names)
    if missing := [name for name in names if name not in stages]:
        raise InputError(f"{missing[0]} is not in {LOCK_FILE}: run `dvc repro {missing[0]}` first")
    return {name: stages[name].model_dump(mode="json", exclude_unset=True) for name in names}
