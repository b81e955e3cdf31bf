"""What a corpus holds and how it changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flows.registry.manifest import (
    Change,
    Manifest,
    diff,
    drift,
    known_to_one,
    read_manifest,
    take_manifest,
    touched,
    write_manifest,
)
from flows.retraining.validate import drifted, problems
from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import write_json_lines
from stages.core.params import Retrain
from stages.core.yaml_files import read_yaml
from stages.corpus.quarantine.ledger import write_quarantine
from stages.corpus.records.records import read_record_files
from stages.taxonomy import AXES, MODALITIES
from tests.flows.tiny import REPOSITORY

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
            slug: {f"{slug}-{number}": "asked" for number in range(per_modality)}
            for slug in MODALITIES
        },
        read=per_modality * len(MODALITIES),
        refused=0,
        unknown={},
        trained={axis: {slug: trained or [] for slug in slugs} for axis, slugs in AXES.items()},
        groups=groups or [],
    )


def test_what_is_new_gone_and_replaced_is_counted_by_modality() -> None:
    old = corpus()
    images = {"ct/0": "ct-0", "ct/1": "another image", "ct/new": "ct-new"}
    new = replace(
        old,
        images={**old.images, "ct": images},
        questions={**old.questions, "mri": {**old.questions["mri"], "mri-0": "other words"}},
    )
    found = diff(old, new)
    assert found["ct"] == {"images": Change(added=1, removed=8, changed=1), "questions": NONE}
    assert found["mri"] == {"images": NONE, "questions": Change(0, 0, 1)}
    assert touched(found) == ["ct", "mri"]
    assert touched(diff(old, old)) == []


def test_an_image_is_known_to_one_if_only_the_one_was_trained_on_it_or_on_one_of_its_group() -> (
    None
):
    old = corpus(trained=["ct/0", "ct/1", "ct/2"])
    renamed = {**old.images["ct"], "ct/again": "ct-2"}  # the same pixels under another name
    new = replace(
        corpus(trained=["ct/0"], groups=[["ct/1", "ct/9"], ["ct/0", "ct/8"]]),
        images={**old.images, "ct": renamed},
    )
    # 0 and its group are known to both; 1 and its group, 2 and its copy to the first alone
    assert known_to_one(old, new, "modality", "ct") == {"ct/1", "ct/9", "ct/2", "ct/again"}
    assert known_to_one(new, new, "modality", "ct") == set()


BRIGHT = {
    "all": {"brightness": {"96-111": 900, "112-127": 100}},
    "ct": {"brightness": {"96-111": 100}},
}
DARK = {
    "all": {"brightness": {"96-111": 700, "112-127": 100, "under 16": 200}},
    "ct": {"brightness": {"under 16": 100}},
}


def test_drift_beyond_the_limit_stops_and_less_of_it_is_told() -> None:
    old, new = replace(corpus(), summary=BRIGHT), replace(corpus(), summary=DARK)
    (found,) = problems(new, old, RULE)
    assert found.startswith(
        "ct: brightness moved by 1.00 (more: under 16 0.0% to 100.0%; less: 96-111 100.0% to 0.0%),"
        " further from the"
    )
    assert "than retrain.max_drift (0.50)" in found
    assert [line.partition(" moved")[0] for line in drifted(new, old, RULE)] == [
        "drift: ct: brightness",
        "drift: all: brightness",
    ]
    assert problems(new, old, RULE.model_copy(update={"max_drift": None})) == []
    assert len(problems(new, old, RULE.model_copy(update={"max_drift": 0.1}))) == 2
    assert drifted(old, old, RULE) == []
    assert problems(new, None, RULE) == []


def test_a_champion_of_a_time_before_drift_was_counted_stops_nothing_and_that_is_said(
    tmp_path: Path,
) -> None:
    path = tmp_path / "manifest.json"
    write_manifest(path, corpus())
    tree = json.loads(path.read_text(encoding="utf-8"))
    del tree["summary"]
    path.write_text(json.dumps(tree), encoding="utf-8")
    old, new = read_manifest(path), replace(corpus(), summary=DARK)
    assert drift(old, new) is None
    assert problems(new, old, RULE) == []
    assert drifted(new, old, RULE)[0].startswith(
        "drift is not judged: the manifest of the champion's corpus is of a time before"
    )


def test_a_manifest_can_be_kept_and_read_again(tmp_path: Path) -> None:
    kept = replace(corpus(trained=["ct/0"], groups=[["ct/1", "ct/9"]]), summary=BRIGHT)
    write_manifest(tmp_path / "manifest.json", kept)
    assert read_manifest(tmp_path / "manifest.json") == kept
    (tmp_path / "manifest.json").write_text('{"images": {}}', encoding="utf-8")
    with pytest.raises(InputError, match="is not a corpus manifest"):
        read_manifest(tmp_path / "manifest.json")


def test_a_corpus_like_the_champions_is_fit() -> None:
    assert problems(corpus(10), corpus(10), RULE) == []
    assert problems(corpus(12), corpus(10), RULE) == []
    assert problems(corpus(10), None, RULE) == []


def test_too_many_refused_records_are_told_with_the_limit() -> None:
    refused = replace(corpus(), read=100, refused=3)
    assert (
        "3 of 100 records (3.0%) were refused by download and resize, more than retrain.max_refused"
        " (2.0%)" in problems(refused, None, RULE)[0]
    )
    assert problems(replace(refused, refused=2), None, RULE) == []


def test_unknown_modalities_stop_unless_they_are_known_to_be_none_of_ours() -> None:
    new = replace(corpus(), unknown={"PET": 3})
    (found,) = problems(new, corpus(), RULE)
    assert found.startswith("unknown modality 'PET' in 3 records")
    assert problems(new, corpus(), RULE.model_copy(update={"ignored_modalities": ["PET"]})) == []
    assert problems(new, replace(corpus(), unknown={"PET": 1}), RULE) == [], (
        "the champion's corpus had it too"
    )


def test_fewer_questions_in_one_modality_are_told_though_others_make_up_for_them() -> None:
    old, more = corpus(10), corpus(20)
    new = replace(more, questions={**more.questions, "oct": {"oct-0": "asked"}})
    (found,) = problems(new, old, RULE)
    assert (
        found == "oct: 1 questions, 90% fewer than the 10 of the champion's corpus;"
        " retrain.max_fewer_questions allows 10%"
    )


def test_unknown_modalities_are_counted_whether_json_or_a_table_names_them(tmp_path: Path) -> None:
    table = b"image,question,options,answer,modality,type\na.png,What?,x|y,x,PET,lesion-grading\n"
    record = {
        "dataset": "S",
        "question_id": "q",
        "question_type": "Lesion Grading",
        "question": "What?",
        "gt_answer": "x",
    }
    record |= {
        "image_path": "Images/a.png",
        "option_A": "x",
        "option_B": "y",
        "modality_type": "PET",
    }
    reading = read_record_files([("a.csv", table), ("b.json", json.dumps([record]).encode())])
    write_quarantine(
        tmp_path / layout.QUARANTINE / "download.parquet",
        "download",
        reading.read,
        [],
        reading.rows,
        {},
    )
    for slug in MODALITIES:
        write_json_lines(tmp_path / layout.records(slug), [])
        write_quarantine(
            tmp_path / layout.QUARANTINE / "resize" / f"{slug}.parquet",
            f"resize@{slug}",
            0,
            [],
            [],
            {},
        )
    assert take_manifest(tmp_path).unknown == {"PET": 2}
