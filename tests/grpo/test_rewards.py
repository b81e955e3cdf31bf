"""Cases of the two rewards."""

import pytest

from stages.grpo.rewards import format_reward, reward_functions
from stages.prompts.styles import PROMPTS, Style, chat, prompt_text


@pytest.mark.parametrize(
    ("style", "completion", "reward"),
    [
        ("no-think", "<answer> C </answer>", 1.0),
        ("no-think", "\n<answer>C</answer> ", 1.0),
        ("no-think", "<answer></answer>", 1.0),
        ("no-think", "<answer> C </answer> because", 0.0),
        ("no-think", "<answer> A </answer><answer> B </answer>", 0.0),
        ("no-think", "<answer><answer> A </answer></answer>", 0.0),
        ("no-think", "<think> x </think><answer> A </answer>", 0.0),
        ("no-think", "<answer> A", 0.0),
        ("no-think", "A", 0.0),
        ("no-think", "", 0.0),
        ("think", "<think> a\nb </think>\n<answer> A </answer>", 1.0),
        ("think", "<answer> A </answer><think> a </think>", 0.0),
        ("think", "<answer> A </answer>", 0.0),
        ("think", "<think> <answer> B </answer> </think><answer> A </answer>", 0.0),
        ("think", "<think> a </think><think> b </think><answer> A </answer>", 0.0),
        ("think-after", "<answer> A </answer> <think> a </think>", 1.0),
        ("think-after", "<think> a </think> <answer> A </answer>", 0.0),
    ],
)
def test_format_requires_each_block_once_in_order_and_nothing_else(
    style: Style, completion: str, reward: float
) -> None:
    chat = [{"role": "assistant", "content": completion}]
    assert format_reward(style)(completions=[chat]) == [reward]


def test_accuracy_compares_the_answer_with_the_gold_letter_of_its_own_question() -> None:
    (accuracy,) = reward_functions(["accuracy"], "no-think")
    completions = [
        [{"role": "assistant", "content": text}]
        for text in ("<answer> B </answer>", "<answer> B </answer>", "<answer> D </answer>")
    ]
    rewards = accuracy(
        completions=completions,
        gold=["B", "A", "D"],
        options=[["CT", "PET"], ["CT", "PET"], ["x", "y", "z"]],
    )
    assert rewards == [1.0, 0.0, 0.0]


def test_rewards_keep_the_order_and_names_of_params() -> None:
    functions = reward_functions(["format", "accuracy"], "think")
    assert [function.__name__ for function in functions] == ["format", "accuracy"]


@pytest.mark.parametrize("style", ["think", "no-think", "think-after"])
def test_braces_in_a_problem_are_not_formatted(style: Style) -> None:
    problem = "What is {this} {0}? A){x}, B)y"
    for purpose in PROMPTS:
        assert prompt_text(problem, style, purpose).startswith(problem + " ")


def test_the_image_comes_before_the_words() -> None:
    (turn,) = chat("What?")
    assert [part["type"] for part in turn["content"]] == ["image", "text"]
