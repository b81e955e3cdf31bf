"""Questions about several images, with context, in every variant: answered as by `generate`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stages.core.errors import InputError
from stages.corpus.dataset.image_store import open_image
from stages.corpus.dataset.split_files import images_of
from stages.generation import image_prefill
from stages.generation.batch_size import BatchSize
from stages.generation.generate import Answers, Completion, answer_greedily
from stages.generation.variants import REAL, build_questions
from stages.generation.windows import BLANK, Key, Question, Variant, Window, cut_windows
from stages.policy.loading import vision_token_ids
from stages.predictions.schema import VARIANTS
from stages.prompts.styles import chat
from tests.grpo.tiny import (
    FAMILIES,
    QUESTIONS,
    count_processed_images,
    drawn_images,
    embedded_policy,
    processor,
    random_policy,
)

SIZES = ((96, 96), (96, 144), (192, 144), (48, 96))
COUNTS = (1, 1, 2, 2, 8, 8)
"""Images of each question."""
CONTEXTS = (None, "63-year-old woman.", "Fell.", None, "Fell.", "Cough for 2 weeks.")
NEW_TOKENS = 6


def draw_images(folder: Path, count: int) -> list[str]:
    paths = [folder / f"{number}.png" for number in range(count)]
    sizes = tuple(SIZES[number % len(SIZES)] for number in range(count))
    for path, content in zip(paths, drawn_images(11, sizes), strict=True):
        path.write_bytes(content)
    return list(map(str, paths))


def items(folder: Path) -> list[dict[str, Any]]:
    """Items of a split: 1, 2, 3 and 8 images of several sizes, some with context."""
    paths = iter(draw_images(folder, sum(COUNTS)))
    made = []
    for number, (count, context) in enumerate(zip(COUNTS, CONTEXTS, strict=True)):
        images = [next(paths) for _ in range(count)]
        item: dict[str, Any] = {
            "question_id": f"q{number}",
            "modality": "ct",
            "image": images[count // 2],
            "problem": QUESTIONS[number % 2],
        }
        item |= {"images": images} if count > 1 else {}
        made.append(item | ({"context": context} if context else {}))
    return made


def ablated(folder: Path) -> list[Question]:
    return build_questions(items(folder), "no-think", ablations=True)


def answered(
    policy: Any, questions: list[Question], batch_size: int, **options: Any
) -> list[Answers]:
    options.setdefault("windows", cut_windows(questions, batch_size))
    return list(
        answer_greedily(
            policy,
            processor(),
            questions,
            batch_size=BatchSize(batch_size, torch.device("cpu")),
            max_new_tokens=NEW_TOKENS,
            **options,
        )
    )


def merged(windows: list[Answers]) -> dict[Key, Completion]:
    return dict(chain.from_iterable(window.completions.items() for window in windows))


def everything(questions: list[Question]) -> list[Window]:
    return [tuple(range(len(questions)))]


def model_inputs(question: Question, variant: Variant) -> dict[str, torch.Tensor]:
    """What transformers' own processor makes of one prompt with its images."""
    images = []
    for place, path in enumerate(variant.images):
        if path == BLANK:
            images.append(Image.new("RGB", open_image(question.own_images[place]).size))
        else:
            images.append(open_image(path))
    (turn,) = chat(variant.text, len(images))
    following = iter(images)
    content = [
        {**part, "image": next(following)} if part["type"] == "image" else part
        for part in turn["content"]
    ]
    inputs: dict[str, torch.Tensor] = processor().apply_chat_template(
        [[{**turn, "content": content}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return inputs


def by_generate(policy: Any, question: Question, variant: Variant) -> tuple[int, ...]:
    """Token ids of transformers' own answer."""
    inputs = model_inputs(question, variant)
    ids = policy.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        suppress_tokens=vision_token_ids(processor()),
    )
    return tuple(ids[0, inputs["input_ids"].shape[1] :].tolist())


def built(family: str, penalty: float | None = None) -> Any:
    policy = (embedded_policy() if family == "embedded" else random_policy(family)).eval()
    policy.generation_config.repetition_penalty = penalty
    return policy


@pytest.mark.parametrize(
    ("family", "penalty"), [*((family, None) for family in FAMILIES), ("qwen2_5_vl", 1.3)]
)
def test_every_variant_is_answered_as_by_generate(
    family: str, penalty: float | None, tmp_path: Path
) -> None:
    questions = ablated(tmp_path)
    assert set(chain.from_iterable(each.variants for each in questions)) == {REAL, *VARIANTS}
    plain = built(family, penalty)
    expected = {
        (index, name): by_generate(plain, question, variant)
        for index, question in enumerate(questions)
        for name, variant in question.variants.items()
    }
    ours = built(family, penalty)
    cases = [(1, everything(questions)), (5, cut_windows(questions, 5)), (64, None)]
    for batch_size, windows in cases:
        windows = windows or everything(questions)
        found = merged(answered(ours, questions, batch_size, windows=windows))
        assert {key: each.ids for key, each in found.items()} == expected


@pytest.mark.parametrize("family", [*FAMILIES, "embedded"])
def test_logits_are_those_of_a_plain_forward_and_every_variant_changes_them(
    family: str, tmp_path: Path
) -> None:
    questions = ablated(tmp_path)
    plain, ours = built(family), built(family)
    rows: list[torch.Tensor] = []

    def record(_: object, __: object, named: dict[str, Any], outputs: Any) -> None:
        if "pixel_values" not in named and named["input_ids"].shape[1] > 1:
            rows.extend(outputs.logits[:, -1])

    ours.register_forward_hook(record, with_kwargs=True)
    keys = list(merged(answered(ours, questions, 7, windows=everything(questions))))
    logits = dict(zip(keys, rows, strict=True))
    for index, name in keys:
        question = questions[index]
        with torch.no_grad():
            whole = plain(**model_inputs(question, question.variants[name])).logits[0, -1]
        torch.testing.assert_close(logits[index, name], whole, atol=1e-4, rtol=1e-4)
        if name != REAL:
            assert (whole - logits[index, REAL]).abs().max() > 5e-3, (index, name)


def test_parts_of_an_evaluation_give_the_answers_of_the_whole(tmp_path: Path) -> None:
    questions = ablated(tmp_path)
    policy = random_policy("qwen2_5_vl")
    windows = cut_windows(questions, 3)
    assert len(windows) >= 3
    whole = answered(policy, questions, 3, windows=windows)
    for number, window in enumerate(windows):
        assert answered(policy, questions, 3, windows=[window]) == [whole[number]]
    backwards = answered(policy, questions, 3, windows=windows[::-1], loader_threads=2)
    assert backwards == whole[::-1]


def shown(question: Question, variant: Variant) -> tuple[object, ...]:
    """Paths of images, and sizes of black ones."""
    sizes = [open_image(path).size for path in question.own_images]
    pairs = zip(variant.images, sizes, strict=False)
    return tuple(size if path == BLANK else path for path, size in pairs)


def test_an_image_is_processed_and_a_sequence_prefilled_once_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ablated(tmp_path)
    again = [
        Question({**each.variants, "again": each.variants[REAL]}, each.group) for each in questions
    ]
    twice = [*questions, *again]
    windows = cut_windows(twice, 64)
    assert len(windows) == 3, "of questions about 1, 2 and 8 images"
    images = sequences = 0
    for window in windows:
        distinct = set()
        for index in window:
            distinct |= {shown(twice[index], each) for each in twice[index].variants.values()}
        images += len(set(chain.from_iterable(distinct)))
        sequences += len(distinct)
    policy = embedded_policy()
    passes: list[int] = []

    def count(_: object, __: object, named: dict[str, Any]) -> None:
        if "pixel_values" in named:
            passes.append(len(named["input_ids"]))

    policy.register_forward_pre_hook(count, with_kwargs=True)
    processed = count_processed_images(monkeypatch)
    answers = merged(answered(policy, twice, 64, windows=windows))
    assert sum(processed) == images < sum(COUNTS) + 3 * len(SIZES)
    assert sum(passes) == sequences
    for index in range(len(questions)):
        other = answers[index + len(questions), REAL]
        assert answers[index, REAL] == other == answers[index + len(questions), "again"]


@pytest.mark.parametrize("most", [1, 5, 32])
def test_a_pass_has_at_most_so_many_images_or_one_prefix(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ablated(tmp_path)
    policy = random_policy("qwen2_vl")
    expected = merged(answered(policy, questions, 64, windows=everything(questions)))
    monkeypatch.setattr(image_prefill, "IMAGES_PER_PASS", most)
    passes: list[tuple[int, int]] = []

    def count(_: object, __: object, named: dict[str, Any]) -> None:
        if "pixel_values" in named:
            passes.append((len(named["input_ids"]), len(named["image_grid_thw"])))

    policy.register_forward_pre_hook(count, with_kwargs=True)
    found = merged(answered(policy, questions, 64, windows=everything(questions)))
    assert {key: each.ids for key, each in found.items()} == {
        key: each.ids for key, each in expected.items()
    }
    assert all(images <= most or prefixes == 1 for prefixes, images in passes)
    assert max(images for _, images in passes) >= min(most, 8)


def limit_passes(monkeypatch: pytest.MonkeyPatch, policy: Any, images: int, rows: int) -> list[int]:
    """Make a policy fail with more images in a pass, or with more rows behind 8 images.

    Returns a list that grows by the rows of each batch behind one image.
    """
    forward = policy.forward
    single: list[int] = []
    lengths: set[int] = set()

    def limited(*arguments: Any, **options: Any) -> Any:
        count = len(options["input_ids"])
        if len(options.get("image_grid_thw", ())) > images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if "pixel_values" not in options and options["input_ids"].shape[1] > 1:
            cached = options["past_key_values"].get_seq_length()
            lengths.add(cached)
            if cached == max(lengths) and count > rows:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if cached == min(lengths):
                single.append(count)
        return forward(*arguments, **options)

    monkeypatch.setattr(policy, "forward", limited)
    return single


def test_passes_and_batches_that_do_not_fit_are_halved_for_many_images_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ablated(tmp_path)
    policy = random_policy("qwen2_vl")
    expected = merged(answered(policy, questions, 64, windows=everything(questions)))
    single = limit_passes(monkeypatch, policy, images=9, rows=2)
    size = BatchSize("auto", torch.device("cpu"))
    found = merged(
        list(
            answer_greedily(
                policy,
                processor(),
                questions,
                windows=everything(questions),
                batch_size=size,
                max_new_tokens=NEW_TOKENS,
            )
        )
    )
    assert {key: each.ids for key, each in found.items()} == {
        key: each.ids for key, each in expected.items()
    }
    assert size.rows == 64, "of questions about one image, as many as before"
    assert max(single) > 4


def test_one_prefix_that_does_not_fit_is_named_with_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ablated(tmp_path)
    policy = random_policy("qwen2_vl")
    limit_passes(monkeypatch, policy, images=7, rows=64)
    message = r"one question about 8 images \(CUDA out of memory\): .*base\.max_pixels.*`slices`"
    with pytest.raises(InputError, match=message):
        answered(policy, questions, 64)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("damage", ["missing", "damaged", "empty"])
@pytest.mark.parametrize("place", [0, 1, 7])
def test_an_image_of_several_that_does_not_open_is_named_with_its_question(
    threads: int, damage: str, place: int, tmp_path: Path
) -> None:
    question = ablated(tmp_path)[4]
    path = Path(question.own_images[place])
    if damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2 if damage == "damaged" else 0])
    message = rf"{path.name} is (missing|not a readable image).*question 'Context: Fell\. Scan\?"
    with pytest.raises(InputError, match=message):
        answered(embedded_policy(), [question], 4, loader_threads=threads)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("field", ["context", "problem"])
def test_an_image_token_in_question_or_context_is_refused(
    field: str, count: int, tmp_path: Path
) -> None:
    paths = draw_images(tmp_path, count)
    words = {"context": "Fell.", "problem": "Scan?"}
    words[field] += processor().image_token
    item: dict[str, Any] = {**words, "question_id": "a", "modality": "ct", "image": paths[0]}
    item |= {"images": paths} if count > 1 else {}
    questions = build_questions([item], "no-think", ablations=False)
    message = rf"'Context: Fell\..*' has {count + 1} image tokens, expected {count}: remove"
    with pytest.raises(InputError, match=message):
        answered(embedded_policy(), questions, 1)


def with_template(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Make the processor's chat template put parts in another order, or leave out images."""
    original = type(processor()).apply_chat_template

    def changed(self: Any, conversation: list[dict[str, Any]], **options: Any) -> Any:
        (turn,) = conversation
        parts = turn["content"]
        if change == "words first":
            parts = [parts[-1], *parts[:-1]]
        elif change == "words between":
            parts = [*parts[:-2], parts[-1], parts[-2]]
        elif change == "one image":
            parts = [part for part in parts if part["type"] != "image"] + [{"type": "image"}]
        return original(self, [{**turn, "content": parts}], **options)

    monkeypatch.setattr(type(processor()), "apply_chat_template", changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("words first", "the image must come first"),
        ("words between", "the image must come first"),
        ("one image", r"has 1 image tokens, expected 2: the model's chat template must put one"),
    ],
)
def test_a_chat_template_must_put_all_images_before_the_words(
    change: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tuple(draw_images(tmp_path, 2))
    questions = [Question({REAL: Variant(text, images)}) for text in QUESTIONS]
    with_template(monkeypatch, change)
    with pytest.raises(InputError, match=message):
        answered(embedded_policy(), questions, 4)


def test_questions_about_one_image_are_answered_alike_beside_others_about_several(
    tmp_path: Path,
) -> None:
    given = items(tmp_path)
    alone = [item for item in given if len(images_of(item)) == 1]
    policy = random_policy("qwen3_vl")
    few = build_questions(alone, "no-think", ablations=True)
    many = build_questions(given, "no-think", ablations=True)
    windows = cut_windows(few, 2)
    assert [window for window in cut_windows(many, 2) if max(window) < len(alone)] == windows
    found = merged(answered(policy, many, 2))
    expected = merged(answered(policy, few, 2))
    assert {key: found[key] for key in expected} == expected


def test_an_image_may_come_twice_in_a_question(tmp_path: Path) -> None:
    first, second = draw_images(tmp_path, 2)
    item: dict[str, Any] = {"question_id": "a", "modality": "ct"}
    item |= {"image": first, "problem": QUESTIONS[0]}
    given = [item | {"images": [first, second, first]}, item | {"images": [second, second]}]
    questions = build_questions(given, "no-think", ablations=True)
    policy = random_policy("qwen2_vl").eval()
    found = merged(answered(policy, questions, 64, windows=everything(questions)))
    for (index, name), completion in found.items():
        question = questions[index]
        assert completion.ids == by_generate(policy, question, question.variants[name])
