"""A small workspace as after `splits` and `base`: phantoms, split files, embedded base."""

from __future__ import annotations

import functools
import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from stages.core import layout
from stages.core.yaml_files import dump_yaml, read_yaml
from stages.corpus.dataset.problems import LETTERS, format_problem, format_solution
from stages.corpus.sample import phantoms
from stages.corpus.sample.drawing import draw
from stages.corpus.sample.options import options_for
from tests.omnimedvqa import AXES, QUESTION_TYPE_SLUGS

REPOSITORY = Path(__file__).parents[1]


def small_workspace(
    root: Path,
    *,
    images_a_modality: int = 2,
    grpo: dict[str, Any] | None = None,
    sft: dict[str, Any] | None = None,
    style: str = "no-think",
) -> None:
    """Fill `root` to run stages in; every split holds the same questions in train and test.

    Code and pipeline are links to the repository's.
    With `sft`, settings of its own, the checkpoint sft-ct is there too.
    """
    for name in ("stages", "dvc.yaml"):
        (root / name).symlink_to(REPOSITORY / name)
    tree = read_yaml(REPOSITORY / "params.yaml")
    tree["grpo"] |= {"max_steps": 2, "prompts_per_device": 2, "num_generations": 2} | (grpo or {})
    tree["evaluate"]["batch_size"] = 16
    tree["prompt"]["style"] = style
    if sft is not None:
        tree["sft"] |= sft
        entry = {"axis": "modality", "split": "ct", "method": "sft", "images": "data/images/ct"}
        tree["checkpoints"]["sft-ct"] = entry
        tree["evaluations"]["sft-ct"] = {"axis": "modality"}
    (root / "params.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    shutil.copytree(REPOSITORY / "infra" / "base", root / layout.BASE_MODEL)
    images, questions = _drawn(images_a_modality)
    for image, content in images.items():
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).write_bytes(content)
    for axis, slugs in AXES.items():
        for slug in slugs:
            key = "modality" if axis == "modality" else "question_type"
            items = [item for item in questions if item[key] == slug]
            for part in ("train", "test"):
                path = root / layout.split(axis, slug, part, tree["splits"]["kind"])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(items), encoding="utf-8")


@functools.cache
def _drawn(images_a_modality: int) -> tuple[dict[Path, bytes], list[dict[str, Any]]]:
    """PNGs by path, and the questions about them; drawn once per process, as drawing is slow."""
    rng = np.random.default_rng(5)
    images, questions = {}, []
    for modality in AXES["modality"]:
        for number in range(images_a_modality):
            phantom = phantoms.sample_phantom(rng, modality)
            while phantom.shape is None:
                phantom = phantoms.sample_phantom(rng, modality)
            image = layout.images(modality) / f"{number}.png"
            file = BytesIO()
            draw(phantom, (384, 384), rng).save(file, "PNG")
            images[image] = file.getvalue()
            questions += [
                _item(phantom, asked, image, f"{modality}_{number}_{asked}", rng)
                for asked in phantom.attributes
            ]
    return images, questions


def _item(
    phantom: phantoms.Phantom, asked: str, image: Path, name: str, rng: np.random.Generator
) -> dict[str, Any]:
    options = options_for(phantom, asked, rng)
    return {
        "image": image.as_posix(),
        "problem": format_problem(phantoms.QUESTIONS[asked][0], options),
        "solution": format_solution(LETTERS[options.index(phantom.answer(asked))]),
        "options": options,
        "question_id": name,
        "dataset": "Phantom",
        "modality": phantom.modality,
        "question_type": QUESTION_TYPE_SLUGS[phantoms.QUESTION_TYPE_OF[asked]],
    }
