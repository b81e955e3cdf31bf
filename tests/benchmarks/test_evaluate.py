"""The evaluation benchmark measures what it claims, at a meaninglessly small size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.evaluate import __main__, measure
from benchmarks.evaluate.measure import (
    EMBEDDED,
    Case,
    answer,
    make_questions,
    margin,
    set_up,
    with_ablations,
)
from benchmarks.evaluate.published import answer_as_published
from stages.core.outputs import read_json
from stages.generation.batch_size import MAX_GPU_ROWS
from stages.generation.variants import REAL
from stages.generation.windows import BLANK, Question, Variant, cut_windows


@pytest.mark.parametrize("images", [1, 3])
def test_both_loops_give_the_same_answers_and_rates_follow_from_seconds(
    images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result.json"
    arguments = f"--model {EMBEDDED} --questions 6 --questions-per-image 3 1 --repeats 1".split()
    arguments += ["--images", str(images)]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, "--json", str(path)])
    __main__.main()
    result = read_json(path, "")
    assert [(row["questions"], row["images"]) for row in result["rows"]] == [(6, 2), (6, 6)]
    assert {row["images_per_question"] for row in result["rows"]} == {images}
    assert [row["same_answers"] for row in result["rows"]] == [1.0, 1.0]
    seconds = result["rows"][0]["seconds"]
    assert result["speedup"] == pytest.approx(seconds["published"] / seconds["ours"])
    assert result["questions_per_second"] == pytest.approx(6 / seconds["ours"])
    assert result["published_questions_per_second"] == pytest.approx(6 / seconds["published"])
    assert result["same_answers"] == 1
    assert "speedup" in capsys.readouterr().out


def test_the_published_loop_answers_the_first_questions_only(tmp_path: Path) -> None:
    row = measure.compare(Case("tiny", 6, 1, 5, published_questions=2), tmp_path, 1, lambda _: None)
    assert (row["questions"], row["published_questions"]) == (6, 2)
    seconds, rates = row["seconds"], row["questions_per_second"]
    assert rates["ours"] == pytest.approx(6 / seconds["ours"])
    assert rates["published"] == pytest.approx(2 / seconds["published"])
    assert row["speedup"] == pytest.approx(rates["ours"] / rates["published"])
    assert row["same_answers"] == 1
    assert row["baselines_tower"] == "sdpa"


def test_on_a_gpu_the_questions_fill_two_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    def cases() -> list[Case]:
        monkeypatch.setattr(sys, "argv", ["evaluate", "--model", "tiny", "--questions-per-image=1"])
        return __main__._cases(__main__._arguments())

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (case,) = cases()
    assert (case.images, case.published_questions) == (__main__.GPU_QUESTIONS, 256)
    questions = [Question({REAL: Variant("", (f"{at}.png",))}) for at in range(case.images)]
    windows = cut_windows(questions, MAX_GPU_ROWS)
    assert len(windows) == 2
    assert min(map(len, windows)) > MAX_GPU_ROWS, "a batch, and a small one"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cases()[0].images == 256


def test_differing_answers_are_reported_with_their_logit_margin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_first(*arguments: object, **settings: object) -> list[list[int]]:
        answers = answer_as_published(*arguments, **settings)  # type: ignore[arg-type]
        return [[*answers[0][:2], 7, 8], *answers[1:]] if len(answers) > 2 else answers

    monkeypatch.setattr(measure, "answer_as_published", change_first)
    row = measure.compare(Case(EMBEDDED, 2, 2), tmp_path, 1, lambda _: None)
    assert row["same_answers"] == 0.75
    assert [each["question"] for each in row["differing"]] == [0]
    assert row["differing"][0]["margin"] > 0


def test_random_models_give_answers_of_the_requested_length(tmp_path: Path) -> None:
    bench = set_up(Case("tiny", 1, 2, 5), tmp_path)
    ours = answer(bench, bench.questions, max_new_tokens=5)
    assert {len(ids) for ids in ours.values()} == {5}
    published = answer_as_published(
        bench.untouched, bench.processor, bench.questions, max_new_tokens=5
    )
    assert [list(ours[at, "real"]) for at in range(2)] == published
    assert margin(bench, bench.questions[0], published[0], published[0][:3]) == float("inf")


@pytest.mark.parametrize("images", [1, 3])
def test_ablations_use_black_images_and_those_of_the_next(tmp_path: Path, images: int) -> None:
    case = Case(EMBEDDED, 3, 2, images_per_question=images)
    questions = with_ablations(make_questions(tmp_path, case))
    assert len(questions) == 6
    for at, question in enumerate(questions):
        assert question.variants["blank"].images == (BLANK,) * images
        assert question.variants["shuffled"].images == questions[(at + 2) % 6].own_images


@pytest.mark.parametrize(
    "wrong",
    [
        ["--questions", "0"],
        ["--repeats", "-1"],
        ["--questions-per-image", "0"],
        ["--model", "none"],
        ["--images", "0"],
        ["--images", "65"],
    ],
)
def test_invalid_arguments_are_refused(monkeypatch: pytest.MonkeyPatch, wrong: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *wrong])
    with pytest.raises(SystemExit, match="2"):
        __main__.main()
