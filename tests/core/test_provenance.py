"""Where a result comes from, and what does not change it."""

import subprocess
from pathlib import Path

import pytest

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
