"""Where a result comes from, and what does not change it."""

import os
import subprocess
from pathlib import Path

import pytest

from stages.core.git import unknown_commit
from stages.core.provenance import collect_provenance


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@example.invalid")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "train.py").write_text("1", encoding="utf-8")
    git("init", "-q")
    commit()
    return tmp_path


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit() -> str:
    git("add", "-A")
    git("commit", "-q", "-m", "x")
    return git("rev-parse", "HEAD")


def test_a_commit_of_results_does_not_change_where_they_come_from(repository: Path) -> None:
    before = collect_provenance({})
    (repository / "dvc.lock").write_text("new", encoding="utf-8")
    commit()
    assert collect_provenance({}) == before
    assert before["git_dirty"] is False


def test_a_change_of_code_does(repository: Path) -> None:
    (repository / "stages" / "train.py").write_text("2", encoding="utf-8")
    assert collect_provenance({})["git_dirty"] is True
    last = commit()
    assert collect_provenance({})["git_commit"] == last
    (repository / "stages" / "new.py").write_text("", encoding="utf-8")
    assert collect_provenance({})["git_dirty"] is True


def test_the_corpus_is_named_by_the_hash_that_pins_it(repository: Path) -> None:
    assert collect_provenance({})["corpus"] is None
    (repository / "data.dvc").write_text(
        "outs:\n- md5: abc\n  path: data/raw/corpus.zip\n", encoding="utf-8"
    )
    assert collect_provenance({})["corpus"] == "md5:abc"


def test_outside_a_repository_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    facts = collect_provenance({})
    assert facts["git_commit"] is None
    assert facts["git_dirty"] is None
    assert facts["versions"]["torch"]


def test_in_a_shallow_clone_a_commit_that_may_be_another_is_unknown(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "README.md").write_text("later", encoding="utf-8")
    commit()
    shallow = tmp_path / "shallow"
    git("clone", "-q", "--depth", "1", f"file://{repository}", str(shallow))
    monkeypatch.chdir(shallow)
    assert collect_provenance({})["git_commit"] is None
    assert collect_provenance({})["git_dirty"] is False
    why, remedy = unknown_commit(Path()) or ("", "")
    assert ("shallow" in why, remedy) == (True, "git fetch --unshallow")
    (shallow / "stages" / "train.py").write_text("2", encoding="utf-8")
    newer = commit()
    assert collect_provenance({})["git_commit"] == newer
    git("fetch", "-q", "--unshallow")
    assert collect_provenance({})["git_commit"] == newer
    assert unknown_commit(Path()) is None


def test_without_a_repository_commit_and_changes_are_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    provenance = collect_provenance({})
    assert (provenance["git_commit"], provenance["git_dirty"]) == (None, None)
    why, remedy = unknown_commit(Path()) or ("", "")
    assert "not a git repository" in why
    assert "clone" in remedy


def test_a_repository_without_a_commit_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    assert collect_provenance({})["git_commit"] is None
    assert unknown_commit(Path()) == ("the repository has no commit", "commit the code")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_in_a_folder_of_another_user_commit_and_changes_are_unknown(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    for path in [repository, *repository.rglob("*")]:
        os.chown(path, 12345, 12345)
    provenance = collect_provenance({})
    assert (provenance["git_commit"], provenance["git_dirty"]) == (None, None)
    why, remedy = unknown_commit(Path()) or ("", "")
    assert "another user" in why
    assert remedy == f"git config --global --add safe.directory {repository}"
