"""What each part of a question contributes, compared with a few lines of pandas."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.predictions.schema import CONTEXT_PARTS, IMAGE_PARTS, OPTIONAL
from stages.scoring.contributions import KINDS
from stages.scoring.metrics import compute_metrics
from stages.scoring.predictions import add_answers
from stages.scoring.statistics import cluster_interval
from stages.scoring.tables import CELLS, Target, check_predictions
from tests.fakes import CHECKPOINTS, make_predictions, make_questions
from tests.omnimedvqa import AXES
from tests.several_images import raw_rows, raw_table, scored, with_parts

NAMES = ("ct", "mri", "lesion-grading")
QUESTIONS = make_questions(per_cell=12)
RAW = {
    name: with_parts(make_predictions(QUESTIONS, name), knows=0.1 if name == "base" else 0.4)
    for name in ("base", *NAMES)
}
PREDICTIONS = {name: scored(rows) for name, rows in RAW.items()}
TARGETS = {name: Target(CHECKPOINTS[name], name) for name in NAMES}


def metrics_of(predictions: dict[str, pd.DataFrame], names: tuple[str, ...] = NAMES) -> Any:
    return compute_metrics(
        predictions,
        {name: TARGETS[name] for name in names},
        samples=300,
        seed=5,
        axes=AXES,
    )


FOUND = metrics_of(PREDICTIONS)["contributions"]


def own(name: str, kind: str, of: str | None = None) -> pd.DataFrame:
    """Predictions of `of` for the in-domain questions of `name` of one kind."""
    axis, rows = CHECKPOINTS[name], PREDICTIONS[of or name]
    rows = rows[rows[f"{axis}_test"] & (rows[CELLS[axis]] == name)]
    return rows[rows[KINDS[kind].column].notna()].sort_values("question_id")


def expected(after: pd.Series, before: pd.Series, images: pd.Series) -> dict[str, Any]:
    differences = after.to_numpy(float) - before.to_numpy(float)
    low, high = cluster_interval(differences, images, 300, 5)
    values = {
        "n": len(after),
        "accuracy": after.to_numpy(float).mean(),
        "other": before.to_numpy(float).mean(),
        "gain": differences.mean(),
        "low": low,
        "high": high,
    }
    return {name: round(value, 4) for name, value in values.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_part_is_compared_on_the_same_questions(name: str, kind: str) -> None:
    found = FOUND["checkpoints"][name][kind]
    rows, base = own(name, kind), own(name, kind, "base")
    assert found["n"] == len(rows)
    assert found["images"] == rows["image"].nunique()
    for group, answers in (("parts", rows), ("base_parts", base)):
        assert list(found[group]) == list(KINDS[kind].parts)
        for variant, values in found[group].items():
            asked = answers[answers[f"{variant}_correct"].notna()]
            others = asked[f"{variant}_correct"].astype(bool)
            assert values == pytest.approx(expected(asked["correct"], others, asked["image"]))
    assert found["to_base"]["as_asked"] == pytest.approx(
        expected(rows["correct"], base["correct"], rows["image"])
    )
    assert list(found["to_base"]) == ["as_asked", *KINDS[kind].exchanged]
    for variant in KINDS[kind].exchanged:
        asked = rows[rows[f"{variant}_correct"].notna()]
        before = base[base[f"{variant}_correct"].notna()]
        column = f"{variant}_correct"
        assert found["to_base"][variant] == pytest.approx(
            expected(asked[column], before[column], asked["image"])
        )


def test_means_weigh_checkpoints_equally() -> None:
    for kind, groups in FOUND["means"].items():
        for group, named in groups.items():
            for variant, mean in named.items():
                each = [FOUND["checkpoints"][name][kind][group][variant] for name in NAMES]
                assert mean["checkpoints"] == 3
                assert mean["n"] == sum(values["n"] for values in each)
                assert mean["gain"] == pytest.approx(
                    np.mean([values["gain"] for values in each]), abs=2e-4
                )
                assert mean["low"] < mean["gain"] < mean["high"]


def test_a_mean_is_over_the_checkpoints_by_grpo_if_there_are_any() -> None:
    targets = TARGETS | {"mri": Target("modality", "mri", "sft")}
    found = compute_metrics(PREDICTIONS, targets, samples=100, seed=5, axes=AXES)["contributions"]
    assert found["means"]["context"]["to_base"]["as_asked"]["checkpoints"] == 2
    assert list(found["checkpoints"]) == list(NAMES)


@pytest.mark.parametrize("with_null_columns", [False, True])
def test_without_such_questions_the_metrics_are_as_they_were(with_null_columns: bool) -> None:
    plain = {name: make_predictions(QUESTIONS, name) for name in PREDICTIONS}
    before = metrics_of(plain)
    assert "contributions" not in before
    if with_null_columns:
        optional = OPTIONAL.names
        plain = {
            name: add_answers(raw_table(raw_rows(rows), optional)).to_pandas()
            for name, rows in plain.items()
        }
        assert set(optional) < set(plain["ct"])
    for name, rows in plain.items():
        axis = CHECKPOINTS.get(name, "all")
        check_predictions(rows, name, axis, "a file", AXES)
    assert json.dumps(metrics_of(plain)) == json.dumps(before)


def test_the_other_numbers_take_a_question_about_several_images_as_any_other() -> None:
    plain = {name: make_predictions(QUESTIONS, name) for name in PREDICTIONS}
    metrics = metrics_of(PREDICTIONS)
    del metrics["contributions"]
    assert metrics == metrics_of(plain)


def changed(name: str, drop: tuple[str, ...], ids: set[str] | None = None) -> pd.DataFrame:
    """Predictions without some variants, of all questions or some."""
    rows = []
    for row in RAW[name]:
        left = dict(row)
        for column in row:
            dropped = column.startswith(tuple(f"{each}_" for each in drop))
            if dropped and (ids is None or row["question_id"] in ids):
                del left[column]
        rows.append(left)
    return scored(rows)


def test_a_variant_that_some_questions_lack_is_compared_on_the_others() -> None:
    rows = own("ct", "several_images")
    lacking = set(rows["question_id"].iloc[::2])
    for base_lacks in (False, True):
        names = ("ct", "base") if base_lacks else ("ct",)
        less = PREDICTIONS | {
            name: changed(name, ("shuffled", "removed"), lacking) for name in names
        }
        found = metrics_of(less)["contributions"]["checkpoints"]["ct"]["several_images"]
        left = rows[~rows["question_id"].isin(lacking)]
        assert found["n"] == len(rows)
        assert found["parts"]["removed"] == pytest.approx(
            expected(left["correct"], left["removed_correct"], left["image"])
        )
        assert found["base_parts"]["removed"]["n"] == (len(left) if base_lacks else len(rows))
        assert found["to_base"]["shuffled"]["n"] == len(left), "of the questions both were asked"
        assert found["parts"]["middle"]["n"] == len(rows)


def test_a_variant_that_no_question_has_is_absent_and_not_zero() -> None:
    less = {name: changed(name, ("reordered", "no_context", "shuffled")) for name in PREDICTIONS}
    for name in NAMES:
        check_predictions(less[name], name, CHECKPOINTS[name], "a file", AXES)
    found = metrics_of(less)["contributions"]
    for kinds in (*found["checkpoints"].values(), found["means"]):
        assert list(kinds["several_images"]["parts"]) == ["blank", "removed", "middle"]
        assert list(kinds["several_images"]["to_base"]) == ["as_asked"]
        assert list(kinds["context"]["parts"]) == ["other_context"]
        assert list(kinds["context"]["to_base"]) == ["as_asked", "other_context"]


def test_without_any_variant_the_gain_over_the_base_remains() -> None:
    variants = ("blank", "shuffled", *IMAGE_PARTS, *CONTEXT_PARTS)
    found = metrics_of({name: changed(name, variants) for name in PREDICTIONS})["contributions"]
    for name in NAMES:
        kinds = found["checkpoints"][name]
        assert kinds["context"]["parts"] == kinds["context"]["base_parts"] == {}
        assert list(kinds["several_images"]["to_base"]) == ["as_asked"]
    assert list(found["means"]["context"]) == ["to_base"]


def test_one_checkpoint_alone_has_variants() -> None:
    less = {
        name: rows if name == "mri" else scored(raw_rows(make_predictions(QUESTIONS, name)))
        for name, rows in PREDICTIONS.items()
    }
    found = metrics_of(less)["contributions"]
    assert list(found["checkpoints"]) == ["mri"]
    own_found = found["checkpoints"]["mri"]["several_images"]
    assert own_found["parts"] == FOUND["checkpoints"]["mri"]["several_images"]["parts"]
    assert list(own_found["base_parts"]) == ["shuffled", "blank"], "what any question is asked"
    assert "other_context" not in found["checkpoints"]["mri"]["context"]["to_base"]
    assert found["means"]["context"]["parts"]["no_context"]["checkpoints"] == 1


def test_of_one_question_the_gain_is_known_and_its_interval_is_not() -> None:
    first = own("ct", "several_images")["question_id"].iloc[0]
    rows = {}
    for name, raw in RAW.items():
        plain = raw_rows(make_predictions(QUESTIONS, name))
        rows[name] = scored(
            [
                with_part if with_part["question_id"] == first else row
                for with_part, row in zip(raw, plain, strict=True)
            ]
        )
    found = metrics_of(rows, ("ct",))["contributions"]
    one = found["checkpoints"]["ct"]["several_images"]
    assert (one["n"], one["images"]) == (1, 1)
    for values in (*one["parts"].values(), *one["base_parts"].values(), *one["to_base"].values()):
        assert (values["low"], values["high"]) == (None, None)
        assert values["gain"] == values["accuracy"] - values["other"]
    mean = found["means"]["several_images"]["parts"]["removed"]
    assert (mean["gain"], mean["low"]) == (one["parts"]["removed"]["gain"], None)


def test_questions_that_share_one_image_have_no_interval() -> None:
    rows = {name: frame.assign(image="data/images/ct/1.png") for name, frame in PREDICTIONS.items()}
    found = metrics_of(rows)["contributions"]
    assert found["checkpoints"]["ct"]["context"]["to_base"]["as_asked"]["high"] is None
    assert found["means"]["context"]["to_base"]["as_asked"]["high"] is None


def test_a_resample_without_any_question_of_a_mean_counts_in_no_interval() -> None:
    """Of many images two have the variant, so that one resample in eight draws neither."""
    kept = set(own("ct", "several_images").drop_duplicates("image")["question_id"].iloc[:2])
    less = {
        name: changed(name, ("middle",), {row["question_id"] for row in rows} - kept)
        for name, rows in RAW.items()
    }
    found = metrics_of(less)["contributions"]["means"]["several_images"]["parts"]
    assert 2 <= found["middle"]["n"] <= 4 < found["removed"]["n"], "of two axes one counts twice"
    assert -1 <= found["middle"]["low"] <= found["middle"]["gain"] <= found["middle"]["high"] <= 1
    assert "NaN" not in json.dumps(found)
