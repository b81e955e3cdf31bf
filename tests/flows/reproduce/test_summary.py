"""What is printed of a run, and the errors of flows that failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.states import Completed, Failed

from flows.reproduce.summary import print_time, summarize
from stages.core.distributed.matrix_product import MatrixProductRate
from stages.core.errors import DiskFullError


@pytest.fixture
def without_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states are given: no server is needed, nor are those of killed flows to be ended."""
    monkeypatch.setattr("flows.reproduce.summary.require_server", lambda: None)


@pytest.mark.usefixtures("without_server")
@pytest.mark.parametrize(
    ("state", "code", "printed"),
    [(Failed(message="no stage matches"), 1, "no stage matches"), (Completed(), 0, "Completed")],
)
def test_the_servers_copy_of_a_final_state_without_its_result_is_enough(
    state: Any, code: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summarize(lambda: state) == code
    output = capsys.readouterr()
    assert printed in (output.err if code else output.out)


@pytest.mark.usefixtures("without_server")
def test_the_error_of_a_flow_is_raised_with_its_exit_code() -> None:
    with pytest.raises(DiskFullError):
        summarize(lambda: Failed(data=DiskFullError("no space")))


@pytest.mark.parametrize(("seconds", "measured"), [(59.0, False), (444.0, True)])
def test_a_long_run_tells_the_speed_of_the_machine(
    seconds: float,
    measured: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    threads: list[int] = []

    def measure(count: int) -> MatrixProductRate:
        threads.append(count)
        return MatrixProductRate(5e10, 1024, "float32", "cpu", count)

    monkeypatch.setattr("flows.reproduce.summary.measure_in_subprocess", measure)
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("base: {threads: 3}\n", encoding="utf-8")
    print_time(seconds)
    printed = capsys.readouterr().out
    assert threads == [3] * measured
    assert f"{seconds / 60:.1f} min" in printed
    assert ("0.05 TFLOP/s" in printed) == measured
