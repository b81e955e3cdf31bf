"""Greedy answers: those of transformers' generate, each picture looked at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stages.errors import InputError
from stages.grpo.generate import BLANK, Completion, Question, answer_greedily
from tests.grpo.tiny import FAMILIES, QUESTIONS, embedded_policy, processor, questions, random_policy


def asked(folder: Path) -> list[Question]:
    """Four questions: the two of `questions`, each about both pictures, one of them in three variants."""
    first, second = (row["image"] for row in questions(folder))
    return [
        Question(QUESTIONS[0], {"real": first, "blank": BLANK, "shuffled": second}),
        Question(QUESTIONS[1], {"real": first}),
        Question(QUESTIONS[0], {"real": second, "blank": BLANK, "shuffled": first}),
        Question(QUESTIONS[1], {"real": second, "blank": BLANK}),
    ]


def by_generate(policy: Any, words: str, picture: Image.Image) -> str:
    chat = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": words}]}]
    inputs = processor().apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    written = policy.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text: str = processor().tokenizer.decode(written, skip_special_tokens=True)
    return text


def answers(policy: Any, folder: Path, batch_size: int) -> list[dict[str, Completion]]:
    return [
        each for batch in answer_greedily(policy, processor(), asked(folder), batch_size=batch_size, max_new_tokens=12) for each in batch
    ]


@pytest.mark.parametrize("family", [*FAMILIES, "embedded"])
def test_answers_are_those_of_generate_on_each_picture(family: str, tmp_path: Path) -> None:
    policy = (embedded_policy() if family == "embedded" else random_policy(family)).eval()
    for question, given in zip(asked(tmp_path), answers(policy, tmp_path, 3), strict=True):
        assert given.keys() == question.pictures.keys()
        for variant, path in question.pictures.items():
            with Image.open(question.pictures["real"] if path == BLANK else path) as opened:
                picture = Image.new("RGB", opened.size) if path == BLANK else opened.convert("RGB")
            assert given[variant].text == by_generate(policy, question.words, picture), (question, variant)


def test_the_batch_does_not_matter_and_the_picture_does(tmp_path: Path) -> None:
    policy = random_policy("qwen2_vl")
    whole = answers(policy, tmp_path, 4)
    assert whole == answers(policy, tmp_path, 1)
    assert whole[0]["real"] == whole[2]["shuffled"]
    assert whole[0]["real"] != whole[0]["blank"]


def test_each_picture_goes_through_the_tower_once(tmp_path: Path) -> None:
    policy = embedded_policy()
    seen: list[int] = []

    def count(_: object, arguments: tuple[Any, ...], more: dict[str, Any], __: object) -> None:
        seen.append(len(more["grid_thw"] if "grid_thw" in more else arguments[1]))

    policy.model.visual.register_forward_hook(count, with_kwargs=True)
    answers(policy, tmp_path, 2)
    assert sum(seen) == 4, "two pictures, and a black one of the size of each"


def test_a_picture_that_does_not_open_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture", encoding="utf-8")
    question = Question("Scan?", {"real": str(tmp_path / "x.png")})
    with pytest.raises(InputError, match=r"x.png is no picture that can be opened .*: run `dvc repro resize`"), torch.no_grad():
        list(answer_greedily(embedded_policy(), processor(), [question], batch_size=1, max_new_tokens=2))
