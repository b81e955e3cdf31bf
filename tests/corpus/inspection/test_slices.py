"""The check says which slices of volumes are shown, and names those that do not exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


def lines(examples: list[dict[str, Any]]) -> list[tuple[str, list[int], int]]:
    """(line, slices, number of slices) of each example."""
    return [
        (each["where"].split(" (")[0], each["slices"], each["slice_count"]) for each in examples
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
    assert lines(found["selected"]["examples"]) == [("ward.csv, line 2", expected, 9)]
    assert found["named"]["questions"] == found["outside"]["questions"] == 0


def test_the_slice_that_stands_for_a_volume_is_that_of_the_settings(ward: Path) -> None:
    change_params("dicom", frame="first")
    found = checked(ward, row("four.dcm"), code=0)["slices"]
    assert lines(found["selected"]["examples"]) == [("ward.csv, line 2", [1], 4)]


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
        ("ward.csv, line 2", [9, 1], 9),
        ("ward.csv, line 7", [4], 4),
    ]
    assert lines(found["outside"]["examples"]) == [
        ("ward.csv, line 3", [10, 12], 9),
        ("ward.csv, line 4", [5], 4),
    ]
    assert lines(found["selected"]["examples"]) == [("ward.csv, line 6", [5], 9)]
    assert found["selected"]["questions"] == 1


def test_records_with_slices_outside_are_printed(
    ward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("four.dcm", str(number)) for number in (2, 5, 6, 7)]
    found = checked(ward, *rows, code=1, options=("--examples", "2"))["slices"]["outside"]
    assert (found["questions"], len(found["examples"])) == (3, 2)
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    at = next(index for index, line in enumerate(printed) if line.endswith("3 question(s)"))
    assert printed[at + 1].startswith("- slice 5 of 4 of Images/four.dcm (ward.csv, line 3")
    assert printed[at + 3] == "- and 1 more"


def test_without_volumes_or_without_decoding_nothing_is_said(
    ward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = checked(ward, row("a.png"), code=0)["slices"]
    assert found["selected"]["questions"] == 0
    assert checked(ward, row("nine.dcm"), code=0, options=("--no-images",))["slices"] is None
    assert "Slices of volumes" not in capsys.readouterr().out
