"""Sizes of outputs, and corrupt lock files."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.dvc_api.graph import Stage
from flows.dvc_api.output_sizes import out_size, read_output_sizes
from stages.core.errors import InputError
from stages.core.machine import format_bytes

LOCK = """schema: '2.0'
stages:
  train@ct:
    cmd: python -m stages.train ct
    outs:
    - {path: models/ct, md5: 0a.dir, size: 7000, nfiles: 3}
    - {path: training/ct.csv, md5: 0b, size: 200}
"""


def stage(name: str, *outs: str) -> Stage:
    return Stage(name, "", (), outs, 0, 1.0)


def test_sizes_are_those_of_the_last_run_or_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text(LOCK, encoding="utf-8")
    lock = read_output_sizes(tmp_path)
    assert out_size(tmp_path, stage("train@ct", "models/ct", "training/ct.csv"), lock) == 7200
    assert out_size(tmp_path, stage("train@mri", "models/mri"), lock) is None
    (tmp_path / "models" / "mri").mkdir(parents=True)
    (tmp_path / "models" / "mri" / "weights").write_bytes(b"x" * 50)
    assert out_size(tmp_path, stage("train@mri", "models/mri"), lock) == 50


def test_the_size_of_an_import_is_the_pinned_one(tmp_path: Path) -> None:
    (tmp_path / "data.dvc").write_text(
        "outs:\n- {md5: 0a, size: 7525614, path: data/raw/corpus.zip}\n", encoding="utf-8"
    )
    assert out_size(tmp_path, stage("data.dvc", "data/raw/corpus.zip"), {}) == 7525614


def test_a_missing_lock_file_means_that_nothing_ran(tmp_path: Path) -> None:
    assert read_output_sizes(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (
            "schema: '2.0'\n<<<<<<< HEAD\nstages: {}\n=======\nstages: {}\n>>>>>>> other\n",
            "line 2: unresolved git conflict",
        ),
        ("stages: [", "line 2"),
        ("just words", "dictionary"),
        ("stages: {a: {outs: [{md5: 0a}]}}", "stages.a.outs.0.path"),
        ("stages: {a: {outs: [{path: x, size: much}]}}", "stages.a.outs.0.size"),
    ],
)
def test_a_corrupt_lock_file_is_named_with_the_remedy(
    tmp_path: Path, text: str, where: str
) -> None:
    (tmp_path / "dvc.lock").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=where) as caught:
        read_output_sizes(tmp_path)
    assert str(tmp_path / "dvc.lock") in str(caught.value)
    assert "git checkout" in str(caught.value)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (7525614, "7.2 MiB"),
        (2**30, "1.0 GiB"),
        (3 * 2**40, "3.0 TiB"),
    ],
)
def test_sizes_are_formatted_in_units_of_1024(count: int, text: str) -> None:
    assert format_bytes(count) == text
