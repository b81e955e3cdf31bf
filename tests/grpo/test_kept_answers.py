"""Answers kept batch by batch: whole parts only, and none of other settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.errors import InputError
from stages.grpo.generate import Answers, Completion
from stages.grpo.kept_answers import KeptAnswers

FIRST = Answers({(0, "real"): Completion("<answer>A</answer>", (5, 6)), (0, "blank"): Completion("\u00e4\n", ())}, 64)
SECOND = Answers({(3, "shuffled"): Completion("", (7,))}, 32)


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path / "base" / "0123")
    kept.make_folder()
    assert kept.read() == ({}, [])
    kept.add(FIRST)
    kept.add(SECOND)
    assert kept.count() == 3
    assert KeptAnswers(kept.folder).read() == (FIRST.completions | SECOND.completions, [32, 64])


@pytest.mark.parametrize("content", ["", "[]", '{"batch_size": 1}', '{"batch_size": 1, "answers": [[1, "real", "A"]]}'])
def test_a_part_that_is_not_whole_is_as_one_that_was_never_written(tmp_path: Path, content: str) -> None:
    kept = KeptAnswers(tmp_path / "base" / "0123")
    kept.make_folder()
    kept.add(FIRST)
    kept.add(SECOND)
    part = next(kept.folder.glob("0000003-*.json"))
    part.write_text(content, encoding="utf-8")
    assert kept.read() == (FIRST.completions, [64])
    assert kept.count() == 2


def test_what_other_settings_left_is_removed(tmp_path: Path) -> None:
    old = KeptAnswers(tmp_path / "base" / "old")
    old.make_folder()
    old.add(FIRST)
    new = KeptAnswers(tmp_path / "base" / "new")
    new.make_folder()
    assert new.read() == ({}, [])
    assert not old.folder.exists()


def test_a_place_where_nothing_can_be_kept_is_named(tmp_path: Path) -> None:
    (tmp_path / "base").write_text("a file", encoding="utf-8")
    with pytest.raises(InputError, match=r"base/0123, where answers are kept as they come, cannot be written to .*: make it a folder"):
        KeptAnswers(tmp_path / "base" / "0123").make_folder()
