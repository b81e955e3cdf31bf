"""The ingest benchmarks at sizes too small for meaningful figures."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.ingest import __main__ as ingest
from benchmarks.ingest import corpora, storage
from benchmarks.ingest.measured import python, run


def test_speed_memory_and_incremental_work_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_SHORT_REPEATS", 1)
    result = ingest.measure(tmp_path, number=6, repeats=1)
    assert result["images"] == 6
    assert result["speedup"] > 0
    assert result["peak_memory_bytes"] > 10**7
    assert result["images_per_second"] == pytest.approx(
        result["speedup"] * result["seed_images_per_second"]
    )
    assert (tmp_path / "out" / "dataset_info.json").is_file()
    ingest.show(result | {"peak_memory_bytes_at": {"6": 10**8}})
    assert "speedup" in capsys.readouterr().out


def test_generated_images_are_different_files_that_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "DRAWN", 8)
    large = list(corpora.large(corpora.DRAWN + 2))
    assert len({content for _, content in large}) == len(large)
    for index in (0, 1):
        first, again = (Image.open(BytesIO(large[at][1])) for at in (index, index + corpora.DRAWN))
        assert first.tobytes() == again.tobytes()
        assert all(512 <= side <= 2048 for side in first.size)
    assert {name.rpartition(".")[2] for name, _ in large} == {"png", "jpg"}
    small = [content for _, content in corpora.small(300)]
    assert len({Image.open(BytesIO(content)).tobytes() for content in small}) == 300


def test_dvc_is_measured_on_a_project_of_this_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "REPEATS", 1)
    result = storage.measure_dvc(tmp_path, storage.as_shards, 80)
    assert (result["images"], result["files"]) == (80, 8)
    assert result["repro_seconds"] > 0
    assert len(list((tmp_path / "models").iterdir())) == 13


def test_a_failed_command_is_reported_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        run(["sh", "-c", "echo no such thing; exit 3"], tmp_path)
    command = python("json.tool", "--help", folder=tmp_path)
    assert command.seconds > 0
    assert command.peak > 10**6
