"""Sheets of questions and labels about several images, by row and by column."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from stages.core.params import load_params
from stages.corpus.archives.source import open_corpus
from stages.corpus.formats.convert import detect
from stages.corpus.formats.fix import fix_sheet
from stages.corpus.records.reading import find_images, read_questions
from tests.conftest import ROOT
from tests.corpus.formats.sources import (
    ROW,
    digest,
    image_paths,
    records,
    refusals,
    run,
    write_book,
    write_csv,
    write_images,
)
from tests.omnimedvqa import MODALITIES, TAXONOMY

AB = ["Images/scans/a.png", "Images/scans/b.png"]
SHEET = {key: value for key, value in ROW.items() if key != "image"}


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    write_images(tmp_path / "ward", *(f"scans/{name}.png" for name in "abc"))
    return tmp_path / "ward"


def row(**changes: Any) -> dict[str, Any]:
    return {"image": "", "images": "", "slices": ""} | SHEET | changes


def test_a_cell_with_several_images_becomes_a_list(ward: Path, tmp_path: Path) -> None:
    rows = [
        row(images="scans/a.png | ./scans/b.png"),
        row(images='["Images/scans/b.png", "scans/a.png"]'),
        row(images="scans/c.png"),
        row(image="scans/a.png", slices="2|5"),
    ]
    conversion = run(write_csv(ward / "w.csv", rows), tmp_path / "out")
    first, turned, listed, volume = records(tmp_path / "out")
    assert first == {
        "dataset": "w",
        "question_id": first["question_id"],
        "question_type": "Disease Diagnosis",
        "question": "What is seen, if anything?",
        "gt_answer": "Nodule",
        "images": AB,
        "option_A": "Cyst, simple",
        "option_B": "Nodule",
        "modality_type": MODALITIES["ct"],
    }
    assert turned["images"] == AB[::-1]
    assert (listed["image_path"], "images" in listed) == ("Images/scans/c.png", False)
    assert (volume["image_path"], volume["slices"]) == (AB[0], [2, 5])
    assert (conversion.questions, conversion.images) == (4, 3)


def test_json_lines_and_workbooks_hold_the_same(ward: Path, tmp_path: Path) -> None:
    lists = [
        row(images=["scans/a.png", "scans/b.png"]),
        row(image="scans/c.png", slices=[3, 1]),
        row(image="scans/c.png", slices=7),
    ]
    lines = ward / "q.jsonl"
    lines.write_text("\n".join(map(json.dumps, lists)))
    texts = [
        row(images="scans/a.png|scans/b.png"),
        row(image="scans/c.png", slices="3|1"),
        row(image="scans/c.png", slices=7),
    ]
    found = []
    for number, sheet in enumerate([lines, write_book(ward / "q.xlsx", {"Q": texts})]):
        assert not run(sheet, tmp_path / f"out{number}").refusals
        found.append(records(tmp_path / f"out{number}"))
    assert found[0] == found[1]
    assert [record.get("slices") for record in found[0]] == [None, [3, 1], [7]]


def test_numbered_columns_are_read_in_the_order_of_their_numbers(
    ward: Path, tmp_path: Path
) -> None:
    columns = {"Image 10": "scans/c.png", "image_2": "scans/b.png", "image_1": "scans/a.png"}
    question = "Which of <image 10> and <image 2> is older?"
    rows = [
        columns | SHEET | {"question": question, "options": "<image 2>|<image 10>", "answer": "B"},
        columns | SHEET | {"image_1": "", "question": question},
        columns | SHEET | {"image_1": "", "image_2": "", "question": "Is it in <image 10>?"},
    ]
    write_csv(ward / "w.csv", rows)
    assert detect(ward) == "sheet"
    run(ward, tmp_path / "out")
    three, two, one = records(tmp_path / "out")
    assert three["images"] == [*AB, "Images/scans/c.png"]
    assert three["question"] == "Which of Picture 3 and Picture 2 is older?"
    assert (three["option_A"], three["gt_answer"]) == ("Picture 2", "Picture 3")
    assert two["images"] == [AB[1], "Images/scans/c.png"]
    assert two["question"] == "Which of Picture 2 and Picture 1 is older?"
    assert (one["image_path"], one["question"]) == ("Images/scans/c.png", "Is it in the image?")


def test_the_pipeline_reads_what_is_written(ward: Path, tmp_path: Path) -> None:
    write_images(ward, "series/1.dcm", "series/2.dcm")
    rows = [row(images="scans/a.png|series"), row(image="series", slices="1")]
    run(write_csv(ward / "w.csv", rows), tmp_path / "out")
    limits = load_params(ROOT / "params.yaml").corpus.limits
    with open_corpus(tmp_path / "out", limits, tmp_path / "scratch") as corpus:
        reading, files = find_images(corpus, read_questions(corpus, TAXONOMY))
    assert not reading.rows
    assert {record.image_paths: record.slices for record in reading.records} == {
        (AB[0], "Images/series"): (),
        ("Images/series",): (1,),
    }
    assert files["Images/series"] == ["Images/series/1.dcm", "Images/series/2.dcm"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"images": "[]"}, "0 images, a question has 1 to 64"),
        ({"images": "|".join(["scans/a.png"] * 65)}, "65 images, a question has 1 to 64"),
        ({"images": "scans/a.png|nowhere.png"}, "image 2 of images: the image is not in"),
        ({"images": "scans/A.png|scans/b.png"}, "image 1 of images: the image is not in"),
        ({"images": "scans/a.png|../ward/scans/b.png"}, "out of its folder"),
        ({"images": "scans/a.png||scans/b.png"}, "image 2 of images: the image's path is an empty"),
        ({"images": "scans/a.png|scans/b.png|scans/a.png"}, "image 3 of images is listed before"),
        ({"images": "['scans/a.png', 'scans/b.png']"}, "Python list"),
        ({"images": '["scans/a.png", 3]'}, "not only of texts"),
        ({"images": "scans/a.png|scans/b.png", "image": "scans/a.png"}, "images beside it"),
        ({"images": "scans/a.png|scans/b.png", "slices": "1"}, "slices of 2 images"),
        ({"image": "scans/a.png", "slices": "0"}, "counted from 1"),
        ({"image": "scans/a.png", "slices": "1-3"}, "slices are whole numbers"),
        ({"image": "scans/a.png", "slices": "1.0"}, 'astype("Int64") first'),
        ({"image": "scans/a.png", "slices": "3.0|7.0"}, 'astype("Int64") first'),
        ({}, "empty name"),
        ({"image": "scans/a.png", "question": "See <image 2>?"}, "image that the question lacks"),
        (
            {"images": "scans/a.png|scans/b.png", "options": "<image 1>|<image 3>", "answer": "A"},
            "'<image 3>': a mark in the text names an image that the question lacks: it has 2",
        ),
    ],
)
def test_a_row_without_usable_images_is_refused_alone(
    ward: Path, tmp_path: Path, changes: dict[str, str], what: str
) -> None:
    good = row(images="scans/b.png|scans/c.png")
    (text,) = refusals(run(write_csv(ward / "w.csv", [good, row(**changes)]), tmp_path / "out"))
    assert text.startswith("w.csv, line 3: ")
    assert what in text
    images = {name for name in digest(tmp_path / "out") if name.endswith(".png")}
    assert images == {"Images/scans/b.png", "Images/scans/c.png"}


def test_a_missing_image_of_numbered_columns_is_named_by_its_column(
    ward: Path, tmp_path: Path
) -> None:
    rows = [
        {"image_1": "scans/a.png", "image_3": third} | SHEET
        for third in ("scans/b.png", "scans/B.png")
    ]
    (text,) = refusals(run(write_csv(ward / "w.csv", rows), tmp_path / "out"))
    assert "'scans/B.png': image_3: the image is not in" in text
    assert "did you mean 'scans/b.png'" in text


def test_answers_contradict_only_about_the_same_images_in_the_same_order(
    ward: Path, tmp_path: Path
) -> None:
    rows = [
        row(images="scans/a.png|scans/b.png"),
        row(images="scans/b.png|scans/a.png", answer="A"),
        row(images="scans/a.png|scans/c.png"),
        row(images="scans/a.png|scans/c.png", answer="A"),
        row(image="scans/a.png", slices="1"),
        row(image="scans/a.png", slices="2", answer="A"),
    ]
    conversion = run(write_csv(ward / "w.csv", rows), tmp_path / "out")
    assert [str(each.location) for each in conversion.refusals] == [
        "w.csv, line 4",
        "w.csv, line 5",
    ]
    assert "about the same images has the answer" in refusals(conversion)[0]
    assert not (tmp_path / "out/Images/scans/c.png").exists()


def test_a_volume_and_its_slices_may_both_be_named(ward: Path, tmp_path: Path) -> None:
    write_images(ward, *(f"series/{number}.png" for number in (1, 2, 10)))
    single = row(image="series/2.png", question="Which slice?")
    for name, rows in {
        "volume first": [row(image="series"), single],
        "slice first": [single, row(image="series")],
    }.items():
        assert not run(write_csv(ward / "w.csv", rows), tmp_path / name).refusals
        names = [file for file in digest(tmp_path / name) if file.endswith(".png")]
        assert names == [f"Images/series/{number}.png" for number in (1, 10, 2)]


def test_a_volume_may_lie_in_the_folder_of_another(ward: Path, tmp_path: Path) -> None:
    write_images(ward, "study/1.dcm", "study/axial/1.dcm", "study/axial/note.txt")
    rows = [row(image="study"), row(image="study/axial"), row(images="study|study/axial")]
    conversion = run(write_csv(ward / "w.csv", rows), tmp_path / "out")
    assert (conversion.questions, conversion.images) == (3, 2)
    names = {name for name in digest(tmp_path / "out") if name.startswith("Images/")}
    assert names == {f"Images/study/{name}" for name in ("1.dcm", "axial/1.dcm", "axial/note.txt")}


def test_the_slices_of_a_refused_volume_are_removed_but_for_those_that_are_used(
    ward: Path, tmp_path: Path
) -> None:
    write_images(ward, "series/1.png", "series/2.png", "other/1.png")
    rows = [
        row(image="series"),
        row(image="series", answer="A"),
        row(image="series/2.png", question="Which slice?"),
        row(image="other"),
        row(image="other", answer="A"),
    ]
    assert len(run(write_csv(ward / "w.csv", rows), tmp_path / "out").refusals) == 4
    assert [path.name for path in (tmp_path / "out/Images").iterdir()] == ["series"]
    assert [path.name for path in (tmp_path / "out/Images/series").iterdir()] == ["2.png"]


def test_a_folder_with_a_slash_at_its_end_is_refused_for_that(ward: Path, tmp_path: Path) -> None:
    write_images(ward, "series/1.png")
    rows = [row(image="series/"), row(image="./Images/series/"), row(image="scans/a.png")]
    for text in refusals(run(write_csv(ward / "w.csv", rows), tmp_path / "out")):
        assert "ends with /" in text


def test_a_slice_that_is_a_link_out_of_the_folder_is_refused(ward: Path, tmp_path: Path) -> None:
    write_images(tmp_path, "private/1.png")
    write_images(ward, "series/1.png")
    (ward / "series/2.png").symlink_to(tmp_path / "private/1.png")
    rows = [row(image="series"), row(image="scans/a.png")]
    (text,) = refusals(run(write_csv(ward / "w.csv", rows), tmp_path / "out"))
    assert "'series': a link that leads out" in text


def test_labels_may_be_of_several_images(ward: Path, tmp_path: Path) -> None:
    rows = [
        {"images": "scans/a.png|scans/b.png", "label": "normal", "modality": "ct", "slices": ""},
        {"images": "scans/b.png|scans/c.png", "label": "nodule", "modality": "ct", "slices": ""},
        {"images": "scans/c.png", "label": "normal", "modality": "ct", "slices": ""},
        {"images": "scans/c.png", "label": "nodule", "modality": "ct", "slices": "3"},
        {"images": "scans/a.png|scans/b.png", "label": "nodule", "modality": "mri", "slices": "3"},
        {"images": "scans/c.png|scans/b.png", "label": "cyst", "modality": "x-ray", "slices": ""},
        {"images": "scans/c.png|scans/b.png", "label": "rest", "modality": "x-ray", "slices": ""},
    ]
    sheet = write_csv(ward / "w.csv", rows)
    assert detect(sheet) == "label-sheet"
    conversion = run(sheet, tmp_path / "out", accept_blind=True)
    found = {tuple(image_paths(each)): each for each in records(tmp_path / "out")}
    assert found[tuple(AB)]["question"] == "Which label do these images show?"
    assert found[tuple(AB)]["gt_answer"] == "normal"
    assert found["Images/scans/c.png",]["slices"] == [3]
    assert found["Images/scans/c.png",]["question"] == "Which label does this image show?"
    slices, *contradictions = refusals(conversion)
    assert "slices of 2 images" in slices
    assert all("the images 'scans/c.png', 'scans/b.png' have" in text for text in contradictions)
    assert (len(contradictions), conversion.questions) == (2, 4)


@pytest.mark.parametrize(
    ("changes", "fixed"),
    [
        ({"images": "scans\\a.png|Scans/B.PNG"}, {"images": "scans/a.png|scans/b.png"}),
        ({"images": "['scans/a.png', 'scans/b.png']"}, {"images": "scans/a.png|scans/b.png"}),
        ({"images": '["scans/a.png", "scans/b.jpg"]'}, {"images": "scans/a.png|scans/b.png"}),
        ({"image_1": "scans/A.png", "image_2": "scans\\b.png"}, {"image_2": "scans/b.png"}),
        ({"images": '["scans/a.png", "scans/b.png"]'}, {}),
        ({"image": "scans/c.jpeg"}, {"image": "scans/c.png"}),
    ],
)
def test_paths_of_several_images_are_corrected(
    ward: Path, changes: dict[str, str], fixed: dict[str, str]
) -> None:
    written = {"image": "", "images": "", "image_1": "", "image_2": ""} | SHEET | changes
    listed = fix_sheet(write_csv(ward / "w.csv", [written]), ward / "fixed.csv")
    with (ward / "fixed.csv").open(encoding="utf-8", newline="") as handle:
        (after,) = csv.DictReader(handle)
    expected = written | fixed
    if "image_1" in changes:
        expected |= {"image_1": "scans/a.png"}
    assert after == expected
    assert all(each.is_fixed for each in listed)
    assert not fix_sheet(ward / "fixed.csv", ward / "again.csv")


@pytest.mark.parametrize(
    ("changes", "column", "why"),
    [
        ({"images": "scans/a.png|nowhere.png"}, "images", "image 2 of images: the image is not in"),
        ({"images": "scans/a.png|Scans/A.png"}, "images", "listed before"),
        ({"images": "[]"}, "images", "0 images"),
        ({"images": "[scans/a.png]"}, "images", "not a list of images"),
        ({"images": "scans/a.png", "image": "scans/a.png"}, "images", "images beside it"),
        ({}, "image", "empty name"),
    ],
)
def test_lists_that_cannot_be_corrected_stay_and_are_listed(
    ward: Path, changes: dict[str, str], column: str, why: str
) -> None:
    (change,) = fix_sheet(write_csv(ward / "w.csv", [row(**changes)]), ward / "fixed.csv")
    assert (change.column, change.is_fixed) == (column, False)
    assert why in change.why
    assert (ward / "fixed.csv").read_text() == (ward / "w.csv").read_text().replace("\r\n", "\n")
