"""Recorded durations survive concurrent writers and any state of the file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from flows.dvc_api.lock_file import read_locked_stages
from flows.scheduling import durations
from stages.core import layout
from tests.flows.tiny import REPOSITORY

WRITER = (
    "import sys; from pathlib import Path; from flows.scheduling import durations\n"
    "for number in range(20): durations.record(Path(sys.argv[1]), f'{sys.argv[2]}-{number}',"
    " number)"
)


def test_the_median_of_the_last_five_runs_is_read(tmp_path: Path) -> None:
    for seconds in (900.0, 10.0, 50.0, 20.0, 30.0, 40.0):
        durations.record(tmp_path, "train@ct", seconds)
    durations.record(tmp_path, "splits", 3.0)
    assert durations.read(tmp_path) == {"train@ct": 30.0, "splits": 3.0}


def test_nothing_is_lost_when_processes_and_threads_write_at_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], cwd=REPOSITORY)
        for name in ("a", "b", "c")
    ]
    threads = [f"thread-{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: durations.record(tmp_path, name, 1.0), threads))
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    expected = {f"{name}-{number}" for name, number in product("abc", range(20))}
    assert set(durations.read(tmp_path)) == expected | set(threads)


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "{",
        "[1]",
        '{"a": 3}',
        '{"a": ["soon"]}',
        '{"a": [true]}',
        '{"a": [NaN]}',
        '{"a": [-1]}',
        "\x00\xff",
    ],
)
def test_a_corrupt_file_is_moved_aside_when_writing_and_left_when_reading(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / durations.FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(broken.encode("latin-1"))
    assert durations.read(tmp_path) == {}
    assert path.read_bytes() == broken.encode("latin-1")
    durations.record(tmp_path, "train@ct", 5.0)
    assert durations.read(tmp_path) == {"train@ct": 5.0}
    assert path.with_name("durations.json.broken").read_bytes() == broken.encode("latin-1")
    assert "durations.json.broken" in caplog.text


def test_a_duration_that_cannot_be_recorded_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".scratch").write_text("a file where a folder should be", encoding="utf-8")
    durations.record(tmp_path, "train@ct", 5.0)
    assert "the duration of train@ct could not be recorded" in caplog.text
    assert durations.read(tmp_path) == {}


def test_reading_creates_no_file(tmp_path: Path) -> None:
    assert durations.read(tmp_path) == {}
    assert not list(tmp_path.iterdir())


def test_the_file_is_readable_json(tmp_path: Path) -> None:
    durations.record(tmp_path, "train@ct", 1.23456)
    assert json.loads((tmp_path / durations.FILE).read_text(encoding="utf-8")) == {
        "train@ct": [1.235]
    }


KNOWN = {"train@ct": 40.0, "train@mri": 60.0, "splits": 2.0}
REFERENCE = {"train@ct": 20.0, "train@oct": 30.0, "evaluate@ct": 10.0, "splits": 1.0}


@pytest.mark.parametrize(
    ("stage", "known", "reference", "expected"),
    [
        ("train@ct", KNOWN, REFERENCE, 40.0),
        # twice as slow here as in the reference: train@ct shows it
        ("train@oct", KNOWN, REFERENCE, 60.0),
        # of its group nothing is known here: all known stages were twice as slow
        ("evaluate@ct", KNOWN, REFERENCE, 20.0),
        # the scale is that of its own group
        ("train@oct", KNOWN | {"splits": 100.0}, REFERENCE, 60.0),
        ("evaluate@ct", {}, REFERENCE, 10.0),
        ("train@us", KNOWN, REFERENCE, 50.0),
        ("train@us", KNOWN, {}, 50.0),
        ("train@us", {}, REFERENCE, None),
        ("report", KNOWN, REFERENCE, None),
    ],
)
def test_an_unknown_duration_is_estimated_from_its_group_and_the_reference(
    stage: str, known: dict[str, float], reference: dict[str, float], expected: float | None
) -> None:
    assert durations.estimate([stage], known, reference).get(stage) == expected


def test_the_shipped_durations_are_those_of_all_stages_of_the_embedded_corpus() -> None:
    reference = durations.read_reference(REPOSITORY)
    assert set(reference) == {*read_locked_stages(REPOSITORY), str(layout.DATA_DVC)}
    assert all(seconds > 0 for seconds in reference.values())


@pytest.mark.parametrize("corpus", ["md5:" + "0" * 32, None])
def test_durations_of_another_corpus_are_not_used(tmp_path: Path, corpus: str | None) -> None:
    shutil.copy(REPOSITORY / layout.DATA_DVC, tmp_path)
    (tmp_path / durations.REFERENCE).parent.mkdir()
    reference = {"corpus": corpus, "seconds": {"train@ct": 1.0}}
    (tmp_path / durations.REFERENCE).write_text(json.dumps(reference), encoding="utf-8")
    assert durations.read_reference(tmp_path) == {}


def test_without_shipped_durations_nothing_is_known(tmp_path: Path) -> None:
    assert durations.read_reference(tmp_path) == {}
