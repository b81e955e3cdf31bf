"""What git says of a repository, and that what it does not know is None."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import InputError
from stages.core.git import git, git_succeeds, git_value, is_dirty, uncommitted_files


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@example.invalid")
    return tmp_path


@pytest.fixture
def root(outside: Path) -> Path:
    git(outside, "init", "-q")
    (outside / "code.py").write_text("1", encoding="utf-8")
    git(outside, "add", "-A")
    git(outside, "commit", "-qm", "x")
    return outside


def test_a_value_that_is_empty_or_cannot_be_had_is_none(root: Path) -> None:
    assert git_value(root, "rev-parse", "HEAD") == git(root, "log", "--format=%H").strip()
    assert git_value(root, "log", "-1", "--format=%H", "--", "no-such-file") is None
    assert git_value(root, "config", "--get", "remote.origin.url") is None


def test_a_question_is_answered_by_the_exit_code(root: Path) -> None:
    assert git_succeeds(root, "cat-file", "-e", "HEAD")
    assert not git_succeeds(root, "cat-file", "-e", "0" * 40)


def test_uncommitted_files_are_listed(root: Path) -> None:
    assert uncommitted_files(root, ["code.py"]) == []
    assert is_dirty(root, ["code.py"]) is False
    (root / "code.py").write_text("2", encoding="utf-8")
    (root / "new.py").write_text("2", encoding="utf-8")
    assert uncommitted_files(root, ["."]) == ["code.py", "new.py"]
    assert is_dirty(root, ["code.py"]) is True


def test_outside_a_repository_nothing_is_known(outside: Path) -> None:
    assert uncommitted_files(outside, ["."]) is None
    assert is_dirty(outside, ["."]) is None
    with pytest.raises(InputError, match=f"failed in {outside}"):
        git(outside, "rev-parse", "HEAD")


def test_without_git_nothing_is_known(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(outside))
    assert git_value(outside, "rev-parse", "HEAD") is None
    assert not git_succeeds(outside, "rev-parse", "HEAD")
    with pytest.raises(InputError, match="install git"):
        git(outside, "rev-parse", "HEAD")
