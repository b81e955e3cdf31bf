"""Greedy answers: those of transformers' generate, each picture looked at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

from stages.errors import InputError
from stages.grpo import generate
from stages.grpo.batch_size import BatchSize
from stages.grpo.generate import BLANK, Answers, Completion, Key, Question, answer_greedily, cut_windows, window_size
from stages.grpo.greedy import complete_greedily
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


def run(policy: Any, questions: list[Question], batch_size: int | Literal["auto"] = 3, least: int = 2, **settings: Any) -> list[Answers]:
    return list(
        answer_greedily(
            policy,
            processor(),
            questions,
            windows=cut_windows(questions, least),
            batch_size=BatchSize(batch_size, torch.device("cpu")),
            max_new_tokens=12,
            **settings,
        )
    )


def merged(batches: list[Answers]) -> dict[Key, Completion]:
    keys = [key for batch in batches for key in batch.completions]
    assert len(keys) == len(set(keys)), "none is made twice"
    return {key: each for batch in batches for key, each in batch.completions.items()}


@pytest.mark.parametrize("family", [*FAMILIES, "embedded"])
def test_answers_are_those_of_generate_on_each_picture(family: str, tmp_path: Path) -> None:
    policy = (embedded_policy() if family == "embedded" else random_policy(family)).eval()
    given = merged(run(policy, asked(tmp_path)))
    assert len(given) == 9
    for (place, variant), completion in given.items():
        question = asked(tmp_path)[place]
        path = question.pictures[variant]
        with Image.open(question.own if path == BLANK else path) as opened:
            picture = Image.new("RGB", opened.size) if path == BLANK else opened.convert("RGB")
        assert completion.text == by_generate(policy, question.words, picture), (question, variant)
        assert processor().tokenizer.decode(completion.ids, skip_special_tokens=True) == completion.text


def test_the_batch_does_not_matter_and_the_picture_does(tmp_path: Path) -> None:
    policy = random_policy("qwen2_vl")
    whole = merged(run(policy, asked(tmp_path), 4, least=9))
    for size, least, settings in ((1, 1, {}), (2, 2, {"leave": 0.0}), (3, 9, {"leave": 1.0}), ("auto", 9, {"loaders": 2})):
        assert whole == merged(run(policy, asked(tmp_path), size, least, **settings)), (size, least, settings)  # type: ignore[arg-type]
    assert whole[0, "real"] == whole[2, "shuffled"]
    assert whole[0, "real"] != whole[0, "blank"]


@pytest.mark.parametrize("end", [0, 1, 3, None])
def test_what_is_done_is_not_made_again_and_the_rest_comes_out_the_same(tmp_path: Path, end: int | None) -> None:
    policy = random_policy("qwen2_vl")
    whole = run(policy, asked(tmp_path), 2)
    done = merged(whole[:end])
    rest = merged(run(policy, asked(tmp_path), 2, done=done.keys()))
    assert not rest.keys() & done.keys()
    assert rest | done == merged(whole)


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = random_policy("qwen2_vl")
    whole = merged(run(policy, asked(tmp_path), 4, least=9))
    sizes: list[int] = []

    def complete(policy: Any, layers: Any, mask: torch.Tensor, *arguments: Any, **settings: Any) -> list[list[int]]:
        sizes.append(len(mask))
        if len(mask) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return complete_greedily(policy, layers, mask, *arguments, **settings)

    monkeypatch.setattr(generate, "complete_greedily", complete)
    batches = run(policy, asked(tmp_path), "auto", least=9)
    assert merged(batches) == whole
    assert sizes == [9, 9, 9, 8, 4, 2, 2, 2, 2, 1], "from 64 rows on it is halved, once"
    assert {batch.batch_size for batch in batches} == {2}
    with pytest.raises(InputError, match=r"out of GPU memory with evaluate\.batch_size 3 .*2\.00 GiB.*lower it, or set it to auto"):
        run(policy, asked(tmp_path), 3)


def test_windows_keep_the_questions_of_a_picture_together() -> None:
    questions = [Question("Scan?", {"real": name}) for name in "aabbbc"]
    assert cut_windows(questions, 1) == [range(2), range(2, 5), range(5, 6)]
    assert cut_windows(questions, 3) == [range(5), range(5, 6)]
    assert cut_windows(questions, 99) == [range(6)]
    assert cut_windows([], 3) == []
    assert window_size("auto", 10_000, 1) == 512
    assert window_size(64, 10_000, 1) == 256
    assert window_size(1024, 10_000, 1) == 1024
    assert window_size("auto", 160, 8) == 5, "each of eight processes gets some"


def test_each_picture_goes_through_the_tower_once(tmp_path: Path) -> None:
    policy = embedded_policy()
    seen: list[int] = []

    def count(_: object, arguments: tuple[Any, ...], more: dict[str, Any], __: object) -> None:
        seen.append(len(more["grid_thw"] if "grid_thw" in more else arguments[1]))

    policy.model.visual.register_forward_hook(count, with_kwargs=True)
    run(policy, asked(tmp_path), 2, least=9)
    assert sum(seen) == 4, "two pictures, and a black one of the size of each"


def test_a_picture_that_does_not_open_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture", encoding="utf-8")
    question = Question("Scan?", {"real": str(tmp_path / "x.png")})
    for loaders in (0, 2):
        with pytest.raises(InputError, match=r"x.png is no picture that can be opened .*: run `dvc repro resize`"):
            run(embedded_policy(), [question], 1, loaders=loaders)


def test_a_question_that_holds_a_token_of_pictures_is_named(tmp_path: Path) -> None:
    question = Question(f"Scan {processor().image_token}?", {"real": questions(tmp_path)[0]["image"]})
    with pytest.raises(InputError, match=r"the question 'Scan .* has 2 tokens that stand for pictures"):
        run(embedded_policy(), [question])
