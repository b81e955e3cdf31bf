"""Run git commands; what git cannot tell is None, never an empty string."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from stages.core.errors import InputError

_MAX_ERROR: Final = 2000
"""Last characters of git's error message that are quoted."""
_VARIABLES: Final = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",  # `git status` would otherwise rewrite the index
}


def git(root: Path, *arguments: str, inherit_fds: Iterable[int] = ()) -> str:
    """What a git command prints, run in the folder `root`; `inherit_fds` stay open in it.

    InputError if it fails, with its error message, or if git is not installed.
    """
    try:
        process = _run(root, arguments, inherit_fds)
    except OSError as error:
        raise InputError(f"git cannot be run in {root} ({error}): install git") from error
    if process.returncode:
        why = " ".join(process.stderr.split())[-_MAX_ERROR:]
        raise InputError(f"`git {' '.join(arguments)}` failed in {root}: {why}")
    return process.stdout


def git_value(root: Path, *arguments: str) -> str | None:
    """The value that a git command prints; None if it fails or prints nothing."""
    try:
        return git(root, *arguments).strip() or None
    except InputError:
        return None


def git_succeeds(root: Path, *arguments: str, inherit_fds: Iterable[int] = ()) -> bool:
    """Whether a git command exits with 0, as those do that answer a question by their exit code."""
    try:
        return _run(root, arguments, inherit_fds).returncode == 0
    except OSError:
        return False


def last_commit(root: Path, paths: Iterable[str]) -> str | None:
    """The last commit that touched `paths`; None if git does not know.

    In a shallow clone the oldest commit seems to have added every file: of those it is unknown.
    """
    commit = git_value(root, "log", "-1", "--format=%H", "--", *paths)
    boundary = git_value(root, "rev-parse", "--git-path", "shallow")
    if commit is None or boundary is None:
        return None
    file = root / boundary
    if file.is_file() and commit in file.read_text(encoding="utf-8").split():
        return None
    return commit


def unknown_commit(root: Path) -> tuple[str, str] | None:
    """Why the commit of the code in `root` cannot be known, and the remedy; None if it can."""
    try:
        shallow = git(root, "rev-parse", "--is-shallow-repository").strip()
    except InputError as error:
        if "dubious ownership" in str(error):
            return (
                "git refuses a folder of another user",
                f"git config --global --add safe.directory {root.resolve()}",
            )
        return f"{root.resolve()} is not a git repository ({error})", "work in a clone"
    if git_value(root, "rev-parse", "HEAD") is None:
        return "the repository has no commit", "commit the code"
    if shallow == "true":
        return "the clone is shallow: its oldest commit hides earlier ones", "git fetch --unshallow"
    return None


def uncommitted_files(root: Path, paths: Iterable[str]) -> list[str] | None:
    """Files below `paths` that are changed, or not tracked; None outside a repository."""
    try:
        listed = git(root, "status", "--porcelain", "--no-renames", "--", *paths)
    except InputError:
        return None
    return [line[3:] for line in listed.splitlines()]


def is_dirty(root: Path, paths: Iterable[str]) -> bool | None:
    """Whether anything below `paths` is not committed; None outside a repository."""
    files = uncommitted_files(root, paths)
    return None if files is None else bool(files)


def _run(
    root: Path, arguments: Iterable[str], inherit_fds: Iterable[int]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments],
        cwd=root,
        env=os.environ | _VARIABLES,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        pass_fds=tuple(inherit_fds),
    )
