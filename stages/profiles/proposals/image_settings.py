"""Settings of volumes and of several images that fit a corpus, each with its reason.

Slices of a volume cost a prompt as much as any image, so few are proposed: as many as
`grpo.max_prompt_length` has room for, and at most `MOST_FRAMES`. Images that questions name are
never left out; limits that they exceed are raised.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from stages.core.params import Params, Volume
from stages.corpus.dataset.split_files import MAX_IMAGES
from stages.corpus.inspection.inspect import Inspection
from stages.corpus.splitting.draws import Item
from stages.profiles.schema import Scale
from stages.profiles.shown import PICTURE_TOKENS, frames_of
from stages.prompts.styles import prompt_text

MOST_FRAMES: Final = 8
"""Slices of a volume that are proposed at most: a step with 8 images takes four times as long as
one with a single image (docs/volumes.md).
"""
_TEMPLATE_TOKENS: Final = 40
"""Counted, rounded up: tokens of the chat template around words and images."""
_ROUNDED: Final = 256
"""A higher `grpo.max_prompt_length` is a multiple of it."""
_SIDE: Final = 28
"""Pixels of the side of a token of Qwen2-VL and Qwen2.5-VL: patches of 14, merged 2 x 2."""
_CHARACTERS: Final = 2
"""Characters of a token of a tokenizer that is not here, at least: of English words about four."""


@dataclass(frozen=True)
class Setting:
    """A setting that a corpus needs, with its reason; one that stays if it is `old`."""

    group: str
    key: str
    value: Any
    old: Any
    reason: str

    def __str__(self) -> str:
        """As it is printed."""
        new = json.dumps(self.value)
        change = f"{new} (now {json.dumps(self.old)})" if self.is_new else f"{new}, as it is"
        return f"{self.group}.{self.key}: {change}: {self.reason}"

    @property
    def is_new(self) -> bool:
        """Whether params.yaml has another value."""
        return bool(self.value != self.old)


class _Base(NamedTuple):
    """Tokens of an image, and what the model takes; None where it is not known."""

    side: int
    """Pixels of the side of a token."""
    max_pixels: int | None
    """Of an image; larger ones are scaled down."""
    positions: int | None
    tokenizer: Path | None

    def image(self, size: int) -> int:
        """Tokens by which a prompt is longer with one more square image of `size` pixels."""
        return image_tokens(size, self.side, self.max_pixels) + PICTURE_TOKENS


def as_params(settings: list[Setting]) -> dict[str, Any]:
    """The settings that change, nested as in params.yaml."""
    params: dict[str, Any] = {}
    for each in settings:
        if each.is_new:
            params.setdefault(each.group, {})[each.key] = each.value
    return params


def to_look_at(volume: Volume) -> Volume:
    """Settings with which no question is refused for its number of images."""
    return volume.model_copy(update={"frames": 1, "selection": "uniform", "max_images": MAX_IMAGES})


def fit_images(inspection: Inspection, params: Params) -> list[Setting]:
    """Settings for the volumes and lists of a corpus that was inspected as `to_look_at` says.

    `params`: with the model that is to be trained. None for questions about one image each whose
    prompts fit.
    """
    if inspection.longest is None:
        return []
    base = _describe_base(params)
    words = _word_tokens(inspection.longest, params, base.tokenizer)
    named = max(each.shown(1) for each in inspection.question_images)
    settings = [*_size(params, base, words, named)]
    size = settings[0].value if settings else params.resize.size
    image = base.image(size)
    room = max((params.grpo.max_prompt_length - words) // image, 1)
    frames = 1
    if inspection.volumes:
        settings += _volume(inspection, params.volume, room)
        frames = next(each.value for each in settings if each.key == "frames")
    most = max(each.shown(frames) for each in inspection.question_images)
    if most > 1:
        settings.append(_max_images(params.volume, most))
    needed = words + most * image
    if most > 1 or needed > params.grpo.max_prompt_length:
        settings.append(_prompt_length(params, needed, most, image, words))
    return settings


def keep_one_slice(
    settings: list[Setting], volume: Volume, refused: int, usable: int
) -> list[Setting]:
    """The settings without several slices, as too many questions would be refused with them."""
    reason = (
        f"one slice each, the middle one: with more, or in another plane, {refused} of {usable}"
        " questions would be refused, as the slices of their volumes are damaged, missing or not"
        " where the plane needs them (`med-r1 check` with these settings lists them)"
    )
    fixed = {"frames": 1, "selection": "uniform", "plane": "acquired"}
    others = [each for each in settings if (each.group, each.key) not in _keys("volume", fixed)]
    return [
        *(
            Setting("volume", key, value, getattr(volume, key), reason)
            for key, value in fixed.items()
        ),
        *others,
    ]


def _keys(group: str, keys: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(group, key) for key in keys}


def measure_scale(inspection: Inspection, volume: Volume) -> Scale:
    """The size of a corpus with usable questions, for estimates."""
    frames = frames_of(volume)
    shapes = inspection.question_images.items()
    of_volumes = sum(count for each, count in shapes if each.volumes)
    others = {each.fixed: count for each, count in shapes if not each.volumes}
    number = sum(others.values())
    stored = sum(inspection.images.values())
    if volume.several:
        volumes = inspection.volumes.items()
        stored += sum(count * min(frames, facts.frames) for facts, count in volumes)
    return Scale(
        questions=inspection.usable,
        images=stored,
        images_per_question=sum(map(math.prod, others.items())) / number if number else 1.0,
        most_images_per_question=max(each.shown(frames) for each in inspection.question_images),
        several_share=sum(n for images, n in others.items() if images > 1) / max(number, 1),
        volume_share=of_volumes / inspection.usable,
        context_share=inspection.contexts / inspection.usable,
    )


def image_tokens(size: int, side: int, max_pixels: int | None) -> int:
    """Tokens of a square image of `size` pixels, scaled to whole tokens of `side` pixels."""
    tokens = max(round(size / side), 1)
    if max_pixels is not None and (tokens * side) ** 2 > max_pixels:
        tokens = max(math.isqrt(max_pixels) // side, 1)
    return tokens**2


def _volume(inspection: Inspection, volume: Volume, room: int) -> list[Setting]:
    """Plane, frames and selection."""
    slices = [facts.frames for facts in inspection.volumes]
    extent = f"{min(slices)} to {max(slices)}" if len(set(slices)) > 1 else f"{slices[0]}"
    count = sum(inspection.volumes.values())
    asked = {each: number for each, number in inspection.question_images.items() if each.volumes}
    settings = [_plane(inspection, volume)]
    if not asked:
        reason = "all questions about a volume name their slices"
        return [
            *settings,
            Setting("volume", "frames", volume.frames, volume.frames, reason),
        ]
    questions = sum(asked.values())
    fitting = [
        frames
        for frames in range(1, min(MOST_FRAMES, max(slices)) + 1)
        if all(each.shown(frames) <= room for each in asked)
    ]
    frames = max(fitting, default=1)
    about = f"{questions} questions are about {count} volumes of {extent} slices or frames"
    limit = f"a prompt has room for {room} images"
    if volume.several and volume.selection != "all" and volume.frames in fitting:
        frames = volume.frames
        reason = f"{about}, and {limit}"
    elif frames == 1:
        reason = f"{about}, but {limit}: higher grpo.max_prompt_length makes room for more"
    else:
        limit = limit if frames < MOST_FRAMES else f"more than {MOST_FRAMES} make steps slow"
        reason = f"{about}; {limit}"
    if frames >= max(slices):
        reason = f"{about}: all of them"
    settings.append(Setting("volume", "frames", frames, volume.frames, reason))
    if frames > 1:
        selection = "uniform" if volume.selection == "all" else volume.selection
        why = {
            "uniform": "spread over the volume, as questions do not say where to look",
            "center": "neighbours in the middle, as params.yaml says",
        }[selection]
        settings.append(Setting("volume", "selection", selection, volume.selection, why))
    elif volume.selection == "all":
        why = "all slices of a volume do not fit into a prompt"
        settings.append(Setting("volume", "selection", "uniform", "all", why))
    return settings


def _plane(inspection: Inspection, volume: Volume) -> Setting:
    planes: Counter[str] = Counter()
    for facts, count in inspection.volumes.items():
        planes[facts.plane] += count
    found = ", ".join(f"{count} {plane}" for plane, count in sorted(planes.items()))
    plane = volume.plane
    if volume.plane != "acquired":
        reason = f"params.yaml asks for it; stored are {found}"
    elif planes.keys() & {"oblique", "unknown"}:
        reason = f"stored are {found}: through those no other plane can be cut"
    elif len(planes) == 1:
        reason = f"all volumes are stored in one plane, {found}"
    else:
        # of equally many, the one that is read most often
        plane = max(("axial", "coronal", "sagittal"), key=lambda each: planes[each])
        reason = f"volumes are stored in several planes, {found}: one for all compares"
    return Setting("volume", "plane", plane, volume.plane, reason)


def _max_images(volume: Volume, most: int) -> Setting:
    value = max(volume.max_images, most)
    reason = f"a question shows up to {most} images"
    return Setting("volume", "max_images", value, volume.max_images, reason)


def _prompt_length(params: Params, needed: int, most: int, image: int, words: int) -> Setting:
    old = params.grpo.max_prompt_length
    value = old if needed <= old else math.ceil(needed / _ROUNDED) * _ROUNDED
    several = f"{most} images of {image} tokens" if most > 1 else f"an image of {image} tokens"
    reason = f"the longest prompt takes about {needed}: {several}, and {words} of words"
    return Setting("grpo", "max_prompt_length", value, old, reason)


def _size(params: Params, base: _Base, words: int, named: int) -> list[Setting]:
    """A smaller image size, if the images that questions name do not fit into the model."""
    size = params.resize.size
    if base.positions is None:
        return []
    room = base.positions - params.grpo.max_completion_length - words
    each = base.image(size)
    if named * each <= room:
        return []
    tokens = math.isqrt(max(room // named - PICTURE_TOKENS, 1))
    smaller = max(tokens * base.side, _SIDE)
    reason = (
        f"{named} images of {each} tokens and {words} of words do not fit into the model's"
        f" {base.positions} positions"
    )
    return [Setting("resize", "size", min(smaller, size), size, reason)]


def _describe_base(params: Params) -> _Base:
    """What a model's files say of it; the sizes of Qwen2-VL for one that is not here."""
    folder = Path(params.base.source)
    max_pixels = params.base.max_pixels
    if not folder.is_dir():
        return _Base(_SIDE, max_pixels, None, None)
    side = _SIDE
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            continue
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        images = content.get("image_processor", content)
        side = images.get("patch_size", 14) * images.get("merge_size", 2)
        own = images.get("size", {}).get("longest_edge") or images.get("max_pixels")
        max_pixels = max_pixels or own
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    positions = config.get("text_config", config).get("max_position_embeddings")
    tokenizer = folder / "tokenizer.json"
    return _Base(side, max_pixels, positions, tokenizer if tokenizer.is_file() else None)


def _word_tokens(item: Item, params: Params, tokenizer: Path | None) -> int:
    """Tokens of the words of a training prompt; without its tokenizer, more than it will have."""
    words = prompt_text(item["problem"], params.prompt.style, "train", item.get("context"))
    if tokenizer is None:
        wide = sum(not char.isascii() for char in words)
        return _TEMPLATE_TOKENS + 2 * wide + math.ceil((len(words) - wide) / _CHARACTERS)
    from tokenizers import Tokenizer

    encoded = Tokenizer.from_file(str(tokenizer)).encode(words)
    return _TEMPLATE_TOKENS + len(encoded.ids)
