"""`med-r1 compare`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.comparison import command as compare
from stages.core.errors import InputError
from stages.predictions.schema import OPTIONAL, SCHEMA
from tests.commands import med_r1
from tests.comparison.test_pairs import flipped
from tests.fakes import CHECKPOINTS, make_predictions, make_questions
from tests.omnimedvqa import AXES

QUESTIONS = make_questions(per_cell=10)


def write(path: Path, rows: pd.DataFrame, style: str, kind: str = "grouped") -> None:
    provenance = {"corpus": "md5:a", "params": {"splits.kind": kind, "prompt": {"style": style}}}
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([field for field in (*SCHEMA, *OPTIONAL) if field.name in rows])
    table = pa.Table.from_pandas(rows, schema=schema, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({"provenance": json.dumps(provenance)}), path)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of the predictions of a no-think and a think run."""
    for name in ["base", *CHECKPOINTS]:
        rows = make_predictions(QUESTIONS, name)
        write(tmp_path / "a" / f"{name}.parquet", rows, "no-think")
        write(tmp_path / "b" / f"{name}.parquet", flipped(rows, 7), "think")
    return tmp_path / "a", tmp_path / "b"


def run(
    first: Path, second: Path, json_file: Path | None = None, csv_folder: Path | None = None
) -> None:
    compare.run(first, second, json_file=json_file, csv_folder=csv_folder, samples=200, seed=42)


def test_tables_show_both_runs_and_separately_the_published_numbers(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run(*runs)
    out = capsys.readouterr().out
    assert "prompt style no-think" in out
    assert "prompt style think" in out
    assert "A minus B by modality: rows trained, columns tested" in out
    assert "published by Med-R1: accuracy of No-Think minus Think, percentage points" in out
    assert "+16.94" in out
    assert "released Images/modalityimprove_heatmap.png" in out
    assert "One run per cell; no intervals published." in " ".join(out.split())
    assert "not the same comparison" not in out
    lines = [line for line in out.splitlines() if not line.startswith(("A: ", "B: "))]
    assert max(map(len, lines)) <= compare.WIDTH


def test_another_pair_of_styles_is_marked_as_another_comparison(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run(*reversed(runs))
    out = capsys.readouterr().out
    assert "A is think and B no-think: not the same comparison" in out


def test_files_hold_every_cell_and_separately_the_published_ones(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run(*runs, json_file=tmp_path / "out.json", csv_folder=tmp_path / "out")
    results: dict[str, Any] = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert results["first"]["prompt style"] == "no-think"
    assert results["bootstrap"] == {
        "samples": 200,
        "seed": 42,
        "clusters": "image",
        "confidence": 0.95,
    }
    for axis, slugs in AXES.items():
        cells = results["axes"][axis]["cells"]
        assert len(cells) == (len(slugs) + 1) * len(slugs)
        rows = list(csv.DictReader((tmp_path / "out" / f"{axis}.csv").open(encoding="utf-8")))
        assert [float(row["difference"]) for row in rows] == [cell["difference"] for cell in cells]
        assert all(-1 <= cell["low"] <= cell["difference"] <= cell["high"] <= 1 for cell in cells)
        assert results["published"][axis]["unit"] == "percentage points"
        assert results["published"][axis]["caveat"]
    assert results["published"]["modality"]["cells"]["mri"]["ct"] == 16.94
    published = list(csv.DictReader((tmp_path / "out" / "published.csv").open(encoding="utf-8")))
    assert len(published) == 64 + 25
    assert all(
        row["source"] and row["caveat"] and row["unit"] == "percentage points" for row in published
    )
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    run(*runs, csv_folder=tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_checkpoints_without_a_row_in_the_tables_are_named(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (runs[0] / "ct.parquet").rename(runs[0] / "sft-ct.parquet")
    (runs[1] / "ct.parquet").unlink()
    run(*runs)
    out = capsys.readouterr().out
    assert f"{runs[0]}: skipped" in out
    assert "sft-ct" in out


def test_bad_runs_are_refused_by_name(runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = runs
    with pytest.raises(InputError, match=r"nowhere is not a directory"):
        run(first, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty contains no predictions"):
        run(first, tmp_path / "empty")
    write(second / "ct.parquet", make_predictions(QUESTIONS, "ct"), "no-think")
    with pytest.raises(
        InputError,
        match=(
            r"b/anatomy-identification.parquet and .*b/ct.parquet are in one directory, but the"
            r" prompt style is"
        ),
    ):
        run(first, second)
    write(
        second / "ct.parquet", make_predictions(QUESTIONS, "mri").assign(checkpoint="mri"), "think"
    )
    with pytest.raises(
        InputError, match=r"b/ct.parquet: question .*: checkpoint 'mri' is in the file of 'ct'"
    ):
        run(first, second)
    (second / "ct.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"ct.parquet is not a parquet file"):
        run(first, second)


def test_other_splits_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for path in runs[1].glob("*.parquet"):
        write(tmp_path / "c" / path.name, pd.read_parquet(path), "think", kind="random")
    with pytest.raises(InputError, match=r"a has the split kind grouped, .*c random"):
        run(runs[0], tmp_path / "c")
    assert med_r1("compare", *runs, "--samples", "5") == 2, "an interval needs at least 100"
