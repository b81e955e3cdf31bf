"""The report's benchmark measures what it says, on fewer questions."""

from pathlib import Path

import pytest

from benchmarks import report as benchmark


def test_a_small_run_is_measured_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "TESTED", 400)
    monkeypatch.setattr(benchmark, "TRAINED", 400)
    before = Path.cwd()
    made = benchmark.measure(tmp_path)
    assert Path.cwd() == before
    assert (made["checkpoints"], made["questions"]) == (14, 400)
    assert made["seconds"] > 0
    assert (tmp_path / "report" / "tables" / "in_domain.csv").is_file()
