"""Questions that the embedded base learns from."""

from itertools import chain

import numpy as np

from stages.corpus.sample import phantoms
from stages.corpus.sample.options import NEVER_GOLD
from stages.pretraining.embedded import build_processor, build_tokenizer
from stages.pretraining.exercises import draw_exercises


def test_exercises_never_offer_the_corpus_bias() -> None:
    processor = build_processor(build_tokenizer())
    rng = np.random.default_rng(3)
    drawn = [phantoms.sample_phantom(rng) for _ in range(50)]
    prompts = "\n".join(exercise.prompt for exercise in draw_exercises(rng, drawn, processor, 200))
    for word in chain.from_iterable(NEVER_GOLD.values()):
        assert f"){word}" not in prompts
