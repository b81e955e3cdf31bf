"""The recipe at small size: it trains, logs, saves, and is reproducible bit for bit."""

from itertools import chain
from pathlib import Path

import numpy as np

from stages.corpus.sample import phantoms
from stages.pretraining.embedded import build_processor, build_tokenizer
from stages.pretraining.pretrain import Recipe, _exercises, run

SMALL = Recipe(images=8, read_steps=3, see_steps=2, answer_steps=2, batch=4, log_every=1)


def test_two_runs_of_the_recipe_give_the_same_weights(tmp_path: Path) -> None:
    lines: list[str] = []
    weights = []
    for name in ("first", "second"):
        run(SMALL, tmp_path / name, progress=lines.append)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    log = (tmp_path / "first" / "pretraining.csv").read_text(encoding="utf-8").splitlines()
    assert log[0] == "lesson,step,loss,right,exam,minutes"
    assert len(log) == 1 + 3 + 2 + 2 + 1


def test_exercises_never_offer_the_corpus_bias() -> None:
    processor = build_processor(build_tokenizer())
    rng = np.random.default_rng(3)
    drawn = [phantoms.sample_phantom(rng) for _ in range(50)]
    prompts = "\n".join(exercise.prompt for exercise in _exercises(rng, drawn, processor, 200))
    for word in chain.from_iterable(phantoms.NEVER_GOLD.values()):
        assert f"){word}" not in prompts
