"""The evaluation benchmark measures what it claims, at a meaninglessly small size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.evaluate import __main__, measure
from benchmarks.evaluate.measure import (
    EMBEDDED,
    Case,
    answer,
    margin,
    questions,
    set_up,
    with_ablations,
)
from benchmarks.evaluate.published import answer_as_published
from stages.core.outputs import read_json
from stages.generation.generate import BLANK


def test_both_loops_give_the_same_answers_and_the_ratio_is_that_of_their_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    words = [
        "--model",
        EMBEDDED,
        "--questions",
        "6",
        "--questions-per-image",
        "3",
        "1",
        "--repeats",
        "1",
        "--json",
        str(path),
    ]
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    __main__.main()
    made = read_json(path, "")
    assert [(row["questions"], row["images"], row["same_answers"]) for row in made["rows"]] == [
        (6, 2, 1.0),
        (6, 6, 1.0),
    ]
    first = made["rows"][0]
    assert made["speedup"] == pytest.approx(
        first["seconds"]["published"] / first["seconds"]["ours"]
    )
    assert made["questions_per_second"] == pytest.approx(6 / first["seconds"]["ours"])
    assert made["published_questions_per_second"] == pytest.approx(
        6 / first["seconds"]["published"]
    )
    assert made["same_answers"] == 1
    assert "speedup" in capsys.readouterr().out


def test_answers_that_differ_are_told_with_how_near_the_tokens_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*arguments: object, **settings: object) -> list[list[int]]:
        right = answer_as_published(*arguments, **settings)  # type: ignore[arg-type]
        return [[*right[0][:2], 7, 8], *right[1:]] if len(right) > 2 else right

    monkeypatch.setattr(measure, "answer_as_published", other)
    row = measure.compare(Case(EMBEDDED, 2, 2), tmp_path, 1, lambda _: None)
    assert row["same_answers"] == 0.75
    assert [each["question"] for each in row["differing"]] == [0]
    assert row["differing"][0]["margin"] > 0


def test_random_models_answer_as_long_as_they_are_told(tmp_path: Path) -> None:
    case = Case("tiny", 1, 2, 5)
    bench = set_up(case, tmp_path)
    ours = answer(bench, bench.asked, most=case.most)
    assert {len(ids) for ids in ours.values()} == {5}
    published = answer_as_published(bench.untouched, bench.processor, bench.asked, most=case.most)
    assert [list(ours[place, "real"]) for place in range(2)] == published
    assert margin(bench, bench.asked[0], published[0], [*published[0][:3]]) == float("inf")


def test_ablations_ask_of_a_black_image_and_of_the_next(tmp_path: Path) -> None:
    asked = with_ablations(questions(tmp_path, Case(EMBEDDED, 3, 2)))
    assert len(asked) == 6
    for place, each in enumerate(asked):
        assert each.images["blank"] == BLANK
        assert each.images["shuffled"] == asked[(place + 2) % 6].own_image


@pytest.mark.parametrize(
    "wrong",
    [
        ["--questions", "0"],
        ["--repeats", "-1"],
        ["--questions-per-image", "0"],
        ["--model", "none"],
    ],
)
def test_arguments_that_mean_nothing_are_refused(
    monkeypatch: pytest.MonkeyPatch, wrong: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *wrong])
    with pytest.raises(SystemExit, match="2"):
        __main__.main()
