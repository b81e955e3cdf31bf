"""Training questions as a dataset of TRL's; their images are opened on use.

A question shows one image or several, in one dataset. If all show one, TRL gets it as `image`, with
words that it puts the image before. If any shows several, all have `images`, and a prompt that says
where they stand: Arrow holds no list of both texts and images, so that is made on use, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from datasets import Dataset
from PIL import Image

from stages.corpus.dataset.image_store import open_image
from stages.corpus.dataset.split_files import images_of
from stages.prompts.styles import Purpose, Style, chat, prompt_text


def train_dataset(rows: Sequence[Mapping[str, Any]], style: Style) -> Dataset:
    """The columns of TRL's GRPO trainer, and what the rewards need.

    Rows have "problem", "gold", "options", the paths of their images ("image" or "images", as in
    split files), and "context" if there is one.
    """
    columns = {
        "prompt": [
            [{"role": "user", "content": words}] for words in words_of(rows, style, "train")
        ],
        **image_columns(rows),
        "gold": [row["gold"] for row in rows],
        "options": [row["options"] for row in rows],
    }
    return Dataset.from_dict(columns).with_transform(_with_chats)


def words_of(rows: Sequence[Mapping[str, Any]], style: Style, purpose: Purpose) -> list[str]:
    """What each row asks, with what is known of the patient."""
    return [prompt_text(row["problem"], style, purpose, row.get("context")) for row in rows]


def image_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The column `image` with a path a row, or `images` with a list if a row has several."""
    paths = [list(images_of(row)) for row in rows]
    if all(len(each) == 1 for each in paths):
        return {"image": [each[0] for each in paths]}
    return {"images": paths}


def image_counts(dataset: Dataset) -> list[int]:
    """Images of each row."""
    paths = dataset.with_format(None)
    if "images" not in paths.column_names:
        return [1] * len(paths)
    return [len(each) for each in paths["images"]]


def first_image(dataset: Dataset) -> Image.Image:
    """The first image of the first row, opened."""
    row = dataset[0]
    image: Image.Image = row["image"] if "image" in row else row["images"][0]
    return image


def with_images(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Replace the paths in a batch's column `image` or `images`, if it has one, by opened images.

    The paths are kept as `image_path` or `image_paths`.
    """
    if "image" in batch:
        paths = batch["image"]
        return batch | {"image": _opened(paths), "image_path": paths}
    if "images" in batch:
        lists = batch["images"]
        return batch | {"images": [_opened(paths) for paths in lists], "image_paths": lists}
    return batch


def _with_chats(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """As `with_images`, and where there are several, with a place in the prompt for each."""
    opened = with_images(batch)
    if "images" not in batch or "prompt" not in batch:
        return opened
    prompts = [
        chat(prompt[0]["content"], images=len(paths))
        for prompt, paths in zip(batch["prompt"], batch["images"], strict=True)
    ]
    return opened | {"prompt": prompts}


def _opened(paths: Sequence[str]) -> list[Image.Image]:
    return [_cached_image(path) for path in paths]


@lru_cache(maxsize=256)
def _cached_image(path: str) -> Image.Image:
    """Decode an image once for its group, and for neighbouring questions about it.

    The rows of a group follow each other, and show 64 images at most: none is lost between them.
    """
    return open_image(path)
