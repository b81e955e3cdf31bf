"""The check says which slices of volumes are shown, and names those that do not exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.corpus.quarantine.advice import advise
from stages.corpus.quarantine.reasons import Reason
from tests.commands import med_r1
from tests.conftest import change_params, speckled
from tests.dicoms import file

HEADER = "images,slices,question,options,answer,modality,type\n"


def clip(seed: int, frames: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, 16, 16), dtype=np.uint8)
    return file(pixels, Modality="MR")


def row(images: str, slices: str = "") -> str:
    return f"{images},{slices},Which of {images} {slices}?,Cyst|Nodule,A,mri,disease-diagnosis\n"


@pytest.fixture
def ward(project: Path) -> Path:
    folder = project / "ward"
    folder.mkdir()
    (folder / "nine.dcm").write_bytes(clip(1, 9))
    (folder / "four.dcm").write_bytes(clip(2, 4))
    (folder / "a.png").write_bytes(speckled(3))
    return folder


def checked(ward: Path, *rows: str, code: int, options: tuple[str, ...] = ()) -> dict[str, Any]:
    (ward / "ward.csv").write_text(HEADER + "".join(rows), encoding="utf-8")
    assert med_r1("check", ward, "--json", ward.parent / "found.json", *options) == code
    report: dict[str, Any] = json.loads((ward.parent / "found.json").read_text(encoding="utf-8"))
    return report


def lines(examples: list[dict[str, Any]]) -> list[tuple[str, list[tuple[list[int], int]]]]:
    """(line, (slices, number of slices) of each volume) of each example."""
    return [
        (
            each["where"].split(" (")[0],
            [(volume["slices"], volume["slice_count"]) for volume in each["volumes"]],
        )
        for each in examples
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"frames": 1}, [5]),
        ({"frames": 3}, [2, 5, 8]),
        ({"frames": 3, "selection": "center"}, [4, 5, 6]),
        ({"frames": 1, "selection": "all"}, [*range(1, 10)]),
    ],
)
def test_the_selected_slices_are_those_of_the_settings(
    ward: Path, settings: dict[str, Any], expected: list[int]
) -> None:
    change_params("volume", **settings)
    found = checked(ward, row("nine.dcm"), row("a.png"), code=0)["slices"]
    assert found["settings"].items() >= settings.items()
    assert found["selected"]["questions"] == 1
    assert lines(found["selected"]["examples"]) == [("ward.csv, line 2", [(expected, 9)])]
    assert found["named"]["questions"] == found["outside"]["questions"] == 0


def test_the_slice_that_stands_for_a_volume_is_that_of_the_settings(ward: Path) -> None:
    change_params("dicom", frame="first")
    found = checked(ward, row("four.dcm"), code=0)["slices"]
    assert lines(found["selected"]["examples"]) == [("ward.csv, line 2", [([1], 4)])]


def test_questions_are_counted_once_by_the_kind_of_their_slices(ward: Path) -> None:
    found = checked(
        ward,
        row("nine.dcm", "9|1"),
        row("nine.dcm", "3|10|12"),
        row("four.dcm", "5"),
        row("a.png", "1"),
        row("a.png|nine.dcm|four.dcm"),
        row("four.dcm", "4"),
        code=1,
    )["slices"]
    assert lines(found["named"]["examples"]) == [
        ("ward.csv, line 2", [([9, 1], 9)]),
        ("ward.csv, line 7", [([4], 4)]),
    ]
    assert lines(found["outside"]["examples"]) == [
        ("ward.csv, line 3", [([10, 12], 9)]),
        ("ward.csv, line 4", [([5], 4)]),
    ]
    assert lines(found["selected"]["examples"]) == [("ward.csv, line 6", [([5], 9), ([3], 4)])]
    assert found["selected"]["questions"] == 1


def test_records_with_slices_outside_are_printed(
    ward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("four.dcm", str(number)) for number in (2, 5, 6, 7)]
    found = checked(ward, *rows, code=1, options=("--examples", "2"))["slices"]["outside"]
    assert (found["questions"], len(found["examples"])) == (3, 2)
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    at = next(index for index, line in enumerate(printed) if line.endswith("3 question(s)"))
    assert printed[at + 1].startswith("- ward.csv, line 3 (")
    assert printed[at + 1].endswith(": Images/four.dcm, slice 5 (of 4)")
    assert printed[at + 3] == "- and 1 more"


def test_without_volumes_or_without_decoding_nothing_is_said(
    ward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = checked(ward, row("a.png"), code=0)["slices"]
    assert found["selected"]["questions"] == 0
    assert checked(ward, row("nine.dcm"), code=0, options=("--no-images",))["slices"] is None
    assert "Slices of volumes" not in capsys.readouterr().out


def test_a_line_has_the_slices_of_each_volume_of_a_question(
    ward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_params("volume", frames=2)
    checked(ward, row("four.dcm|a.png|nine.dcm"), code=0)
    assert ": Images/four.dcm, slices 2, 4 (of 4); Images/nine.dcm, slices 3, 7 (of 9)\n" in (
        capsys.readouterr().out
    )


def test_a_folder_of_folders_is_missing_and_the_one_of_the_slices_is_named(ward: Path) -> None:
    (ward / "patient" / "series").mkdir(parents=True)
    (ward / "patient" / "series" / "1.dcm").write_bytes(clip(4, 1))
    (ward / "empty").mkdir()
    found = checked(ward, row("patient"), row("empty"), row("nine.dcm|patient"), code=2)
    (finding,) = [each for each in found["findings"] if each["level"] == "refused"]
    assert finding["kind"] == advise(Reason.IMAGE_MISSING).kind
    folder, empty, listed = finding["examples"]
    assert folder["what"] == listed["what"] == "Images/patient"
    assert folder["why"].endswith("Images/patient/series")
    assert "Images" not in empty["why"]


@pytest.mark.parametrize("written", ["series/", "./series/", "Images/series/"])
def test_a_folder_with_a_slash_at_its_end_is_refused_for_that(ward: Path, written: str) -> None:
    found = checked(ward, row(written), row("nine.dcm"), code=1)
    (finding,) = [each for each in found["findings"] if each["level"] == "refused"]
    assert finding["kind"] == advise(Reason.IMAGE_PATH).kind
    (example,) = finding["examples"]
    assert example["what"] == "Images/series/"
    assert "ends with /" in example["why"]


def test_more_examples_are_offered_where_some_are_left_out(
    ward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_params("data_tests", upscaled_images={"severity": "off", "limit": 0.5})
    rows = [row("nine.dcm", str(number)) for number in range(1, 5)]
    checked(ward, *rows, code=0, options=("--examples", "20"))
    assert "--examples N" not in capsys.readouterr().out
    checked(ward, *rows, code=0, options=("--examples", "3"))
    assert "Up to 3 examples" in capsys.readouterr().out
