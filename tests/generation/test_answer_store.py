"""The answer store: complete parts only, of one fingerprint only."""

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


def filled_store(folder: Path) -> AnswerStore:
    store = AnswerStore(folder)
    store.make_folder()
    store.add(Answers(FIRST, 64))
    store.add(Answers(SECOND, 32))
    return store


def test_answers_are_read_back_with_their_batch_sizes(tmp_path: Path) -> None:
    assert filled_store(tmp_path / "a").read() == (FIRST | SECOND, [32, 64])
    assert AnswerStore(tmp_path / "a").count() == 3


def test_incomplete_parts_are_ignored(tmp_path: Path) -> None:
    store = filled_store(tmp_path / "a")
    (part,) = (tmp_path / "a").glob("0000003-*")
    (tmp_path / "a" / f".{part.name}.incomplete").write_bytes(part.read_bytes())
    part.write_text(part.read_text(encoding="utf-8")[:40], encoding="utf-8")
    assert store.read() == (SECOND, [32])
    assert store.count() == 1


def test_answers_of_another_fingerprint_are_removed_and_never_read(tmp_path: Path) -> None:
    filled_store(tmp_path / "a")
    other = AnswerStore(tmp_path / "b")
    other.make_folder()
    assert other.read() == ({}, [])
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_folder_that_is_not_writable_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file", encoding="utf-8")
    with pytest.raises(InputError, match=str(tmp_path / "a")):
        AnswerStore(tmp_path / "a").make_folder()
