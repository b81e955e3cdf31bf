"""Answers that are kept: whole parts alone, of one fingerprint alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import InputError
from stages.generation.answer_store import AnswerStore
from stages.generation.generate import Answers, Completion, Key

FIRST: dict[Key, Completion] = {
    (3, "real"): Completion("<answer> é </answer>", (5, 7, 844)),
    (3, "blank"): Completion("", (844,)),
}
SECOND: dict[Key, Completion] = {(1, "real"): Completion("b", (6,))}


def kept(folder: Path) -> AnswerStore:
    made = AnswerStore(folder)
    made.make_folder()
    made.add(Answers(FIRST, 64))
    made.add(Answers(SECOND, 32))
    return made


def test_answers_come_back_as_they_were_with_the_batch_sizes(tmp_path: Path) -> None:
    assert kept(tmp_path / "a").read() == (FIRST | SECOND, [32, 64])
    assert AnswerStore(tmp_path / "a").count() == 3


def test_what_a_kill_left_unfinished_does_not_count(tmp_path: Path) -> None:
    answers = kept(tmp_path / "a")
    (part,) = (tmp_path / "a").glob("0000003-*")
    (tmp_path / "a" / f".{part.name}.incomplete").write_bytes(part.read_bytes())
    part.write_text(part.read_text(encoding="utf-8")[:40], encoding="utf-8")
    assert answers.read() == (SECOND, [32])
    assert answers.count() == 1


def test_those_of_another_fingerprint_are_removed_and_never_read(tmp_path: Path) -> None:
    kept(tmp_path / "a")
    other = AnswerStore(tmp_path / "b")
    other.make_folder()
    assert other.read() == ({}, [])
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"a, where answers are kept as they come, cannot be written to"
    ):
        AnswerStore(tmp_path / "a").make_folder()
