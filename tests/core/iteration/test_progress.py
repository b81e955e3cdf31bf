"""Progress goes to standard error, and no item is lost on the way."""

import pytest

from stages.core.iteration.progress import Progress, counted, progress_reporter, read_progress


def test_items_pass_through_unchanged_and_output_stays_clean(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(counted(iter("abc"), 3, "ct", "image")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""


def test_a_line_says_where_the_work_is_and_how_long_it_will_take(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = progress_reporter("ct", 10, "step", every=0)
    report(5, "reward 1.20, ")
    assert capsys.readouterr().err == "ct: step 5 of 10, reward 1.20, 0 s to go\n"


def test_lines_come_no_more_often_than_asked(capsys: pytest.CaptureFixture[str]) -> None:
    report = progress_reporter("ct", 10, "step", every=60)
    for count in range(1, 10):
        report(count, "")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("note", ["", "reward 1.20, ", "loss nan, grad 3, "])
def test_a_printed_line_can_be_read_again(note: str, capsys: pytest.CaptureFixture[str]) -> None:
    progress_reporter("sft-ct", 10, "step", every=0)(5, note)
    assert read_progress(capsys.readouterr().err) == Progress(
        "sft-ct", "step", 5, 10, note.removesuffix(", "), 0
    )


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Running stage 'train@ct':",
        "ct: 180 steps on 740 questions -> models/ct",
        "ct: step 5 of ten, 3 s to go",
    ],
)
def test_other_lines_are_no_progress(line: str) -> None:
    assert read_progress(line) is None
