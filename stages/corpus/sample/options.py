"""Options of questions about phantoms, with OmniMedVQA's bias or without.

The order of random draws and all strings decide the bytes of the embedded corpus.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

import numpy as np

from stages.corpus.sample.phantoms import COUNTS, GRADES, NORMAL, SIDES, STYLES, Phantom

NEVER_GOLD: Final[dict[str, tuple[str, ...]]] = {
    "modality": (
        "PET",
        "SPECT",
        "Thermography",
        "Mammography",
        "Angiography",
        "Endoscopy",
        "Scintigraphy",
        "EEG",
    ),
    "anatomy": (
        "Spleen",
        "Femur",
        "Cornea",
        "Bladder",
        "Tongue",
        "Pancreas",
        "Elbow",
        "Larynx",
        "Uterus",
        "Ankle",
    ),
}
"""Distractors that are never right, as most of OmniMedVQA's."""

_FIXED_OPTIONS: Final = {"grade": GRADES, "side": SIDES, "count": COUNTS}
"""Attribute -> the options of each of its questions."""


def options_for(
    phantom: Phantom, attribute: str, rng: np.random.Generator, *, biased: bool = True
) -> list[str]:
    """Two to four distinct option texts in random order, the answer among them.

    With `biased`, three quarters of the wrong options of modality and anatomy questions are never
    gold; without, they are other modalities and anatomies only (for training the embedded base).
    """
    gold = phantom.answer(attribute)
    if attribute in _FIXED_OPTIONS:
        candidates = list(_FIXED_OPTIONS[attribute])
        size = len(candidates)
    elif attribute == "disease":
        candidates = list(STYLES[phantom.modality].diseases)
        # a quarter come without the normal option, so that three-option questions exist
        if gold == NORMAL or rng.random() < 0.75:
            candidates.append(NORMAL)
        size = len(candidates)
    else:
        size = int(rng.choice([2, 3, 4], p=[0.15, 0.15, 0.7]))
        candidates = _distractors(attribute, gold, rng, biased=biased)
    wrong = [text for text in dict.fromkeys(candidates) if text != gold]
    options = [gold, *(wrong[i] for i in rng.permutation(len(wrong))[: size - 1])]
    return [options[i] for i in rng.permutation(len(options))]


def _distractors(attribute: str, gold: str, rng: np.random.Generator, *, biased: bool) -> list[str]:
    """Twelve wrong options of a modality or anatomy question, with repetitions."""
    styles = STYLES.values()
    if attribute == "modality":
        names = {style.name for style in styles}
    else:
        names = set(chain.from_iterable(style.anatomies for style in styles))
    sometimes_gold = sorted(names - {gold})
    never_gold = NEVER_GOLD[attribute]
    wrong = []
    for _ in range(12):
        pool = never_gold if biased and rng.random() < 0.75 else sometimes_gold
        wrong.append(str(rng.choice(pool)))
    return wrong
