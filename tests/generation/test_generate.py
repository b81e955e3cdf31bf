"""Greedy answers: those of transformers' generate, each image looked at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image

from stages.core.errors import InputError
from stages.generation.batch_size import BatchSize
from stages.generation.generate import (
    BLANK,
    Answers,
    Completion,
    Key,
    Question,
    answer_greedily,
    cut_windows,
)
from tests.grpo.tiny import (
    FAMILIES,
    QUESTIONS,
    embedded_policy,
    processor,
    questions,
    random_policy,
)


def asked(folder: Path) -> list[Question]:
    """Four questions: both of `questions` about both images, one of them in three variants."""
    first, second = (row["image"] for row in questions(folder))
    return [
        Question(QUESTIONS[0], {"real": first, "blank": BLANK, "shuffled": second}),
        Question(QUESTIONS[1], {"real": first}),
        Question(QUESTIONS[0], {"real": second, "blank": BLANK, "shuffled": first}),
        Question(QUESTIONS[1], {"real": second, "blank": BLANK}),
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
    written = policy.generate(**inputs, max_new_tokens=12, do_sample=False)[
        0, inputs["input_ids"].shape[1] :
    ]
    text: str = processor().tokenizer.decode(written, skip_special_tokens=True)
    return text


def batches(
    policy: Any,
    questions: list[Question],
    batch_size: int | Literal["auto"],
    most: int = 12,
    **more: Any,
) -> list[Answers]:
    size = BatchSize(batch_size, torch.device("cpu"))
    windows = more.pop("windows", cut_windows(questions, batch_size))
    return [
        *answer_greedily(
            policy,
            processor(),
            questions,
            windows=windows,
            batch_size=size,
            max_new_tokens=most,
            **more,
        )
    ]


def answers(policy: Any, folder: Path, batch_size: int, **more: Any) -> dict[Key, Completion]:
    return {
        key: each
        for batch in batches(policy, asked(folder), batch_size, **more)
        for key, each in batch.completions.items()
    }


@pytest.mark.parametrize("family", [*FAMILIES, "embedded"])
def test_answers_are_those_of_generate_on_each_image(family: str, tmp_path: Path) -> None:
    policy = (embedded_policy() if family == "embedded" else random_policy(family)).eval()
    given = answers(policy, tmp_path, 3)
    assert len(given) == sum(len(question.images) for question in asked(tmp_path))
    for place, question in enumerate(asked(tmp_path)):
        for variant, path in question.images.items():
            with Image.open(question.images["real"] if path == BLANK else path) as opened:
                image = Image.new("RGB", opened.size) if path == BLANK else opened.convert("RGB")
            assert given[place, variant].text == by_generate(policy, question.words, image), (
                question,
                variant,
            )


def test_the_batch_does_not_matter_and_the_image_does(tmp_path: Path) -> None:
    policy = random_policy("qwen2_vl")
    whole = answers(policy, tmp_path, 4)
    assert whole == answers(policy, tmp_path, 1)
    assert whole[0, "real"] == whole[2, "shuffled"]
    assert whole[0, "real"] != whole[0, "blank"]


def test_each_image_goes_through_the_tower_once(tmp_path: Path) -> None:
    policy = embedded_policy()
    seen: list[int] = []

    def count(_: object, arguments: tuple[Any, ...], more: dict[str, Any], __: object) -> None:
        seen.append(len(more["grid_thw"] if "grid_thw" in more else arguments[1]))

    policy.model.visual.register_forward_hook(count, with_kwargs=True)
    answers(policy, tmp_path, 4)
    assert sum(seen) == 4, "two images, and a black one of the size of each"


def test_an_image_that_does_not_open_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no image", encoding="utf-8")
    question = Question("Scan?", {"real": str(tmp_path / "x.png")})
    with (
        pytest.raises(
            InputError, match=r"x.png is not a readable image .*: run `dvc repro resize`"
        ),
        torch.no_grad(),
    ):
        batches(embedded_policy(), [question], 1, most=2)


def test_what_is_done_is_not_done_again_and_the_rest_is_the_same_to_the_bit(tmp_path: Path) -> None:
    policy = embedded_policy()
    whole = batches(policy, asked(tmp_path), 3)
    assert [len(each.completions) for each in whole] == [3, 3, 3]
    done = whole[1].completions.keys()
    assert batches(policy, asked(tmp_path), 3, done=done) == [whole[0], whole[2]]
    part = batches(policy, asked(tmp_path), 3, done={*list(done)[:2]})
    assert [each.completions.keys() for each in part] == [
        whole[0].completions.keys(),
        {list(done)[2]},
        whole[2].completions.keys(),
    ]
    assert (
        batches(
            policy, asked(tmp_path), 3, done={key for each in whole for key in each.completions}
        )
        == []
    )


def test_windows_of_one_process_and_of_several_give_the_same(tmp_path: Path) -> None:
    policy = embedded_policy()
    windows = [range(2), range(2, 4)]
    parts = [batches(policy, asked(tmp_path), 2, windows=[window]) for window in windows]
    assert parts[0] + parts[1] == batches(policy, asked(tmp_path), 2, windows=windows)


def test_threads_that_open_images_ahead_change_nothing(tmp_path: Path) -> None:
    policy = embedded_policy()
    assert batches(policy, asked(tmp_path), 3, loaders=2) == batches(policy, asked(tmp_path), 3)


def test_rows_that_have_ended_leave_the_batch_and_change_nothing(tmp_path: Path) -> None:
    policy = random_policy("qwen2_vl")
    policy.generation_config.eos_token_id = []
    endless = answers(policy, tmp_path, 9)
    policy.generation_config.eos_token_id = sorted(
        {each.ids[at] for at, each in enumerate(endless.values())}
    )
    rows: list[int] = []
    hook = policy.register_forward_pre_hook(
        lambda _, __, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    staying = answers(policy, tmp_path, 9, leave=0.0)
    stayed, rows[:] = rows[1:], []
    leaving = answers(policy, tmp_path, 9)
    hook.remove()
    assert leaving == staying
    assert len({len(each.ids) for each in leaving.values()}) > 2
    assert all(each.ids == endless[key].ids[: len(each.ids)] for key, each in leaving.items())
    assert sum(rows[1:]) < sum(stayed)
    assert rows[-1] < 9
    assert len(rows[1:]) == max(len(each.ids) for each in leaving.values()), (
        "one pass a token, until the last has ended"
    )


def test_the_longest_prompts_go_first_and_the_padding_is_little(tmp_path: Path) -> None:
    first, second = (row["image"] for row in questions(tmp_path))
    some = [
        Question(QUESTIONS[number % 2], {"real": (first, second)[number // 4]})
        for number in range(8)
    ]
    widths: list[int] = []
    policy = embedded_policy()
    policy.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    made = batches(policy, some, 2, most=1, windows=[range(8)])
    assert [sorted(place for place, _ in each.completions) for each in made] == [
        [1, 3],
        [0, 2],
        [5, 7],
        [4, 6],
    ]
    assert widths[1] > widths[2]


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = embedded_policy()
    expected = answers(policy, tmp_path, 9)
    forward, tried = policy.forward, []

    def short(*arguments: Any, **more: Any) -> Any:
        tried.append(len(more["input_ids"]))
        if tried[-1] > 2 and "pixel_values" not in more:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(*arguments, **more)

    monkeypatch.setattr(policy, "forward", short)
    size = BatchSize("auto", torch.device("cpu"))
    size.rows = 9
    made = [
        *answer_greedily(
            policy,
            processor(),
            asked(tmp_path),
            windows=[range(4)],
            batch_size=size,
            max_new_tokens=12,
        )
    ]
    assert {key: each for batch in made for key, each in batch.completions.items()} == expected
    assert tried[1:4] == [9, 4, 2], "4 images first"
    assert [(len(each.completions), each.batch_size) for each in made] == [(2, 2)] * 4 + [(1, 2)]
    with pytest.raises(
        InputError,
        match=(
            r"out of GPU memory with evaluate.batch_size 9 \(CUDA out of memory.*: lower it, or set"
            r" it to auto"
        ),
    ):
        batches(policy, asked(tmp_path), 9, windows=[range(4)])


def test_images_that_do_not_fit_together_go_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = embedded_policy()
    expected = answers(policy, tmp_path, 9)
    forward, most = policy.forward, 1

    def short(*arguments: Any, **more: Any) -> Any:
        if "pixel_values" in more and len(more["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*arguments, **more)

    monkeypatch.setattr(policy, "forward", short)
    assert {key: each.text for key, each in answers(policy, tmp_path, 9).items()} == {
        key: each.text for key, each in expected.items()
    }
    most = 0
    with pytest.raises(
        InputError,
        match=r"out of GPU memory with one image \(CUDA out of memory\): set base.max_pixels lower",
    ):
        answers(policy, tmp_path, 9)


def test_a_question_that_stands_for_an_image_itself_is_refused(tmp_path: Path) -> None:
    row, _ = questions(tmp_path)
    question = Question(f"Scan? {processor().image_token}", {"real": row["image"]})
    with pytest.raises(
        InputError, match=r"'Scan\? .*' has 2 tokens that stand for images, its image needs 1"
    ):
        batches(embedded_policy(), [question], 1)


@pytest.mark.parametrize(("batch_size", "lengths"), [(2, [8, 8, 4]), (100, [20]), ("auto", [20])])
def test_an_image_s_questions_are_in_one_window(
    batch_size: int | Literal["auto"], lengths: list[int]
) -> None:
    some = [Question("Scan?", {"real": str(number // 4)}) for number in range(20)]
    assert [len(window) for window in cut_windows(some, batch_size)] == lengths
    assert [place for window in cut_windows(some, batch_size) for place in window] == [*range(20)]
    assert cut_windows([], batch_size) == []
