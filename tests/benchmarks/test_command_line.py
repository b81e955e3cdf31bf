"""Every benchmark of minutes has a form that ends within one."""

from __future__ import annotations

import sys
from importlib import import_module, util
from pathlib import Path

import pytest

from tests.conftest import ROOT

LONG_ONLY = {"gpu", "reproduce"}
"""`gpu` resumes and stops after --minutes; a quick `reproduce` would not be the pipeline."""
NO_BENCHMARKS = {"command_line"}


def benchmarks() -> list[str]:
    """Names of all modules and packages of benchmarks that can be run."""
    folder = ROOT / "benchmarks"
    modules = [path.stem for path in folder.glob("[!_]*.py")]
    packages = [path.parent.name for path in folder.glob("*/__main__.py")]
    return sorted({*modules, *packages} - NO_BENCHMARKS)


@pytest.mark.parametrize("name", sorted(set(benchmarks()) - LONG_ONLY))
def test_a_benchmark_takes_quick_and_says_what_it_then_measures(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = f"benchmarks.{name}.__main__"
    is_package = util.find_spec(f"benchmarks.{name}").submodule_search_locations  # type: ignore[union-attr]
    module = import_module(main if is_package else f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [str(Path(name)), "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    (line,) = (
        each for each in capsys.readouterr().out.splitlines() if each.strip().startswith("--quick")
    )
    assert len(line.split()) > 2
