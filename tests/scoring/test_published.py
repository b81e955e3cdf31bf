"""The published numbers are consistent with each other, so were copied correctly."""

import json
import math
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest

from stages.scoring.published.entries import Published, PublishedTable
from stages.scoring.published.med_r1 import HEADLINES, NO_THINK_MINUS_THINK
from stages.scoring.published.released_splits import SPLITS, PublishedSplit
from stages.scoring.published.third_party import THIRD_PARTY
from tests.omnimedvqa import AXES

TESTED = {(split.axis, split.slug): split.test for split in SPLITS}


@pytest.mark.parametrize("axis", AXES)
def test_differences_are_whole_numbers_of_test_questions(axis: str) -> None:
    """Each is a difference of accuracies rounded to 0.01; a wrong digit would not be whole."""
    table = NO_THINK_MINUS_THINK[axis]
    for row in table.values:
        for cell, value in zip(table.cells, row, strict=True):
            questions = value / 100 * TESTED[axis, cell]
            assert abs(questions - round(questions)) <= 0.01 / 100 * TESTED[axis, cell] + 1e-9


def test_differences_have_one_row_and_one_column_per_cell() -> None:
    for axis, table in NO_THINK_MINUS_THINK.items():
        assert table.cells == AXES[axis]
        assert np.shape(table.values) == (len(table.cells), len(table.cells))


@pytest.mark.parametrize(
    ("axis", "mean", "in_domain", "cross_domain"),
    [("modality", 2.57, 1.67, 2.70), ("task", 0.58, 2.69, 0.06)],
)
def test_means_agree_with_the_published_cells(
    axis: str, mean: float, in_domain: float, cross_domain: float
) -> None:
    table = NO_THINK_MINUS_THINK[axis]
    values = np.array(table.values)
    assert (table.mean, table.in_domain, table.cross_domain) == pytest.approx(
        (mean, in_domain, cross_domain), abs=0.005
    )
    assert table.in_domain == pytest.approx(np.diag(values).mean())
    assert table.at(table.cells[1], table.cells[0]) == values[1, 0]


def test_rows_are_training_and_columns_tests() -> None:
    assert NO_THINK_MINUS_THINK["modality"].at("mri", "ct") == 16.94
    assert NO_THINK_MINUS_THINK["task"].at("disease-diagnosis", "lesion-grading") == -10.09


def test_split_sizes_sum_to_the_totals() -> None:
    for axis, slugs in AXES.items():
        own = [split for split in SPLITS if split.axis == axis]
        assert [split.slug for split in own] == list(slugs)
        for split in own:
            assert split.train + split.test == split.total
            assert split.test / split.total == pytest.approx(0.2, abs=0.02)
    totals = {axis: sum(split.total for split in SPLITS if split.axis == axis) for axis in AXES}
    assert totals == {"modality": 88_996 - 1, "task": 88_996}
    assert sum(split.test for split in SPLITS if split.axis == "modality") == 17_662


def test_chance_agrees_with_the_option_counts() -> None:
    for split in SPLITS:
        four = split.test - split.two_options - split.three_options
        guessed = (
            Fraction(split.two_options, 2) + Fraction(split.three_options, 3) + Fraction(four, 4)
        )
        assert split.chance == pytest.approx(100 * float(guessed / split.test), abs=0.005)
        assert split.chance - 2 < split.majority_letter < 100
    assert np.mean([split.chance for split in SPLITS if split.axis == "modality"]) == pytest.approx(
        27.25, abs=0.01
    )


def test_every_number_has_a_source_and_a_caveat() -> None:
    entries: list[Published | PublishedSplit | PublishedTable] = [
        *HEADLINES,
        *THIRD_PARTY,
        *SPLITS,
        *NO_THINK_MINUS_THINK.values(),
    ]
    for entry in entries:
        assert len(entry.source) > 5
        assert len(entry.caveat) > 20
    for number in chain(HEADLINES, THIRD_PARTY):
        assert math.isfinite(number.value)
        assert 0 < number.value < 100
    stated = [(number.subject, number.measure, number.source) for number in THIRD_PARTY]
    assert len(set(stated)) == len(stated)


def test_published_numbers_cannot_be_mistaken_for_results() -> None:
    assert not isinstance(NO_THINK_MINUS_THINK["task"], dict)
    assert "accuracy" not in vars(NO_THINK_MINUS_THINK["task"])
    with pytest.raises(TypeError, match=PublishedTable.__name__):
        json.dumps(NO_THINK_MINUS_THINK["task"])
