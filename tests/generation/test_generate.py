"""Greedy answers equal those of transformers' generate; each image is prefilled once."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stages.core.errors import InputError
from stages.generation.batch_size import BatchSize
from stages.generation.generate import Answers, Completion, answer_greedily
from stages.generation.windows import BLANK, Key, Question, Variant, Window, cut_windows
from tests.grpo.tiny import (
    FAMILIES,
    QUESTIONS,
    embedded_policy,
    processor,
    questions,
    random_policy,
)


def about(text: str, images: dict[str, str]) -> Question:
    """A question about one image, in some variants of it."""
    return Question({name: Variant(text, (path,)) for name, path in images.items()})


def four_questions(folder: Path) -> list[Question]:
    """Both of `questions` about both images, in one to three variants."""
    first, second = (row["image"] for row in questions(folder))
    return [
        about(QUESTIONS[0], {"real": first, "blank": BLANK, "shuffled": second}),
        about(QUESTIONS[1], {"real": first}),
        about(QUESTIONS[0], {"real": second, "blank": BLANK, "shuffled": first}),
        about(QUESTIONS[1], {"real": second, "blank": BLANK}),
    ]


def by_generate(policy: Any, words: str, image: Image.Image) -> str:
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": words}],
        }
    ]
    inputs = processor().apply_chat_template(
        [chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = policy.generate(**inputs, max_new_tokens=12, do_sample=False)
    completion = ids[0, inputs["input_ids"].shape[1] :]
    text: str = processor().tokenizer.decode(completion, skip_special_tokens=True)
    return text


def batches(
    policy: Any,
    questions: list[Question],
    batch_size: int,
    max_new_tokens: int = 12,
    **options: Any,
) -> list[Answers]:
    size = BatchSize(batch_size, torch.device("cpu"))
    windows = options.pop("windows", cut_windows(questions, batch_size))
    return list(
        answer_greedily(
            policy,
            processor(),
            questions,
            windows=windows,
            batch_size=size,
            max_new_tokens=max_new_tokens,
            **options,
        )
    )


def merged(batches: list[Answers]) -> dict[Key, Completion]:
    return dict(chain.from_iterable(batch.completions.items() for batch in batches))


def answers(policy: Any, folder: Path, batch_size: int, **options: Any) -> dict[Key, Completion]:
    return merged(batches(policy, four_questions(folder), batch_size, **options))


# a penalty changes logits, whatever the family that gave them
@pytest.mark.parametrize(
    ("family", "penalty"),
    [
        *((family, None) for family in (*FAMILIES, "embedded")),
        ("qwen2_vl", 1.05),
        ("qwen2_5_vl", 1.7),
        ("qwen3_vl", 1.7),
        ("embedded", 1.05),
    ],
)
def test_answers_equal_those_of_generate_for_each_image(
    family: str, penalty: float | None, tmp_path: Path
) -> None:
    policy = (embedded_policy() if family == "embedded" else random_policy(family)).eval()
    policy.generation_config.repetition_penalty = penalty
    completions = answers(policy, tmp_path, 3)
    assert len(completions) == sum(len(each.variants) for each in four_questions(tmp_path))
    for index, question in enumerate(four_questions(tmp_path)):
        for variant, (_, (path,)) in question.variants.items():
            with Image.open(question.own_images[0] if path == BLANK else path) as opened:
                image = Image.new("RGB", opened.size) if path == BLANK else opened.convert("RGB")
            expected = by_generate(policy, question.text, image)
            assert completions[index, variant].text == expected, (question, variant)


def test_answers_depend_on_the_image_and_not_on_the_batch_size(tmp_path: Path) -> None:
    policy = random_policy("qwen2_vl")
    together = answers(policy, tmp_path, 4)
    assert together == answers(policy, tmp_path, 1)
    assert together[0, "real"] == together[2, "shuffled"]
    assert together[0, "real"] != together[0, "blank"]


def test_each_image_goes_through_the_tower_once(tmp_path: Path) -> None:
    policy = embedded_policy()
    images: list[int] = []

    def count(_: object, arguments: tuple[Any, ...], named: dict[str, Any], __: object) -> None:
        images.append(len(named["grid_thw"] if "grid_thw" in named else arguments[1]))

    policy.model.visual.register_forward_hook(count, with_kwargs=True)
    answers(policy, tmp_path, 9)  # nine rows in one window
    assert sum(images) == 4, "two images, and a black one of the size of each"


def test_an_image_that_does_not_open_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no image", encoding="utf-8")
    question = about("Scan?", {"real": str(tmp_path / "x.png")})
    with pytest.raises(InputError, match=r"x\.png .*`dvc repro resize`"), torch.no_grad():
        batches(embedded_policy(), [question], 1, max_new_tokens=2)


def test_windows_give_the_same_answers_in_any_order_and_company(tmp_path: Path) -> None:
    policy = embedded_policy()
    windows: list[Window] = [(0, 1), (3, 2)]
    parts = [batches(policy, four_questions(tmp_path), 2, windows=[window]) for window in windows]
    assert parts[0] + parts[1] == batches(policy, four_questions(tmp_path), 2, windows=windows)
    assert parts[1] + parts[0] == batches(
        policy, four_questions(tmp_path), 2, windows=windows[::-1]
    )
    assert batches(policy, four_questions(tmp_path), 2, windows=[]) == []


def test_loader_threads_change_nothing(tmp_path: Path) -> None:
    policy = embedded_policy()
    some = four_questions(tmp_path)
    assert batches(policy, some, 3, loader_threads=2) == batches(policy, some, 3)


def test_finished_rows_leave_the_batch_and_change_nothing(tmp_path: Path) -> None:
    policy = random_policy("qwen2_vl")
    policy.generation_config.eos_token_id = []
    endless = answers(policy, tmp_path, 9)
    # row n ends at its token n at the latest: rows of several lengths
    policy.generation_config.eos_token_id = sorted(
        {each.ids[at] for at, each in enumerate(endless.values())}
    )
    rows: list[int] = []
    hook = policy.register_forward_pre_hook(
        lambda _, __, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    uncompacted = answers(policy, tmp_path, 9, compact_below=0.0)
    uncompacted_rows = rows[1:]  # without the pass over the images
    rows.clear()
    compacted = answers(policy, tmp_path, 9)
    compacted_rows = rows[1:]
    hook.remove()
    assert compacted == uncompacted
    assert len({len(each.ids) for each in compacted.values()}) > 2
    assert all(each.ids == endless[key].ids[: len(each.ids)] for key, each in compacted.items())
    assert sum(compacted_rows) < sum(uncompacted_rows)
    assert compacted_rows[-1] < 9
    assert len(compacted_rows) == max(len(each.ids) for each in compacted.values()), (
        "one pass per token, until the last row has ended"
    )


def test_the_longest_prompts_go_first_with_little_padding(tmp_path: Path) -> None:
    images = [row["image"] for row in questions(tmp_path)]
    some = [about(QUESTIONS[number % 2], {"real": images[number // 4]}) for number in range(8)]
    rows: list[torch.Tensor] = []
    policy = embedded_policy()
    policy.register_forward_pre_hook(
        lambda _, __, named: rows.append(named["input_ids"]), with_kwargs=True
    )
    batches(policy, some, 2, max_new_tokens=1, windows=[tuple(range(8))])
    widths = [ids.shape[1] for ids in rows[1:]]
    assert [len(ids) for ids in rows[1:]] == [2, 2, 2, 2]
    pad = processor().tokenizer.pad_token_id
    padding = sum(int((ids == pad).sum()) for ids in rows[1:])
    assert padding == 0, "each batch has prompts of one length"
    assert widths[0] > widths[1]


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = embedded_policy()
    expected = answers(policy, tmp_path, 9)
    forward = policy.forward
    attempts = []

    def limited(*arguments: Any, **options: Any) -> Any:
        attempts.append(len(options["input_ids"]))
        if attempts[-1] > 2 and "pixel_values" not in options:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(*arguments, **options)

    monkeypatch.setattr(policy, "forward", limited)
    size = BatchSize("auto", torch.device("cpu"))
    size.rows = 9
    answered = list(
        answer_greedily(
            policy,
            processor(),
            four_questions(tmp_path),
            windows=[(0, 1, 2, 3)],
            batch_size=size,
            max_new_tokens=12,
        )
    )
    assert merged(answered) == expected
    assert attempts[1:4] == [9, 4, 2], "behind the pass over 4 images"
    assert answered[0].batch_sizes == [2]
    with pytest.raises(InputError, match=r"evaluate\.batch_size 9 \(CUDA out of memory.* auto"):
        batches(policy, four_questions(tmp_path), 9, windows=[(0, 1, 2, 3)])


def test_images_that_do_not_fit_together_are_prefilled_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = embedded_policy()
    expected = answers(policy, tmp_path, 9)
    forward = policy.forward
    most = 1

    def limited(*arguments: Any, **options: Any) -> Any:
        if "pixel_values" in options and len(options["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*arguments, **options)

    monkeypatch.setattr(policy, "forward", limited)
    texts = {key: each.text for key, each in answers(policy, tmp_path, 9).items()}
    assert texts == {key: each.text for key, each in expected.items()}
    most = 0
    with pytest.raises(InputError, match=r"one image \(CUDA out of memory\).* base\.max_pixels"):
        answers(policy, tmp_path, 9)


def test_a_question_with_an_image_token_is_refused(tmp_path: Path) -> None:
    row, _ = questions(tmp_path)
    question = about(f"Scan? {processor().image_token}", {"real": row["image"]})
    with pytest.raises(InputError, match=r"'Scan\? .*' has 2 image tokens, expected 1"):
        batches(embedded_policy(), [question], 1)


def test_a_repetition_penalty_changes_answers_and_not_with_the_batch_size(tmp_path: Path) -> None:
    policy = random_policy("qwen2_5_vl")
    plain = answers(policy, tmp_path, 4)
    policy.generation_config.repetition_penalty = 1.7
    penalised = answers(policy, tmp_path, 4)
    assert penalised != plain
    assert penalised == answers(policy, tmp_path, 1)
    assert penalised == answers(policy, tmp_path, 4, compact_below=0.0)
