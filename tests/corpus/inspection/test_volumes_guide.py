"""docs/volumes.md does what it says, with the DICOM files that pydicom ships."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest

from stages import download, resize
from stages.core import layout
from stages.core.outputs import read_json_lines
from stages.core.yaml_files import dump_yaml, load_yaml, read_yaml
from stages.corpus.quarantine.ledger import read_quarantine
from stages.corpus.quarantine.reasons import Reason
from tests.commands import med_r1
from tests.conftest import ROOT, Raw, RunStage, change_params

DOC = (ROOT / "docs" / "volumes.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", DOC, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def _corpus(project: Path) -> None:
    """The example's folder as the corpus, with its settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(block("python"), "docs/volumes.md", "exec"), {})
    params = read_yaml(project / "params.yaml")
    for group, settings in load_yaml(block("yaml"), Path("docs/volumes.md")).items():
        params[group] |= settings
    params["corpus"]["archive"] = "ward"
    (project / "params.yaml").write_text(dump_yaml(params), encoding="utf-8")
    change_params("quarantine", max_refused_share=1.0, max_refused_share_of_set=1.0)


def outcomes(run: RunStage) -> dict[str, Raw | Reason]:
    """Images and slices of each question -> its record, or why it is refused."""
    run(download)
    found: dict[str, Raw | Reason] = {
        f"line {row.where.line}": Reason(row.reason)
        for row in read_quarantine(layout.QUARANTINE / "download.parquet").rows
    }
    for slug in ("ct", "ultrasound", "mri"):
        names = {
            row["question_id"]: _name(row)
            for row in read_json_lines(layout.corpus_records(slug), "")
        }
        run(resize, slug)
        for row in read_quarantine(layout.QUARANTINE / "resize" / f"{slug}.parquet").rows:
            found[names[str(row.where.question_id)]] = Reason(row.reason)
        for record in read_json_lines(layout.records(slug), ""):
            found[names[record["question_id"]]] = record
    return found


def _name(record: Raw) -> str:
    return f"{record['image_path'].removeprefix('Images/')} {record.get('slices', '')}".strip()


def shown(record: Raw | Reason) -> list[int]:
    assert isinstance(record, dict)
    return [int(Path(path).stem) for path in record["shown"]]


@pytest.mark.usefixtures("_corpus")
def test_each_question_of_the_example_has_the_outcome_in_the_table(run: RunStage) -> None:
    found = outcomes(run)
    assert shown(found.pop("chest")) == [1, 2, 4, 5]
    assert shown(found.pop("chest [4, 2]")) == [4, 2]
    assert shown(found.pop("echo.dcm")) == [4, 12, 19, 27]
    brain = found.pop("brain.dcm")
    assert isinstance(brain, dict)
    assert "shown" not in brain
    assert found == {
        "line 4": Reason.IMAGE_LIST,
        "partial": Reason.IMAGE_VOLUME,
        "line 6": Reason.FIELD_IDENTIFIER,
        "scouts [1]": Reason.IMAGE_VOLUME,
    }
    written = "".join(path.read_text(encoding="utf-8") for path in Path("data").rglob("*.jsonl"))
    for secret in ("Miller", "98890234", "77654033/"):
        assert secret not in written


@pytest.mark.usefixtures("_corpus")
def test_one_slice_of_a_damaged_series_is_used_by_default(run: RunStage) -> None:
    change_params("volume", frames=1)
    found = outcomes(run)
    partial = found["partial"]
    assert isinstance(partial, dict)
    assert partial["image"] == "data/images/ct/partial.png"


@pytest.mark.usefixtures("_corpus")
def test_the_check_finds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert med_r1("check", "ward", "--json", "found.json") == 1
    report = json.loads(Path("found.json").read_text(encoding="utf-8"))
    assert (report["read"], report["kept"]) == (8, 4)
    assert report["images_per_question"] == {"1": 1, "2": 1, "4": 2}
    slices = report["slices"]
    volumes = [each["volumes"] for each in slices["selected"]["examples"]]
    assert [volume["slices"] for each in volumes for volume in each] == [
        [1, 2, 4, 5],
        [4, 12, 19, 27],
    ]
    assert slices["outside"] == {"questions": 0, "examples": []}
    assert block("text") in capsys.readouterr().out
    assert report["volumes"] == [
        {"slices": 5, "plane": "axial", "volumes": 1},
        {"slices": 30, "plane": "unknown", "volumes": 1},
    ]
    assert report["questions_with_context"] == 2
    text = json.dumps(report)
    assert "different patients" in text
    assert "about 161 slices seem to be missing" in text
    assert "Miller" not in text
