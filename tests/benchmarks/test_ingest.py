"""The ingest benchmark measures what it claims, at a size too small for meaningful figures."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.ingest import __main__ as ingest
from benchmarks.ingest import corpora, storage
from benchmarks.ingest.measured import python, run


def test_speed_memory_and_the_work_for_more_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ingest.measure(tmp_path, number=6, repeats=1)
    assert (made["images"], made["speedup"] > 0, made["peak_memory_bytes"] > 10**7) == (
        6,
        True,
        True,
    )
    assert made["images_per_second"] == pytest.approx(
        made["speedup"] * made["seed_images_per_second"]
    )
    saved = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "dataset_info.json" in saved
    ingest.show(made | {"peak_memory_bytes_at": {"6": 10**8}})
    assert "speedup" in capsys.readouterr().out


def test_images_are_all_different_files_that_decode() -> None:
    drawn = list(corpora.large(corpora.DRAWN + 2))
    assert len({content for _, content in drawn}) == len(drawn)
    for index in (0, 1):
        first, again = (Image.open(BytesIO(drawn[at][1])) for at in (index, index + corpora.DRAWN))
        assert first.tobytes() == again.tobytes()
        assert all(512 <= side <= 2048 for side in first.size)
    assert {name.rpartition(".")[2] for name, _ in drawn} == {"png", "jpg"}
    small = [content for _, content in corpora.small(300)]
    assert len({Image.open(BytesIO(content)).tobytes() for content in small}) == 300


def test_dvc_is_measured_on_a_project_of_this_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "REPEATS", 1)
    made = storage.measure_dvc(tmp_path, storage.as_shards, 80)
    assert (made["images"], made["files"]) == (80, 8)
    assert made["repro_seconds"] > 0
    assert len(list((tmp_path / "models").iterdir())) == 13


def test_a_command_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        run(["sh", "-c", "echo no such thing; exit 3"], tmp_path)
    hungry = python("json.tool", "--help", folder=tmp_path)
    assert hungry.seconds > 0
    assert hungry.peak > 10**6
