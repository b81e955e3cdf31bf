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

    InputError if files that these stages read are not committed, if the commit is not in the
    repository, or if there is no DVC remote that all hosts can share.
    """
    commit = git(root, "rev-parse", "HEAD").strip()
    _check_committed(root, graph, names)
    _check_remote(root)
    location = repository or git_value(root, "config", "--get", "remote.origin.url")
    if not location:
        raise InputError(
            "the workspace has no git remote `origin` for workers to clone: push it to one, or"
            " name a repository with --repository"
        )
    address = urlsplit(location)
    if address.password or (address.username and address.scheme in ("http", "https")):
        raise InputError(
            "the repository's address carries a user or password, which would be visible in the"
            " dashboard: remove them from the address, and configure git's credentials on each host"
            " (a credential helper, or SSH)"
        )
    if (root / location).exists():
        location = str((root / location).resolve())
    source = CodeSource(location, commit)
    _check_reachable(root, source)
    return source


def _check_committed(root: Path, graph: Graph, names: Iterable[str]) -> None:
    outs = set(chain.from_iterable(stage.outs for stage in graph.stages.values()))
    files = {*CODE, _CONFIG, ".dvcignore"}
    files |= {name for name in graph.stages if name.endswith(".dvc")}
    for name in names:
        deps = graph.stages[name].deps
        files |= {dep for dep in deps if not any(overlap(dep, out) for out in outs)}
    status = git(root, "status", "--porcelain", "--untracked-files=all", "--", *sorted(files))
    if changed := status.rstrip().splitlines():
        raise InputError(
            "workers run the commit only, and these files have uncommitted changes:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nCommit and push them, or revert them, then re-run"
        )


def _check_reachable(root: Path, source: CodeSource) -> None:
    try:
        lines = git(root, "ls-remote", "--heads", "--tags", "--", source.repository).splitlines()
    except InputError as error:
        raise InputError(f"workers cannot clone {source.repository}: {error}") from error
    tips = {line.partition("\t")[0]: line.partition("\t")[2] for line in lines}
    if source.commit in tips:
        return
    fetch = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", source.repository)
    for tip, ref in tips.items():
        if not git_succeeds(root, "cat-file", "-e", tip):
            git(root, *fetch, ref.removesuffix("^{}"))
        if git_succeeds(root, "merge-base", "--is-ancestor", source.commit, tip):
            return
    raise InputError(
        f"commit {source.commit[:12]} is on no branch or tag of {source.repository}: `git push` it,"
        " then re-run"
    )


def _check_remote(root: Path) -> None:
    """Raise InputError if the committed configuration has no shared, reachable default remote."""
    config = ConfigParser(interpolation=None)
    try:
        config.read(root / _CONFIG, encoding="utf-8")
    except (ParsingError, UnicodeDecodeError) as error:
        raise InputError(f"{root / _CONFIG} cannot be read: {error}") from error
    # not `dvc config`, which resolves relative paths
    name = config.get("core", "remote", fallback="")
    url = config.get(f"'remote \"{name}\"'", "url", fallback="")
    if not name or not url:
        raise InputError(
            f"hosts exchange data through a DVC remote, and {_CONFIG} names none: `dvc remote add"
            " --default shared s3://...` (or ssh, gs, azure, or the path of a folder that all"
            " hosts mount) and commit it; set secrets in the environment of each host"
        )
    scheme = urlsplit(url).scheme
    if scheme in ("http", "https"):
        raise InputError(
            f"the remote {name!r} ({url}) is HTTP, which cannot hold DVC's run-cache: use s3, ssh,"
            " gs, azure or a folder"
        )
    if not scheme:
        if not os.path.isabs(url):
            raise InputError(
                f"the remote {name!r} is {url}, a relative path, which is another folder for every"
                " clone: set its absolute path"
            )
        # DVC would create it, on the wrong disk if a share is not mounted
        if not os.path.isdir(url):
            raise InputError(
                f"the remote {name!r} cannot be reached: the folder {url} is missing. Mount it, or"
                " `mkdir` it if it is new"
            )
        return
    try:
        with Repo(str(root)) as repo:
            odb = repo.cloud.get_remote_odb(name)
            odb.fs.exists(odb.path)
    except Exception as error:  # each kind of remote has its own
        raise InputError(
            f"the remote {name!r} ({url}) cannot be reached: {error}. Run `dvc push` here and fix"
            " the error it prints"
        ) from error


class RemoteInputs:
    """Pushes each stage's inputs to the shared remote once and returns their pins; thread-safe."""

    def __init__(self, root: Path, graph: Graph) -> None:
        self._root = root
        self._graph = graph
        self._lock = Lock()
        self._pushed: set[str] = set()

    def push(self, stage: Stage) -> Inputs:
        """Ensure that the remote has the stage's inputs; the entries of dvc.lock that pin them.

        InputError if that fails.
        """
        producers = self._graph.in_order(self._graph.needs[stage.name])
        with self._lock:
            new = [name for name in producers if name not in self._pushed]
            if new:
                dvc(self._root, "push", *new)
                self._pushed.update(new)
        return read_entries(self._root, [name for name in producers if not name.endswith(".dvc")])

    def mark_pushed(self, stage: str) -> None:
        """Record that a worker has pushed the stage's outputs."""
        with self._lock:
            self._pushed.add(stage)


def read_entries(root: Path, names: Iterable[str]) -> Inputs:
    """`cmd` and `outs` of stages as dvc.lock has them. InputError for a stage that is not in it."""
    try:
        # DVC writes the file in place: read it under DVC's lock
        with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
            stages = read_locked_stages(root)
    except DvcException as error:
        raise InputError(
            f"{root / LOCK_FILE} cannot be read: {error}. Run `med-r1 doctor` for details"
        ) from error
    names = list(names)
    if missing := [name for name in names if name not in stages]:
        raise InputError(f"{missing[0]} is not in {LOCK_FILE}: run `dvc repro {missing[0]}` first")
    return {name: stages[name].model_dump(mode="json", exclude_unset=True) for name in names}
