"""Published forms with several images of a question: Parquet, VLMEvalKit's TSV, Med-R1's JSON."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.errors import InputError
from stages.corpus.dataset.problems import format_problem, format_solution
from stages.corpus.formats.convert import detect
from tests.corpus.formats.sources import (
    digest,
    image_paths,
    png,
    records,
    refusals,
    run,
    write_images,
)

WORDS = {"modality": "CT", "question_type": "Disease Diagnosis"}


def shown(corpus: Path) -> list[list[bytes]]:
    """The images of each question, as bytes in order."""
    return [
        [(corpus / path).read_bytes() for path in image_paths(record)] for record in records(corpus)
    ]


def embedded(number: int) -> dict[str, Any]:
    return {"bytes": png(number), "path": f"{number}.png"}


def row(**changes: Any) -> dict[str, Any]:
    return {"question": "What is seen?", "options": ["Cyst", "Nodule"], "answer": "B"} | changes


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_lists_of_images_written_by_datasets_are_read(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "question": datasets.Value("string"),
            "options": datasets.List(datasets.Value("string")),
            "answer": datasets.Value("string"),
        }
    )
    rows = [row(images=[embedded(n) for n in numbers]) for numbers in ([1, 2], [2, 1], [3], [])]
    data = datasets.Dataset.from_list(rows, features=features)
    (tmp_path / "d").mkdir()
    data.to_parquet(tmp_path / "d/train.parquet")
    conversion = run(tmp_path / "d", tmp_path / "out", **WORDS)
    assert shown(tmp_path / "out") == [[png(1), png(2)], [png(2), png(1)], [png(3)]]
    assert [("images" in each) for each in records(tmp_path / "out")] == [True, True, False]
    assert conversion.images == 3
    (text,) = refusals(conversion)
    assert text.startswith("train.parquet, row 4: ")
    assert "no image" in text


def test_lists_may_hold_paths_and_slices(tmp_path: Path) -> None:
    write_images(tmp_path / "d", "scans/a.png", "scans/b.png", "series/1.dcm")
    rows = [
        row(images=["scans/a.png", "scans/b.png"], slices=None),
        row(images=["series"], slices=[4, 2]),
    ]
    write(tmp_path / "d/a.parquet", rows)
    run(tmp_path / "d", tmp_path / "out", **WORDS)
    two, volume = records(tmp_path / "out")
    assert two["images"] == ["Images/scans/a.png", "Images/scans/b.png"]
    assert (volume["image_path"], volume["slices"]) == ("Images/series", [4, 2])
    texts = [row(images="scans/a.png|scans/b.png"), row(images="['scans/b.png', 'scans/a.png']")]
    write(tmp_path / "d/a.parquet", texts)
    run(tmp_path / "d", tmp_path / "texts", **WORDS)
    assert [each["images"] for each in records(tmp_path / "texts")] == [
        two["images"],
        two["images"][::-1],
    ]


def test_a_row_may_fill_one_of_the_columns_image_and_images(tmp_path: Path) -> None:
    rows = [
        row(image=embedded(1), images=None),
        row(image=embedded(2), images=[]),
        row(image={"bytes": None, "path": None}, images=[embedded(1), embedded(2)]),
        row(image=embedded(1), images=[embedded(1), embedded(2)]),
        row(image=None, images=None),
    ]
    conversion = run(write(tmp_path / "a.parquet", rows), tmp_path / "out", **WORDS)
    assert shown(tmp_path / "out") == [[png(1)], [png(2)], [png(1), png(2)]]
    both, none = refusals(conversion)
    assert both.startswith("a.parquet, row 4: 'image, images': ")
    assert "beside it" in both
    assert none.startswith("a.parquet, row 5: ")


def test_numbered_columns_and_marks_are_read_as_mmmu_has_them(tmp_path: Path) -> None:
    """Options as a list in a text, seven columns of which most are empty."""
    columns = {f"image_{number}": None for number in (7, 1, 2, 3)}
    rows = [
        row(
            **columns | {"image_1": embedded(1), "image_2": embedded(2), "image_7": embedded(7)},
            question="<image 1> Which is like it?",
            options="['<image 2>', \"<image 7>\"]",
        ),
        row(
            **columns | {"image_1": embedded(3)},
            question="What is in <image 1>?",
            options="['A cyst', 'A nodule']",
        ),
        row(
            **columns | {"image_1": embedded(4)}, question="And in <image 2>?", options="['x','y']"
        ),
        row(**columns | {"image_1": embedded(5)}, options="[]", answer="free text"),
    ]
    conversion = run(write(tmp_path / "a.parquet", rows), tmp_path / "out", **WORDS)
    assert shown(tmp_path / "out") == [[png(1), png(2), png(7)], [png(3)]]
    several, one = records(tmp_path / "out")
    assert several["question"] == "Picture 1 Which is like it?"
    assert [several[name] for name in ("option_A", "option_B")] == ["Picture 2", "Picture 3"]
    assert several["gt_answer"] == "Picture 3"
    assert (one["question"], one["gt_answer"]) == ("What is in the image?", "A nodule")
    mark, free = refusals(conversion)
    assert "row 3: '<image 2>'" in mark
    assert "fewer than two options" in free


@pytest.mark.parametrize(
    ("images", "what"),
    [
        ([embedded(n) for n in range(65)], "65 images, a question has 1 to 64"),
        ([embedded(1), None], "image 2 of images: the row has no image"),
        ([embedded(1), {"bytes": b"text", "path": "a"}], "image 2 of images: the image's bytes"),
        ([embedded(1), {"bytes": b"", "path": "a"}], "image 2 of images: the image has no bytes"),
        ([embedded(1), {"bytes": None, "path": "9.png"}], "image 2 of images: the image is not in"),
        ([embedded(1), embedded(2), embedded(1)], "image 3 of images is listed before"),
    ],
)
def test_a_list_with_an_unusable_image_is_refused_by_row(
    tmp_path: Path, images: list[Any], what: str
) -> None:
    rows = [row(images=[embedded(70), embedded(71)]), row(images=images)]
    (text,) = refusals(run(write(tmp_path / "a.parquet", rows), tmp_path / "out", **WORDS))
    assert text.startswith("a.parquet, row 2: ")
    assert what in text
    assert len([name for name in digest(tmp_path / "out") if name.endswith(".png")]) == 2


def test_columns_named_frames_that_hold_no_slices_are_not_read(tmp_path: Path) -> None:
    for number, frames in enumerate([[embedded(3)], 120, 2.5, {"bytes": b"x"}]):
        path = write(tmp_path / f"{number}.parquet", [row(image=embedded(1), frames=frames)])
        run(path, tmp_path / f"out{number}", **WORDS)
        (record,) = records(tmp_path / f"out{number}")
        assert "slices" not in record
    path = write(tmp_path / "no.parquet", [row(frames=[embedded(1)])])
    with pytest.raises(InputError, match="lacks the column image"):
        run(path, tmp_path / "no", **WORDS)


def encoded(number: int) -> str:
    return base64.b64encode(png(number)).decode()


def tsv(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        columns = {"index": "", "image": "", "question": "What is seen?"} | {
            "A": "Cyst",
            "B": "Nodule",
            "answer": "B",
        }
        rows = tuple(columns | {"index": str(n)} | each for n, each in enumerate(rows, start=1))
        names = list(dict.fromkeys(name for each in rows for name in each))
        writer = csv.DictWriter(handle, names, delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_cells_of_a_tsv_may_list_images_as_python_or_json_does(tmp_path: Path) -> None:
    path = tsv(
        tmp_path / "Bench.tsv",
        {"image": "3", "question": "Which?"},
        {"image": str([encoded(1), encoded(2)])},
        {"image": json.dumps([encoded(2), encoded(1)]), "question": "<image 2> or <image 1>?"},
        {"image": str([encoded(4)])},
        {"image": "2", "question": "Else?"},
    )
    assert detect(path) == "vlmevalkit"
    run(path, tmp_path / "out", **WORDS)
    found = {each["question_id"]: each for each in records(tmp_path / "out")}
    assert found["Bench-2"]["images"] == found["Bench-5"]["images"]
    assert found["Bench-1"]["images"] == found["Bench-2"]["images"][::-1]
    assert found["Bench-3"]["question"] == "Picture 2 or Picture 1?"
    content = [(tmp_path / "out" / path).read_bytes() for path in image_paths(found["Bench-2"])]
    assert content == [png(1), png(2)]
    assert "images" not in found["Bench-4"]


def test_lists_of_a_tsv_may_hold_paths(tmp_path: Path) -> None:
    write_images(tmp_path / "d", "a.png", "it's, b.png")
    path = tsv(
        tmp_path / "d/B.tsv",
        {"image_path": str(["a.png", "it's, b.png"])},
        {"image": "1", "question": "Else?"},
        {"image": str(["a.png", encoded(7)]), "image_path": "['ignored', 'names']"},
    )
    run(path, tmp_path / "out", **WORDS)
    first, second, mixed = sorted(records(tmp_path / "out"), key=lambda each: each["question_id"])
    assert first["images"] == ["Images/a.png", "Images/it's, b.png"] == second["images"]
    assert mixed["images"][0] == "Images/a.png"
    assert (tmp_path / "out" / mixed["images"][1]).read_bytes() == png(7)


@pytest.mark.parametrize(
    ("image", "what"),
    [
        ("[]", "0 images, a question has 1 to 64"),
        (str([encoded(n) for n in range(65)]), "65 images"),
        (str([encoded(1), encoded(1)]), "image 2 of images is listed before"),
        (str([encoded(1), encoded(2)[:-30] + "!"]), "image 2 of images: Only base64 data"),
        (
            str([encoded(1), base64.b64encode(b"text" * 30).decode()]),
            "image 2 of images: the image",
        ),
        (str([encoded(1), "scans/9.png"]), "image 2 of images: the image is not in"),
        (str([encoded(1), "3"]), "image 2 of images: "),
        (str([encoded(1), 3]), "not a list of images"),
        (f"[open('x').read(), '{encoded(1)}']", "not a list of images"),
        (str([encoded(1)])[:-2], "Only base64 data"),
    ],
)
def test_a_list_of_a_tsv_with_an_unusable_image_is_refused_by_line(
    tmp_path: Path, image: str, what: str
) -> None:
    path = tsv(
        tmp_path / "B.tsv",
        {"image": str([encoded(80), encoded(81)])},
        {"image": image},
        {"image": "2", "question": "Of a row that is refused?"},
    )
    texts = refusals(run(path, tmp_path / "out", **WORDS))
    assert [text.partition(": ")[0] for text in texts] == ["B.tsv, line 3", "B.tsv, line 4"]
    assert what in texts[0]
    assert len(texts[0]) < 300
    assert "nor the index of a row that has one" in texts[1]


def item(**changes: Any) -> dict[str, Any]:
    return {
        "problem": format_problem("What has changed?", ["Nothing", "The nodule"]),
        "solution": format_solution("B"),
        **changes,
    }


@pytest.fixture
def med_r1(tmp_path: Path) -> Path:
    root = tmp_path / "med-r1"
    write_images(root, *(f"Images/Chest/{number}.png" for number in range(4)))
    return root


def write_items(root: Path, *items: object) -> Path:
    path = root / "modality/ct/test.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(items), encoding="utf-8")
    return root


def test_items_list_images_alone_or_beside_one_that_stands_for_them(
    med_r1: Path, tmp_path: Path
) -> None:
    paths = [f"Images/Chest/{number}.png" for number in range(4)]
    write_items(
        med_r1,
        item(images=paths[:2]),
        item(image=paths[3], images=["Chest/2.png", paths[0]]),
        item(images=paths[3:]),
        item(image=paths[0], slices=[2]),
    )
    assert detect(med_r1) == "med-r1"
    run(med_r1, tmp_path / "out", question_type="x")
    found = records(tmp_path / "out")
    assert [image_paths(each) for each in found] == [
        paths[:2],
        [paths[2], paths[0]],
        paths[3:],
        paths[:1],
    ]
    assert {each["dataset"] for each in found} == {"Chest"}
    assert found[3]["slices"] == [2]


def test_an_item_about_several_images_has_the_words_of_all_its_files(
    med_r1: Path, tmp_path: Path
) -> None:
    both = item(images=["Images/Chest/0.png", "Images/Chest/1.png"])
    turned = item(images=both["images"][::-1])
    write_items(med_r1, both, turned)
    other = med_r1 / "Splits/question_type/Disease Diagnosis_test.json"
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps([both]))
    conversion = run(med_r1, tmp_path / "out")
    (record,) = records(tmp_path / "out")
    assert (record["modality_type"], record["question_type"]) == ("ct", "Disease Diagnosis")
    assert any("--question-type" in text and "row 2" in text for text in refusals(conversion))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"images": []}, "0 images, a question has 1 to 64"),
        ({"images": ["Chest/0.png"] * 65}, "65 images"),
        ({"images": "Chest/0.png"}, "not a list of paths"),
        ({"images": None}, "not a list of paths"),
        ({"images": ["Chest/0.png", 3]}, "image 2 of images: not a path"),
        ({"images": ["Chest/0.png", "Chest/9.png"]}, "image 2 of images: the image is not in"),
        ({"images": ["Chest/0.png", "Images/Chest/0.png"]}, "image 2 of images is listed before"),
        ({"images": ["Chest/0.png", "Chest/1.png"], "slices": [1]}, "slices of 2 images"),
        ({"image": "Chest/0.png", "slices": "1"}, "slices is not a list"),
        ({"image": "Chest/0.png", "problem": "In <image 3>? A)x, B)y"}, "the question lacks"),
    ],
)
def test_an_item_without_usable_images_is_refused_by_its_position(
    med_r1: Path, tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    write_items(med_r1, item(image="Chest/3.png"), item(**changes))
    (text,) = refusals(run(med_r1, tmp_path / "out", question_type="x"))
    assert text.startswith("modality/ct/test.json, row 2: ")
    assert what in text


def test_equal_sources_about_several_images_give_equal_bytes(tmp_path: Path) -> None:
    rows = [row(images=[embedded(n), embedded(n + 1)], slices=None) for n in range(20)]
    path = write(tmp_path / "a.parquet", rows)
    for name in ("one", "two"):
        run(path, tmp_path / name, **WORDS)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
