"""What a stage imports before its work begins: packages that few inputs need take seconds to load.

The times themselves are measured by `python -m benchmarks.ingest`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.conftest import MakeCorpus, MakeRecord

ROOT = Path(__file__).parents[2]
LEARNING = {"torch", "transformers", "trl", "datasets"}
HEAVY = LEARNING | {"matplotlib", "networkx", "pandas", "pyarrow", "pydicom", "requests", "scipy"}
REQUIRED = {
    "download": set[str](),
    "resize": set[str](),
    "splits": set[str](),
    "prior": {"pyarrow"},
    "report": {"pyarrow", "pandas"},
}
"""Stage -> packages of HEAVY that it may import at once: it needs them whatever its inputs are."""
IN_ALL_RUNS = {"pyarrow"}
"""Packages of HEAVY that download and resize end with: both write parquet."""


def loaded(code: str, folder: Path, packages: Collection[str]) -> set[str]:
    """Those of the packages that a new interpreter has loaded once it has run the code."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(packages) & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("stage", REQUIRED)
def test_a_stage_starts_without_packages_that_few_inputs_need(stage: str, tmp_path: Path) -> None:
    assert loaded(f"import stages.{stage}", tmp_path, HEAVY) <= REQUIRED[stage]


def test_a_corpus_without_dicom_and_patients_needs_none_of_them_to_the_end(
    make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    make_corpus([make_record()])
    code = "sys.argv[1:] = {}; import stages.{} as stage; stage.main()"
    folder = Path.cwd()
    assert loaded(code.format([], "download"), folder, HEAVY) == IN_ALL_RUNS
    assert loaded(code.format(["ct"], "resize"), folder, HEAVY) == IN_ALL_RUNS
    assert Path("data/records/ct.jsonl").stat().st_size > 0
