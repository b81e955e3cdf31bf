"""The report benchmark on few questions."""

from pathlib import Path

from benchmarks import report as benchmark


def test_a_small_run_is_measured_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = Path.cwd()
    result = benchmark.measure(tmp_path, 200)
    assert Path.cwd() == before
    assert (result["checkpoints"], result["questions"]) == (14, 200)
    assert result["seconds"] > 0
    assert (tmp_path / "report" / "tables" / "in_domain.csv").is_file()
