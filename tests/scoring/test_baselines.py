"""Baselines without training: chance, majority letter, the base under published protocols."""

from fractions import Fraction

import pandas as pd
import pytest

from stages.answers.extraction import extract_answer
from stages.scoring.baselines import (
    PROTOCOLS,
    Protocol,
    baselines,
    majority_letter,
    score_as_published,
    score_every_way,
)
from stages.scoring.questions import Question
from stages.scoring.tables import Score


@pytest.mark.parametrize(
    ("output", "zero_shot", "tag", "tag_or_raw", "fair"),
    [
        ("B", True, False, True, True),
        ("B.", False, False, False, True),
        ("B) Cyst", False, False, False, True),
        (" B", False, False, False, True),
        ("b", False, False, False, True),
        ("<answer>B</answer>", False, True, True, True),
        ("<answer> B\n</answer>", False, True, True, True),
        ("<think>round</think><answer>B</answer>", False, True, True, True),
        ("<answer>B) Cyst</answer>", False, False, False, True),
        ("<answer>Cyst</answer>", False, False, False, True),
        ("<answer>B</answer><answer>A</answer>", False, True, True, False),
        ("<think><answer>B</answer></think><answer>A</answer>", False, True, True, False),
        ("the answer is B", False, False, False, False),
        ("A", False, False, False, False),
        ("", False, False, False, False),
    ],
)
def test_each_protocol_counts_as_the_released_script_does(
    output: str, zero_shot: bool, tag: bool, tag_or_raw: bool, fair: bool
) -> None:
    correct = extract_answer(output, {"A": "CT", "B": "Cyst"}) == "B"
    rows = pd.DataFrame({"output": [output], "gold": ["B"], "correct": [correct]})
    scores = {name: score.correct == 1 for name, score in score_every_way(rows).items()}
    assert scores == {"fair": fair, "zero-shot": zero_shot, "tag": tag, "tag-or-raw": tag_or_raw}


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_an_empty_table_has_an_empty_score(protocol: Protocol) -> None:
    rows = pd.DataFrame({"output": [], "gold": [], "correct": []})
    assert score_as_published(rows, protocol) == Score(0, 0)


def test_the_majority_letter_of_train_is_scored_on_test() -> None:
    assert majority_letter("ABBC", ["B", "A", "A", "B", "B"]).score == Score(3, 5)
    assert majority_letter("CBBC", "BC").letter == "B"


def test_baselines_of_a_split() -> None:
    train = [
        Question("1", ("x", "y"), 1),
        Question("2", ("x", "y"), 1),
        Question("3", ("x", "y"), 0),
    ]
    test = [Question("4", ("x", "y"), 1), Question("5", ("x", "y", "z", "w"), 3)]
    both = baselines(train, test)
    assert both.chance == Fraction(3, 8)
    assert (both.majority.letter, both.majority.score) == ("B", Score(1, 2))
