"""Parquet files of Hugging Face datasets are streamed, and their class labels resolved."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.errors import InputError
from stages.corpus.formats import parquet
from stages.corpus.formats.convert import detect
from tests.corpus.formats.sources import digest, png, records, refusals, run
from tests.omnimedvqa import MODALITIES

WORDS = {"modality": "CT", "question_type": "Disease Diagnosis"}


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "image": {"bytes": png(number), "path": f"{number}.png"},
        "question": f"What is seen in {number}?",
        "options": ["Cyst", "Nodule", "Mass"],
        "answer": "Nodule",
    } | changes


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def test_a_dataset_written_by_datasets_is_read(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "choices": datasets.List(datasets.Value("string")),
            "answer": datasets.ClassLabel(names=["A", "B", "C"]),
            "modality": datasets.ClassLabel(names=["CT", "X-Ray"]),
            "patient_id": datasets.Value("int64"),
        }
    )
    rows = [
        {
            "image": {"bytes": png(number), "path": None},
            "question": "What is seen?",
            "choices": ["Cyst", "Nodule", "Mass"],
            "answer": number % 3,
            "modality": number % 2,
            "patient_id": number // 2,
        }
        for number in range(6)
    ]
    data = datasets.Dataset.from_list(rows, features=features)
    (tmp_path / "Chest-VQA/data").mkdir(parents=True)
    data.to_parquet(tmp_path / "Chest-VQA/data/train-00000-of-00001.parquet")
    assert detect(tmp_path / "Chest-VQA") == "huggingface"
    conversion = run(tmp_path / "Chest-VQA", tmp_path / "out", question_type="Disease Diagnosis")
    assert conversion.modalities == {MODALITIES["ct"]: 3, "X-Ray": 3}
    assert conversion.patients_known == 6
    found = records(tmp_path / "out")
    assert [record["gt_answer"] for record in found[:3]] == ["Cyst", "Nodule", "Mass"]
    assert found[0]["dataset"] == "Chest-VQA"
    assert (tmp_path / "out" / found[4]["image_path"]).read_bytes() == png(4)


def test_row_groups_are_streamed_in_small_batches(tmp_path: Path) -> None:
    rows = [row(number) for number in range(3000)]
    folder = tmp_path / "data"
    write(folder / "a.parquet", rows[:2000], row_group_size=50)
    write(folder / "b.parquet", rows[2000:], row_group_size=50)
    sizes = []
    iterate = pq.ParquetFile.iter_batches

    def watch(self: Any, *args: Any, **options: Any) -> Any:
        for batch in iterate(self, *args, **options):
            sizes.append(len(batch))
            yield batch

    with patch.object(pq.ParquetFile, "iter_batches", watch):
        assert run(folder, tmp_path / "out", **WORDS).questions == 3000
    assert max(sizes) <= parquet.BATCH_ROWS
    assert len(sizes) >= 60


def test_equal_images_are_stored_once_and_equal_rows_refused(tmp_path: Path) -> None:
    write(tmp_path / "d/a.parquet", [row(), row(0, question="Else?"), row()])
    conversion = run(tmp_path / "d", tmp_path / "out", **WORDS)
    assert (conversion.questions, conversion.images) == (2, 1)
    assert refusals(conversion)[0].startswith("a.parquet, row 3: ")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"image": {"bytes": None, "path": None}}, "no image"),
        ({"image": None}, "no image"),
        ({"image": {"bytes": b"text", "path": "a.png"}}, "none of PNG"),
        ({"image": {"bytes": b"", "path": "a.png"}}, "no bytes"),
        ({"image": {"bytes": None, "path": "../a.png"}}, "out of its folder"),
        ({"options": ["Cyst", None]}, "not only of texts"),
        ({"options": ["Cyst", "Cyst"]}, "two options are the same"),
        ({"options": None}, "fewer than two"),
        ({"answer": "nodule"}, "none of the options"),
        ({"answer": None}, "gt_answer is empty"),
        ({"question": None}, "question is empty"),
    ],
)
def test_an_unusable_row_is_refused_by_its_number(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    path = write(tmp_path / "a.parquet", [row(), row(1, **changes)])
    (text,) = refusals(run(path, tmp_path / "out", **WORDS))
    assert text.startswith("a.parquet, row 2: ")
    assert what in text


def test_numbers_of_options_count_from_a_known_base(tmp_path: Path) -> None:
    from_zero = [row(number, answer=number % 3) for number in range(3)]
    write(tmp_path / "zero.parquet", from_zero)
    run(tmp_path / "zero.parquet", tmp_path / "out", **WORDS)
    assert [each["gt_answer"] for each in records(tmp_path / "out")] == ["Cyst", "Nodule", "Mass"]
    unknown = write(tmp_path / "one.parquet", [row(number, answer=1 + number) for number in (0, 1)])
    with pytest.raises(InputError, match=r"'answer'.*from 1.*answer_base="):
        run(unknown, tmp_path / "no", **WORDS)
    run(unknown, tmp_path / "yes", answer_base=1, **WORDS)
    assert [each["gt_answer"] for each in records(tmp_path / "yes")] == ["Cyst", "Nodule"]
    high = write(tmp_path / "high.parquet", [row(answer=0), row(1, answer=3)])
    (text,) = refusals(run(high, tmp_path / "high", **WORDS))
    assert "'D': gt_answer is none of the options" in text


def test_options_may_be_columns_or_a_structure(tmp_path: Path) -> None:
    rows = [row(0, options={"A": "x", "B": "y", "C": None}, answer="B")]
    run(write(tmp_path / "a.parquet", rows), tmp_path / "a", **WORDS)
    assert records(tmp_path / "a")[0]["gt_answer"] == "y"
    columns = {key: value for key, value in row().items() if key != "options"}
    rows = [columns | {"A": "x", "B": "y", "answer": "A"}]
    run(write(tmp_path / "b.parquet", rows), tmp_path / "b", **WORDS)
    assert records(tmp_path / "b")[0]["option_B"] == "y"
    gap = [row(0), row(1)]
    gap[0]["options"] = gap[1]["options"] = {"A": "x", "C": "y"}
    with pytest.raises(InputError, match="named otherwise than A, B"):
        run(write(tmp_path / "c.parquet", gap), tmp_path / "c", **WORDS)


def test_an_image_may_be_a_list_of_one(tmp_path: Path) -> None:
    images = [{"bytes": png(1), "path": None}]
    rows = [
        {"images": images * count} | {k: v for k, v in row(count).items() if k != "image"}
        for count in (1, 2)
    ]
    (text,) = refusals(run(write(tmp_path / "a.parquet", rows), tmp_path / "out", **WORDS))
    assert "image 2 of images is listed before" in text


def test_missing_columns_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d/a.parquet", [{"image": "x", "question": "?", "choices": ["a"]}])
    with pytest.raises(InputError, match=r"a\.parquet.*column answer"):
        run(path, tmp_path / "out")
    (tmp_path / "d/a.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(InputError, match=r"a\.parquet is not a Parquet file"):
        run(tmp_path / "d", tmp_path / "out")


def test_equal_sources_give_equal_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [row(number) for number in range(40)])
    for name in ("one", "two"):
        run(path, tmp_path / name, **WORDS)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
