"""Accuracies with their counts, and the validation of predictions."""

from typing import Any

import pandas as pd
import pytest

from stages.core.errors import InputError
from stages.predictions.schema import ABLATIONS
from stages.scoring import tables
from stages.scoring.tables import Score
from tests.fakes import CHECKPOINTS, make_predictions, make_questions
from tests.omnimedvqa import AXES
from tests.several_images import scored, with_parts

SOURCE = "predictions/ct.parquet"
QUESTIONS = make_questions(per_cell=8)


@pytest.fixture
def base() -> pd.DataFrame:
    return make_predictions(QUESTIONS, "base")


@pytest.fixture
def ct() -> pd.DataFrame:
    return make_predictions(QUESTIONS, "ct")


def refusal(predictions: pd.DataFrame, checkpoint: str = "ct", axis: str = "modality") -> str:
    with pytest.raises(InputError) as error:
        tables.check_predictions(predictions, checkpoint, axis, SOURCE, AXES)
    return str(error.value)


def changed(predictions: pd.DataFrame, column: str, value: Any, row: int = 3) -> pd.DataFrame:
    predictions = predictions.astype({column: object})
    predictions.loc[row, column] = value
    return predictions if value is None else predictions.infer_objects()


def test_micro_counts_questions_and_macro_counts_cells(base: pd.DataFrame) -> None:
    rows = base.iloc[:4].assign(
        modality=["ct", "ct", "ct", "mri"], correct=[True, True, True, False]
    )
    scores = tables.scores_by(rows, "modality")
    assert scores == {"ct": Score(3, 3), "mri": Score(0, 1)}
    assert tables.score(rows).accuracy == 0.75
    assert tables.macro(scores) == 0.5


@pytest.mark.parametrize("column", ["modality", "question_type", "dataset"])
def test_slices_sum_to_the_whole(base: pd.DataFrame, column: str) -> None:
    scores = tables.scores_by(base, column)
    assert sum(cell.n for cell in scores.values()) == len(base)
    assert sum(cell.correct for cell in scores.values()) == base["correct"].sum()
    assert all(
        cell.accuracy == base[base[column] == name]["correct"].mean()
        for name, cell in scores.items()
    )


def test_an_empty_cell_is_missing_and_so_is_a_mean_over_it(base: pd.DataFrame) -> None:
    rows = base[base["modality"] != "oct"]
    scores = tables.scores_by(rows, "modality", AXES["modality"])
    assert list(scores) == list(AXES["modality"])
    assert scores["oct"] == Score(0, 0)
    assert scores["oct"].accuracy is None
    assert tables.macro(scores) is None
    assert tables.macro({}) is None


@pytest.mark.parametrize(
    ("axis", "column", "size"), [("modality", "modality", 8), ("task", "question_type", 5)]
)
def test_the_cross_table_has_one_row_per_checkpoint_below_the_base(
    axis: str, column: str, size: int
) -> None:
    names = ["base", *(name for name, own in CHECKPOINTS.items() if own == axis)]
    predictions = {name: make_predictions(QUESTIONS, name) for name in names}
    table = tables.cross_table(predictions, axis, column, AXES)
    assert list(table.values) == names
    assert len(table.questions) == size == len(names) - 1
    for name, row in table.values.items():
        rows = predictions[name][predictions[name][f"{axis}_test"]]
        for cell in AXES[axis]:
            own = rows[rows[column] == cell]
            assert row[cell] == own["correct"].mean()
            assert table.questions[cell] == len(own)
        assert row["macro"] == pytest.approx(rows.groupby(column)["correct"].mean().mean())


def test_a_cross_table_shows_an_empty_cell_as_missing(base: pd.DataFrame) -> None:
    table = tables.cross_table(
        {"base": base[base["modality"] != "oct"]}, "modality", "modality", AXES
    )
    assert table.questions["oct"] == 0
    assert table.values["base"]["oct"] is None
    assert table.values["base"]["macro"] is None


@pytest.mark.parametrize("checkpoint", ["base", *CHECKPOINTS])
def test_good_predictions_pass(checkpoint: str) -> None:
    tables.check_predictions(
        make_predictions(QUESTIONS, checkpoint),
        checkpoint,
        CHECKPOINTS.get(checkpoint, "all"),
        SOURCE,
        AXES,
    )


def test_predictions_without_any_readable_answer_pass(ct: pd.DataFrame) -> None:
    tables.check_predictions(ct.assign(answer=None, correct=False), "ct", "modality", SOURCE, AXES)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("checkpoint", "mri", "checkpoint 'mri'"),
        ("modality", "pet", "modality 'pet' is not one of ct, mri"),
        (
            "question_type",
            "Lesion Grading",
            "'Lesion Grading' is not one of anatomy-identification",
        ),
        ("modality_test", False, "axis 'modality'"),
        ("gold", "Z", "gold 'Z'"),
        ("gold", "AB", "gold 'AB'"),
    ],
)
def test_a_wrong_value_is_named_with_its_question_and_the_remedy(
    ct: pd.DataFrame, column: str, value: object, message: str
) -> None:
    row = int(ct["correct"].to_numpy().argmax())
    error = refusal(changed(ct, column, value, row))
    assert error.startswith(f"{SOURCE}: question {ct['question_id'].iloc[row]!r}: ")
    assert message in error
    assert "dvc repro --single-item --force evaluate@ct" in error


def test_a_duplicate_question_is_refused(ct: pd.DataFrame) -> None:
    name = ct["question_id"].iloc[3]
    assert f"question_id {name!r} is a duplicate" in refusal(changed(ct, "question_id", name, 4))


def test_an_empty_table_is_refused(ct: pd.DataFrame) -> None:
    assert f"{SOURCE}: no predictions" in refusal(ct.iloc[:0])


def test_a_checkpoint_without_in_domain_questions_is_refused(ct: pd.DataFrame) -> None:
    message = refusal(ct[ct["modality"] != "ct"])
    assert "modality ct" in message
    assert "params.yaml" in message


def test_the_same_questions_pass(base: pd.DataFrame, ct: pd.DataFrame) -> None:
    tables.check_same_questions(base, ct, "modality", SOURCE)


def test_a_question_that_only_one_side_answered_is_named(
    base: pd.DataFrame, ct: pd.DataFrame
) -> None:
    name = ct["question_id"].iloc[0]
    with pytest.raises(
        InputError, match=f"{SOURCE}: question '{name}', .* only in the base's predictions"
    ):
        tables.check_same_questions(base, ct.iloc[1:], "modality", SOURCE)
    with pytest.raises(
        InputError, match=f"{SOURCE}: question '{name}', .* missing from the base's predictions"
    ):
        tables.check_same_questions(base[base["question_id"] != name], ct, "modality", SOURCE)


def test_a_gold_letter_other_than_the_base_s_is_refused(
    base: pd.DataFrame, ct: pd.DataFrame
) -> None:
    with pytest.raises(InputError, match=r"gold 'Z', but '[A-D]' for the base"):
        tables.check_same_questions(base, changed(ct, "gold", "Z"), "modality", SOURCE)


def test_predictions_without_ablations_pass() -> None:
    tables.check_predictions(
        make_predictions(QUESTIONS, "ct", ablations=False), "ct", "modality", SOURCE, AXES
    )


def test_a_question_without_a_shuffled_image_passes(ct: pd.DataFrame) -> None:
    columns = ct.columns[ct.columns.str.startswith("shuffled_")]
    ct[columns] = ct[columns].astype(object)
    ct.loc[3:7, columns] = None
    tables.check_predictions(ct, "ct", "modality", SOURCE, AXES)


@pytest.mark.parametrize("variant", ABLATIONS)
@pytest.mark.parametrize("field", ["image", "output", "completion_tokens"])
def test_incomplete_ablations_are_refused(ct: pd.DataFrame, variant: str, field: str) -> None:
    message = refusal(changed(ct, f"{variant}_{field}", None))
    assert f"question {ct['question_id'].iloc[3]!r}" in message
    assert f"{variant}_image" in message
    assert "evaluate@ct" in message


@pytest.mark.parametrize(("column", "value"), [("n_options", 1), ("completion_tokens", -1)])
def test_impossible_numbers_are_refused(ct: pd.DataFrame, column: str, value: int) -> None:
    assert f"{column} {value}" in refusal(changed(ct, column, value))


def test_a_checkpoint_needs_questions_of_the_cell_it_was_trained_on(ct: pd.DataFrame) -> None:
    rows = ct.assign(checkpoint="sft-ct")
    tables.check_predictions(rows, "sft-ct", "modality", SOURCE, AXES, cells=["ct"])
    rows = rows[rows["modality"] != "oct"]
    with pytest.raises(InputError, match="modality oct, so sft-ct"):
        tables.check_predictions(rows, "sft-ct", "modality", SOURCE, AXES, cells=["oct"])


def test_tables_of_visual_gain_and_of_the_difference_to_the_base() -> None:
    names = ["base", *AXES["modality"]]
    predictions = {name: make_predictions(QUESTIONS, name) for name in names}
    targets = {name: tables.Target("modality", name) for name in AXES["modality"]}
    accuracy = tables.cross_table(predictions, "modality", "modality", AXES, targets)
    visual = tables.cross_visual_gain(predictions, "modality", "modality", AXES, targets)
    to_base = tables.cross_to_base(accuracy)
    assert accuracy.own == visual.own == to_base.own == {name: name for name in AXES["modality"]}
    assert list(visual.values) == names
    assert list(to_base.values) == names[1:]
    for name, rows in predictions.items():
        for cell in AXES["modality"]:
            own = rows[rows["modality_test"] & (rows["modality"] == cell)]
            assert visual.values[name][cell] == pytest.approx(
                own["correct"].mean() - own["shuffled_correct"].astype(float).mean()
            )
            if name != "base":
                ours = accuracy.values[name][cell]
                base = accuracy.values["base"][cell]
                assert ours is not None
                assert base is not None
                assert to_base.values[name][cell] == pytest.approx(ours - base)


def test_without_ablations_a_table_of_visual_gains_is_empty() -> None:
    predictions = {
        name: make_predictions(QUESTIONS, name, ablations=False) for name in ("base", "ct")
    }
    visual = tables.cross_visual_gain(predictions, "modality", "modality", AXES)
    assert not visual.has_numbers
    assert set(visual.questions.values()) == {0}
    assert tables.cross_table(predictions, "modality", "modality", AXES).has_numbers


@pytest.fixture(scope="module")
def several() -> pd.DataFrame:
    return scored(with_parts(make_predictions(QUESTIONS, "ct")))


def test_questions_about_several_images_and_with_context_pass(several: pd.DataFrame) -> None:
    assert several["images"].notna().any()
    assert several["context"].notna().any()
    tables.check_predictions(several, "ct", "modality", SOURCE, AXES)


@pytest.mark.parametrize(
    ("column", "named"),
    [
        ("removed_images", "removed_images"),
        ("removed_output", "removed_images"),
        ("middle_completion_tokens", "middle_completion_tokens"),
        ("other_context_context", "other_context_context"),
        ("no_context_completion_tokens", "no_context_completion_tokens"),
        ("images", "removed_output"),
        ("context", "no_context_output"),
        ("shuffled_images", "shuffled_image"),
    ],
)
def test_an_incomplete_variant_is_refused(several: pd.DataFrame, column: str, named: str) -> None:
    needed = "context" if "context" in column else "images"
    row = int(several[several[needed].notna()].index[0])
    message = refusal(changed(several, column, None, row))
    assert f"question {several['question_id'].iloc[row]!r}: " in message
    assert named in message
    assert "evaluate@ct" in message


def test_several_exchanged_images_of_a_question_about_one_are_refused(
    several: pd.DataFrame,
) -> None:
    rows = several.to_dict("records")
    single = next(row for row in rows if row["images"] is None)
    single["shuffled_images"] = ["a.png", "b.png"]
    assert "inconsistent with shuffled_images" in refusal(pd.DataFrame(rows))
