"""Drift between two corpora: zero without a change, significant with one, not by chance."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flows.registry.drift import ALL, Drift, Summary, compare, describe, summarise
from stages.corpus.records.records import Record, read_record_files
from tests.conftest import Raw
from tests.omnimedvqa import MODALITIES, QUESTION_TYPES, TAXONOMY

WARN = 0.13


def corpus(
    per_modality: int = 400, seed: int = 1, change: Callable[[Raw], object] = lambda record: None
) -> list[Record]:
    """Random questions with an image each, from one population for every seed, then changed."""
    rng = np.random.default_rng(seed)
    records = []
    for slug, literal in MODALITIES.items():
        for number in range(per_modality):
            options = {
                f"option_{letter}": f"{letter} text" for letter in "ABCD"[: rng.integers(2, 5)]
            }
            record: dict[str, Any] = {
                "dataset": f"Set {slug} {rng.integers(2)}",
                "question_id": f"{slug}_{number}",
                "question_type": list(QUESTION_TYPES.values())[rng.integers(5)],
                "question": " ".join(["word"] * int(rng.integers(3, 20))),
                **options,
                "gt_answer": list(options.values())[rng.integers(len(options))],
                "image_path": f"Images/{slug}/{number}.png",
                "modality_type": literal,
                "image": f"data/images/{slug}/{number}.png",
                "source_size": [int(side) for side in rng.integers(100, 1000, 2)],
                "brightness": [
                    float(np.clip(rng.normal(mean, std), 0, 255))
                    for mean, std in ((110, 20), (50, 10))
                ],
            }
            change(record)
            records.append(record)
    return read_record_files([("a.json", json.dumps(records).encode())], TAXONOMY).records


def beyond(old: Summary, new: Summary, limit: float = WARN) -> set[tuple[str, str]]:
    return {(each.scope, each.feature) for each in compare(old, new) if each.is_beyond(limit)}


OLD = summarise(corpus())


def test_a_corpus_has_no_drift_from_itself() -> None:
    drifts = compare(OLD, OLD)
    assert {drift.distance for drift in drifts} == {0.0}
    assert {drift.scope for drift in drifts} == {ALL, *MODALITIES}
    assert {drift.feature for drift in drifts if drift.scope == ALL} == {
        "modality",
        "question type",
        "source set",
        "right letter",
        "number of options",
        "words of the question",
        "brightness",
        "contrast",
        "shorter side",
    }


@pytest.mark.parametrize("seed", range(2, 8))
def test_another_sample_of_the_same_population_has_no_drift_even_with_tight_limits(
    seed: int,
) -> None:
    # of 73 features and scopes, each with a false-positive rate of 1 in 1,000
    assert len(beyond(OLD, summarise(corpus(seed=seed)), limit=0.0)) <= 1


def of(slug: str, change: Callable[[Raw], object]) -> Callable[[Raw], object]:
    return lambda record: change(record) if record["modality_type"] == MODALITIES[slug] else None


def first_letter(record: Raw) -> None:
    record["gt_answer"] = record["option_A"]


def two_options(record: Raw) -> None:
    record.pop("option_C", None)
    record.pop("option_D", None)
    first_letter(record)


@pytest.mark.parametrize(
    ("feature", "change"),
    [
        (
            "brightness",
            lambda record: record["brightness"].__setitem__(
                0, min(record["brightness"][0] + 25, 255.0)
            ),
        ),
        (
            "contrast",
            lambda record: record["brightness"].__setitem__(1, record["brightness"][1] * 1.3),
        ),
        ("shorter side", lambda record: record.update(source_size=[64, 64])),
        ("right letter", first_letter),
        ("number of options", two_options),
        ("words of the question", lambda record: record.update(question="Long " * 40)),
        ("source set", lambda record: record.update(dataset="A new hospital")),
        ("question type", lambda record: record.update(question_type="Lesion Grading")),
    ],
)
def test_drift_in_one_modality_is_reported_for_it(
    feature: str, change: Callable[[Raw], object]
) -> None:
    drifts = beyond(OLD, summarise(corpus(change=of("ct", change))))
    assert ("ct", feature) in drifts
    assert {scope for scope, _ in drifts} <= {"ct", ALL}


def test_a_modality_that_grew_is_reported_for_the_whole_corpus() -> None:
    more = corpus() + [record for record in corpus(1600, seed=3) if record.modality == "mri"]
    drifts = {(drift.scope, drift.feature): drift for drift in compare(OLD, summarise(more))}
    mix = drifts[ALL, "modality"]
    assert mix.is_beyond(WARN)
    assert mix.grown.startswith("mri 12.5% to ")


def test_differences_between_small_samples_are_not_reported() -> None:
    one, other = (summarise(corpus(per_modality=4, seed=seed)) for seed in (1, 2))
    assert any(drift.distance > WARN for drift in compare(one, other))
    assert beyond(one, other) == set()


def test_an_image_with_several_questions_is_counted_once() -> None:
    records = corpus(10)
    doubled = summarise([*records, *records])
    assert doubled["ct"]["brightness"] == summarise(records)["ct"]["brightness"]
    assert sum(doubled["ct"]["right letter"].values()) == 20


def test_missing_features_and_scopes_without_records_are_left_out() -> None:
    old = summarise(corpus(change=lambda record: record.pop("brightness")))
    assert not {"brightness", "contrast"} & {drift.feature for drift in compare(old, OLD)}
    only_ct = summarise([record for record in corpus() if record.modality == "ct"])
    assert {drift.scope for drift in compare(only_ct, OLD)} == {ALL, "ct"}
    assert summarise([])[ALL] == {}


def test_the_distance_is_the_jensen_shannon_distance_and_described_with_its_bins() -> None:
    old: Summary = {ALL: {"modality": {"ct": 500, "mri": 500}}}
    new: Summary = {ALL: {"modality": {"ct": 650, "mri": 350}}}
    (drift,) = compare(old, new)
    assert drift == Drift(
        ALL, "modality", 0.1291, 0.0625, 1000, 1000, "ct 50.0% to 65.0%", "mri 50.0% to 35.0%"
    )
    for item in ("all: modality", "0.13", drift.grown, drift.shrunk):
        assert item in describe(drift)
    (apart,) = compare({ALL: {"modality": {"ct": 500}}}, {ALL: {"modality": {"mri": 500}}})
    assert apart.distance == 1.0


def test_a_summary_survives_json() -> None:
    assert json.loads(json.dumps(OLD)) == OLD
