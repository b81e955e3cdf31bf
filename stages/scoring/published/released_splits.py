"""Med-R1's released splits: counts and hashes that were made here, from the released files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stages.scoring.published.med_r1 import NO_THINK_MINUS_THINK

_FILES: Final = "Med-R1's released files, Splits/{}/: counted"
_SUBTRACTED: Final = "The train file could not be read: its count is the total minus the test file."
_DRAWS: Final = "Random over questions, not images; the two axes are independent draws."


@dataclass(frozen=True)
class PublishedSplit:
    """One released split.

    `two_options` and `three_options` count test questions with so many options; all others have
    four. `chance` and `majority_letter` are of the test file, in percent: the mean of 1 / options,
    and the share of its most frequent gold letter.
    """

    axis: str
    slug: str
    total: int
    train: int
    test: int
    two_options: int
    three_options: int
    chance: float
    majority_letter: float
    test_digest: str
    """SHA-256 of the test questions (`ReleasedFile.digest`), by which the file is recognised."""
    source: str
    caveat: str


def _splits(
    axis: str,
    folder: str,
    by_subtraction: str,
    rows: Sequence[tuple[int, int, int, int, int, float, float, str]],
) -> list[PublishedSplit]:
    return [
        PublishedSplit(
            axis,
            slug,
            *row,
            _FILES.format(folder),
            f"{_DRAWS} {_SUBTRACTED}" if slug == by_subtraction else _DRAWS,
        )
        for slug, row in zip(NO_THINK_MINUS_THINK[axis].cells, rows, strict=True)
    ]


SPLITS: Final[tuple[PublishedSplit, ...]] = (
    *_splits(
        "modality",
        "modality",
        "mri",
        [
            (
                *(15_808, 12_567, 3_241, 834, 0, 31.43, 32.21),
                "9fa9ef7c9dfd8fcfa9cac092c7b3a85f305f8012da615382683f959f40e55130",
            ),
            (
                *(31_877, 25_507, 6_370, 3, 0, 25.01, 25.90),
                "3e1158904771de92f67ec52da2838fefd08929d17bfb478f969ca3a7d9cb4d52",
            ),
            (
                *(7_916, 6_301, 1_615, 47, 0, 25.73, 26.69),
                "9b601b493453e76ee02c2f465b287bf46c2e28718613ec42bf07c221312fb902",
            ),
            (
                *(10_991, 8_917, 2_074, 0, 0, 25.00, 26.28),
                "f72085597d10e48f00358b254722a23ba656daeeb2f42a155ebd91d6c317b5ad",
            ),
            (
                *(6_679, 5_373, 1_306, 294, 0, 30.63, 30.09),
                "7df0507ea3a86f44f6457270daddd76ee382aa6923e0d502d00ea7a94db4a56e",
            ),
            (
                *(5_398, 4_300, 1_098, 95, 20, 27.31, 25.77),
                "3c6ffc15f0f125d149a4fddd61042a3563e1dc4775184bc2c2817b0ccd7b5b08",
            ),
            (
                *(4_646, 3_798, 848, 32, 0, 25.94, 26.77),
                "0d45c50afaa42d8964636cef4b38e22c62253ab7b8874eabd7f3178a26211135",
            ),
            (
                *(5_680, 4_570, 1_110, 87, 0, 26.96, 29.37),
                "b6e4d5c640a52d78bad5567d86a7ad598f3221e494787daca6d8cce7bace827e",
            ),
        ],
    ),
    *_splits(
        "task",
        "question_type",
        "disease-diagnosis",
        [
            (
                *(16_448, 13_119, 3_329, 85, 0, 25.64, 25.80),
                "910f8843cc158a5e8c1d66a5cee7b24007086372e2643ec46699efd73d1c595b",
            ),
            (
                *(55_387, 44_329, 11_058, 1_271, 0, 27.87, 28.40),
                "465e0bdc52f7a4196ceff78c3e33199f944069ae1688e7aaa73a99802110cf1e",
            ),
            (
                *(2_098, 1_662, 436, 0, 30, 25.57, 27.98),
                "aebfa3213113bf4617affa218e74ba161e3eb6db490f81e6e98080dd7720da38",
            ),
            (
                *(11_565, 9_173, 2_392, 0, 0, 25.00, 25.84),
                "35251800fd0628aadedc8f5cb25c60af6210b9793d0d21199cddf44405ecbffb",
            ),
            (
                *(3_498, 2_794, 704, 0, 0, 25.00, 26.14),
                "17d0bd99e7815d7d437d6630a35380318c5ce16492d4ef66203f07b67b80c06e",
            ),
        ],
    ),
)
"""The 13 released splits. By modality the totals are 88,995: one more training question has no
modality on record.
"""
