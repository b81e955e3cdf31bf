"""The answer cache: whole windows only, of exactly this policy and these questions."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.core.errors import InputError
from stages.generation.answer_cache import AnswerCache, window_key
from stages.generation.generate import Answers, Completion
from stages.generation.windows import BLANK, Key, Question, Variant
from tests.grpo.tiny import questions

ROWS: list[Key] = [(3, "real"), (3, "blank"), (1, "real")]
ANSWERS = Answers(
    {
        (1, "real"): Completion("b", (6,)),
        (3, "real"): Completion("<answer> é </answer>", (5, 7, 844)),
        (3, "blank"): Completion("", (844,)),
    },
    [32, 64],
)
KEY = "ab" * 32


def filled_cache(folder: Path, keys: tuple[str, ...] = (KEY,)) -> AnswerCache:
    cache = AnswerCache(folder)
    for key in keys:
        cache.add(key, ROWS, ANSWERS)
    return cache


def test_answers_are_read_back_with_their_batch_sizes(tmp_path: Path) -> None:
    cache = filled_cache(tmp_path / "a")
    assert cache.has(KEY)
    assert cache.read(KEY, ROWS) == ANSWERS
    assert cache.read("cd" * 32, ROWS) is None


def test_rows_follow_their_order_and_not_their_positions(tmp_path: Path) -> None:
    moved: list[Key] = [(0, "real"), (0, "blank"), (7, "real")]
    answers = filled_cache(tmp_path / "a").read(KEY, moved)
    assert answers is not None
    assert list(answers.completions) == moved
    assert answers.completions[7, "real"] == ANSWERS.completions[1, "real"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: "",
        lambda text: text.replace('"answers"', '"rows"'),
        lambda text: text.replace('["b",[6]]', '["b"]'),
        lambda text: text.replace(',["b",[6]]', ""),
        lambda text: text.replace("[6]", '["x"]'),
    ],
)
def test_a_damaged_window_is_deleted(tmp_path: Path, damage: Callable[[str], str]) -> None:
    cache = filled_cache(tmp_path / "a")
    (path,) = (tmp_path / "a").glob("*/*.json")
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    assert cache.read(KEY, ROWS) is None
    assert not cache.has(KEY)


def test_an_incomplete_file_is_ignored(tmp_path: Path) -> None:
    cache = filled_cache(tmp_path / "a")
    (path,) = (tmp_path / "a").glob("*/*.json")
    path.rename(path.with_name(f".{path.name}.incomplete"))
    assert cache.read(KEY, ROWS) is None


def test_the_least_recently_used_windows_are_deleted_first(tmp_path: Path) -> None:
    keys = tuple(letter * 64 for letter in "abcd")
    cache = filled_cache(tmp_path / "a", keys)
    paths = sorted((tmp_path / "a").glob("*/*.json"))
    for at, path in enumerate(paths):
        os.utime(path, (at, at))
    assert cache.read(keys[0], ROWS) is not None
    cache.trim(2 * paths[0].stat().st_size)
    assert [cache.has(key) for key in keys] == [True, False, False, True]
    cache.trim(0)
    assert not any(map(cache.has, keys))


def test_the_folder_may_be_deleted_at_any_time(tmp_path: Path) -> None:
    cache = filled_cache(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    assert cache.read(KEY, ROWS) is None
    cache.trim(0)
    cache.add(KEY, ROWS, ANSWERS)
    assert cache.read(KEY, ROWS) == ANSWERS


def test_a_folder_that_is_not_writable_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file", encoding="utf-8")
    with pytest.raises(InputError, match=str(tmp_path / "a")):
        AnswerCache(tmp_path / "a")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_disk_that_is_read_only_is_named_and_stops_no_clean_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    cache = AnswerCache(tmp_path)
    cache.add("key", [], Answers({}, []))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patches:
        patches.setattr(Path, "write_text", refuse)
        with pytest.raises(InputError, match=str(tmp_path)):
            cache.add("other", [], Answers({}, []))
    with monkeypatch.context() as patches:
        patches.setattr(Path, "unlink", refuse)
        cache.trim(0)
    assert cache.has("key")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=str(tmp_path)):
        AnswerCache(tmp_path / "new")


def about(text: str, **images: str) -> Question:
    return Question({name: Variant(text, (path,)) for name, path in images.items()})


def test_a_key_stands_for_policy_questions_and_contents_of_images(tmp_path: Path) -> None:
    first, second = (row["image"] for row in questions(tmp_path))
    copy = str(shutil.copy(first, tmp_path / "copy.png"))
    scan = about("Scan?", real=first, blank=BLANK)
    other = about("Organ?", real=first)
    key = window_key("p", [scan, other], (0, 1))
    same = about("Scan?", real=copy, blank=BLANK)
    assert window_key("p", [other, same], (1, 0)) == key, "the same at other places"
    different = [
        window_key("q", [scan, other], (0, 1)),
        window_key("p", [scan, other], (1, 0)),
        window_key("p", [scan], (0,)),
        window_key("p", [about("Scan!", real=first, blank=BLANK), other], (0, 1)),
        window_key("p", [about("Scan?", real=second, blank=BLANK), other], (0, 1)),
        window_key("p", [about("Scan?", real=first, shuffled=second), other], (0, 1)),
        window_key("p", [about("Scan?", real=first), other], (0, 1)),
    ]
    assert len({key, *different}) == 1 + len(different)
    with pytest.raises(InputError, match=r"no\.png is missing.*the question 'Scan\?'"):
        window_key("p", [about("Scan?", real=str(tmp_path / "no.png"))], (0,))


def test_a_key_tells_orders_of_images_and_the_words_of_each_variant_apart(tmp_path: Path) -> None:
    first, second = (row["image"] for row in questions(tmp_path))

    def key(*variants: tuple[str, str, tuple[str, ...]]) -> str:
        named = {name: Variant(text, images) for name, text, images in variants}
        return window_key("p", [Question(named)], (0,))

    real = ("real", "Context: old Scan?", (first, second))
    keys = [
        key(real),
        key(("real", "Context: old Scan?", (second, first))),
        key(("real", "Context: old Scan?", (first, first))),
        key(("real", "Context: old Scan?", (first,))),
        key(("real", "Context: new Scan?", (first, second))),
        key(real, ("no_context", "Scan?", (first, second))),
        key(real, ("other_context", "Scan?", (first, second))),
        key(real, ("no_context", "scan?", (first, second))),
        key(real, ("no_context", "Scan?", (second, first))),
        key(real, ("blank", "Context: old Scan?", (BLANK,))),
        key(real, ("blank", "Context: old Scan?", (BLANK, BLANK))),
    ]
    assert len(set(keys)) == len(keys)
    # nothing is shifted from one question to the next
    both = [Question({"real": Variant("a", (first,))}), Question({"real": Variant("b", (second,))})]
    one = [Question({"real": Variant("a", (first, second))}), Question({"real": Variant("b", ())})]
    assert window_key("p", both, (0, 1)) != window_key("p", one, (0, 1))
