"""Manifests of corpora, their differences, and the validation of a new corpus."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.registry.manifest import (
    Change,
    Manifest,
    build_manifest,
    changed_modalities,
    diff,
    drift,
    read_manifest,
    seen_by_one_policy,
    write_manifest,
)
from flows.retraining.validate import drift_warnings, problems
from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import write_json_lines
from stages.core.params import Retrain
from stages.core.yaml_files import read_yaml
from stages.corpus.quarantine.ledger import write_quarantine
from stages.corpus.records.records import read_record_files
from tests.conftest import MakeRecord
from tests.flows.tiny import REPOSITORY
from tests.omnimedvqa import AXES, MODALITIES, TAXONOMY

RULE = Retrain.model_validate(read_yaml(REPOSITORY / "params.yaml")["retrain"])
NONE = Change(0, 0, 0)


def corpus(
    per_modality: int = 10, trained: list[str] | None = None, groups: list[list[str]] | None = None
) -> Manifest:
    return Manifest(
        images={
            slug: {f"{slug}/{number}": f"{slug}-{number}" for number in range(per_modality)}
            for slug in MODALITIES
        },
        questions={
            slug: {f"{slug}-{number}": "hash" for number in range(per_modality)}
            for slug in MODALITIES
        },
        read=per_modality * len(MODALITIES),
        refused=0,
        unknown={},
        trained={axis: {slug: trained or [] for slug in slugs} for axis, slugs in AXES.items()},
        groups=groups or [],
    )


def test_added_removed_and_changed_items_are_counted_by_modality() -> None:
    old = corpus()
    images = {"ct/0": "ct-0", "ct/1": "another image", "ct/new": "ct-new"}
    new = replace(
        old,
        images={**old.images, "ct": images},
        questions={**old.questions, "mri": {**old.questions["mri"], "mri-0": "other words"}},
    )
    changes = diff(old, new)
    assert changes["ct"] == {"images": Change(added=1, removed=8, changed=1), "questions": NONE}
    assert changes["mri"] == {"images": NONE, "questions": Change(0, 0, 1)}
    assert changed_modalities(changes) == ["ct", "mri"]
    assert changed_modalities(diff(old, old)) == []


def test_images_seen_by_one_policy_are_found_by_pixels_and_group() -> None:
    old = corpus(trained=["ct/0", "ct/1", "ct/2"])
    renamed = {**old.images["ct"], "ct/again": "ct-2"}  # the same pixels under another name
    new = replace(
        corpus(trained=["ct/0"], groups=[["ct/1", "ct/9"], ["ct/0", "ct/8"]]),
        images={**old.images, "ct": renamed},
    )
    # both have seen 0 and its group; only the first has seen 1 with its group, and 2 with its copy
    assert seen_by_one_policy(old, new, "modality", "ct") == {"ct/1", "ct/9", "ct/2", "ct/again"}
    assert seen_by_one_policy(new, new, "modality", "ct") == set()


BRIGHT = {
    "all": {"brightness": {"96-111": 900, "112-127": 100}},
    "ct": {"brightness": {"96-111": 100}},
}
DARK = {
    "all": {"brightness": {"96-111": 700, "112-127": 100, "under 16": 200}},
    "ct": {"brightness": {"under 16": 100}},
}


def test_drift_is_refused_beyond_one_limit_and_warned_of_beyond_another() -> None:
    old = replace(corpus(), summary=BRIGHT)
    new = replace(corpus(), summary=DARK)
    (reason,) = problems(new, old, RULE)
    assert reason.startswith("ct: brightness moved by 1.00 ")
    assert "retrain.max_drift (0.50)" in reason
    assert [line.partition(" moved")[0] for line in drift_warnings(new, old, RULE)] == [
        "drift: ct: brightness",
        "drift: all: brightness",
    ]
    assert problems(new, old, RULE.model_copy(update={"max_drift": None})) == []
    assert len(problems(new, old, RULE.model_copy(update={"max_drift": 0.1}))) == 2
    assert drift_warnings(old, old, RULE) == []
    assert problems(new, None, RULE) == []


def test_a_champion_older_than_drift_detection_is_reported_and_prevents_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "manifest.json"
    write_manifest(path, corpus())
    tree = json.loads(path.read_text(encoding="utf-8"))
    del tree["summary"]
    path.write_text(json.dumps(tree), encoding="utf-8")
    old = read_manifest(path)
    new = replace(corpus(), summary=DARK)
    assert drift(old, new) is None
    assert problems(new, old, RULE) == []
    (warning,) = drift_warnings(new, old, RULE)
    assert "not judged" in warning


def test_a_manifest_can_be_written_and_read_again(tmp_path: Path) -> None:
    manifest = replace(corpus(trained=["ct/0"], groups=[["ct/1", "ct/9"]]), summary=BRIGHT)
    write_manifest(tmp_path / "manifest.json", manifest)
    assert read_manifest(tmp_path / "manifest.json") == manifest
    (tmp_path / "manifest.json").write_text('{"images": {}}', encoding="utf-8")
    with pytest.raises(InputError, match="is not a corpus manifest"):
        read_manifest(tmp_path / "manifest.json")


def test_a_corpus_like_the_champions_is_valid() -> None:
    assert problems(corpus(10), corpus(10), RULE) == []
    assert problems(corpus(12), corpus(10), RULE) == []
    assert problems(corpus(10), None, RULE) == []


def test_too_many_refused_records_are_reported_with_the_limit() -> None:
    manifest = replace(corpus(), read=100, refused=3)
    (reason,) = problems(manifest, None, RULE)
    assert "3 of 100 records (3.0%)" in reason
    assert "retrain.max_refused (2.0%)" in reason
    assert problems(replace(manifest, refused=2), None, RULE) == []


def test_unknown_modalities_are_refused_unless_ignored_or_in_the_champions_corpus() -> None:
    new = replace(corpus(), unknown={"PET": 3})
    (reason,) = problems(new, corpus(), RULE)
    assert reason.startswith("unknown modality 'PET' in 3 records")
    assert problems(new, corpus(), RULE.model_copy(update={"ignored_modalities": ["PET"]})) == []
    assert problems(new, replace(corpus(), unknown={"PET": 1}), RULE) == []


def test_fewer_questions_in_one_modality_are_refused_despite_more_in_others() -> None:
    old = corpus(10)
    more = corpus(20)
    new = replace(more, questions={**more.questions, "oct": {"oct-0": "hash"}})
    (reason,) = problems(new, old, RULE)
    assert reason.startswith("oct: 1 questions, 90% fewer than the 10 ")
    assert "retrain.max_fewer_questions allows 10%" in reason


def test_a_question_with_another_context_is_another_question(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    def manifest(**context: Any) -> Manifest:
        facts = {"image": "data/images/ct/a.png", "pixel_hash": "f" * 64}
        for slug in MODALITIES:
            rows = [make_record(**facts, **context)] if slug == "ct" else []
            write_json_lines(tmp_path / layout.records(slug), rows)
            path = tmp_path / layout.QUARANTINE / "resize" / f"{slug}.parquet"
            write_quarantine(path, f"resize@{slug}", len(rows), ["Set"] * len(rows), [], {})
        path = tmp_path / layout.QUARANTINE / "download.parquet"
        write_quarantine(path, "download", 1, ["Set"], [], {})
        return build_manifest(tmp_path, TAXONOMY)

    old = manifest()
    # as it was before records had contexts: manifests of earlier champions are compared with it
    parts = ["What is seen?", "Cyst", "Nodule", "B", "disease-diagnosis"]
    digest = hashlib.sha256(json.dumps([*parts, "Images/Chest CT Scan/a.png"]).encode())
    assert [*old.questions["ct"].values()] == [digest.hexdigest()[:16]]
    told = manifest(age=54)
    assert diff(old, told)["ct"] == {"images": NONE, "questions": Change(0, 0, 1)}
    assert diff(told, manifest(age="54 years"))["ct"]["questions"] == NONE
    assert diff(told, manifest(age=55))["ct"]["questions"] == Change(0, 0, 1)


def test_unknown_modalities_are_counted_in_json_and_in_tables(tmp_path: Path) -> None:
    table = b"image,question,options,answer,modality,type\na.png,What?,x|y,x,PET,lesion-grading\n"
    record = {
        "dataset": "S",
        "question_id": "q",
        "question_type": "Lesion Grading",
        "question": "What?",
        "gt_answer": "x",
        "image_path": "Images/a.png",
        "option_A": "x",
        "option_B": "y",
        "modality_type": "PET",
    }
    reading = read_record_files(
        [("a.csv", table), ("b.json", json.dumps([record]).encode())], TAXONOMY
    )
    folder = tmp_path / layout.QUARANTINE
    path = folder / "download.parquet"
    write_quarantine(path, "download", reading.read, [], reading.rows, {})
    for slug in MODALITIES:
        write_json_lines(tmp_path / layout.records(slug), [])
        path = folder / "resize" / f"{slug}.parquet"
        write_quarantine(path, f"resize@{slug}", 0, [], [], {})
    assert build_manifest(tmp_path, TAXONOMY).unknown == {"PET": 2}
