"""The report benchmark on few questions."""

from pathlib import Path

import pytest

from benchmarks import report as benchmark


def test_a_small_run_is_measured_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "TESTED", 400)
    monkeypatch.setattr(benchmark, "TRAINED", 400)
    before = Path.cwd()
    result = benchmark.measure(tmp_path)
    assert Path.cwd() == before
    assert (result["checkpoints"], result["questions"]) == (14, 400)
    assert result["seconds"] > 0
    assert (tmp_path / "report" / "tables" / "in_domain.csv").is_file()
