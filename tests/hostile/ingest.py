"""Run stages download and resize over a hostile corpus, and read what they made of it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stages import download, resize
from stages.core import layout
from stages.core.outputs import read_json_lines
from stages.core.yaml_files import dump_yaml, read_yaml
from stages.corpus.quarantine.ledger import Quarantine, Row, read_quarantine
from tests.conftest import ROOT


@dataclass(frozen=True)
class Outcome:
    """Outcome of a corpus: quarantine tables of both stages, and the usable records by id."""

    download: Quarantine
    resize: Quarantine
    records: dict[str, dict[str, Any]]

    @property
    def usable(self) -> set[str]:
        """Ids of the usable records."""
        return set(self.records)

    @property
    def refused(self) -> dict[str, Row]:
        """Question id, or file if there is none -> its row in quarantine."""
        return {
            str(row.where.question_id or row.where.file): row
            for row in (*self.download.rows, *self.resize.rows)
        }


def ingest(root: Path, content: bytes) -> Outcome:
    """Run download and resize of a corpus with the folder `root` as working directory."""
    _write(root, content, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        _run(patch, download)
        _run(patch, resize, "ct")
    return _read(root)


def ingest_within(
    memory: int, root: Path, content: bytes, settings: Mapping[str, Mapping[str, Any]]
) -> Outcome:
    """The same in processes that may allocate `memory` bytes, with settings by group."""
    _write(root, content, settings)
    for command in (["stages.download"], ["stages.resize", "ct"]):
        subprocess.run(
            [sys.executable, "-m", *command],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (memory, memory)),
            check=True,
        )
    return _read(root)


def _write(root: Path, content: bytes, settings: Mapping[str, Mapping[str, Any]]) -> None:
    params = read_yaml(ROOT / "params.yaml")
    # nearly everything is refused here, which must not stop the stages
    params["quarantine"] |= {"max_refused_share": 1.0, "max_refused_share_of_set": 1.0}
    for group, values in settings.items():
        params[group] |= values
    (root / "data" / "raw").mkdir(parents=True)
    (root / "params.yaml").write_text(dump_yaml(params), encoding="utf-8")
    (root / "data" / "raw" / "corpus.zip").write_bytes(content)


def _run(patch: pytest.MonkeyPatch, stage: ModuleType, *arguments: str) -> None:
    patch.setattr(sys, "argv", [stage.__name__, *arguments])
    stage.main()


def _read(root: Path) -> Outcome:
    records = read_json_lines(root / layout.records("ct"), "")
    return Outcome(
        download=read_quarantine(root / layout.QUARANTINE / "download.parquet"),
        resize=read_quarantine(root / layout.QUARANTINE / "resize/ct.parquet"),
        records={each["question_id"]: each for each in records},
    )
