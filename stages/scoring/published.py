"""Published numbers: Med-R1's differences, headline numbers and splits, and third parties' results.

For display beside results on the same test questions alone. Each number has its source and a
caveat. Only the counts and hashes of `SPLITS` were made by us, from the released files. The types
differ from those of our own results, so that the two cannot be mixed in one table unnoticed.
Med-R1's absolute accuracies by modality and by question type are missing: they could not be read at
the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, Literal

from stages.taxonomy import Axis

Unit = Literal["percent", "percentage points", "relative percent"]
"""An accuracy; a difference of two accuracies; a difference relative to the smaller accuracy."""

PAPER: Final = "Med-R1, arXiv 2503.13939"


@dataclass(frozen=True)
class Published:
    """One published number: subject, measure, value, source and caveat.

    `axis` is that of the released test splits that it is about, empty if it is about other
    questions.
    """

    subject: str
    measure: str
    value: float
    unit: Unit
    source: str
    caveat: str
    axis: Axis | Literal[""] = ""


@dataclass(frozen=True)
class PublishedTable:
    """A published table: `values[i][j]` is trained on `cells[i]` and tested on `cells[j]`."""

    measure: str
    cells: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    unit: Unit
    source: str
    caveat: str

    def at(self, trained: str, tested: str) -> float:
        """The published value for one pair of cells, by slug."""
        return self.values[self.cells.index(trained)][self.cells.index(tested)]

    @property
    def in_domain(self) -> float:
        """Mean of the diagonal: tested on the cell trained on."""
        return _mean([row[i] for i, row in enumerate(self.values)])

    @property
    def cross_domain(self) -> float:
        """Mean off the diagonal."""
        others = [(*row[:i], *row[i + 1 :]) for i, row in enumerate(self.values)]
        return _mean(list(chain.from_iterable(others)))

    @property
    def mean(self) -> float:
        """Mean of all cells."""
        return _mean(list(chain.from_iterable(self.values)))


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


_MODALITIES: Final = (
    *("ct", "mri", "x-ray", "ultrasound"),
    *("dermoscopy", "fundus", "oct", "microscopy"),
)
"""Rows and columns of Med-R1's tables, whatever params.yaml defines."""
_QUESTION_TYPES: Final = (
    "anatomy-identification",
    "disease-diagnosis",
    "lesion-grading",
    "modality-recognition",
    "other-biological-attributes",
)
_ORIENTATION: Final = (
    "Read from an image labelled only 'Improvement'; the sign, No-Think minus Think, follows the"
    " README's heading and the abstract. Rows are training splits: values times test questions are"
    " whole numbers by column. "
)
NO_THINK_MINUS_THINK: Final[dict[str, PublishedTable]] = {
    "modality": PublishedTable(
        measure="accuracy of No-Think minus Think",
        cells=_MODALITIES,
        values=(
            (1.24, 7.75, -0.61, -5.69, 7.96, 7.11, 5.54, 4.23),
            (16.94, 0.43, 0.99, -10.32, 4.90, 8.93, 9.08, 2.79),
            (-1.30, 1.65, 1.24, -2.89, 0.00, 4.10, -0.47, 2.88),
            (3.94, 2.57, 2.84, 0.14, 5.82, 5.01, 4.71, 7.75),
            (2.53, 0.58, 0.56, -3.76, 2.90, -0.55, 3.42, -0.36),
            (4.57, 2.67, -1.86, 2.51, 1.07, 1.55, 7.31, 3.96),
            (15.99, 2.70, 0.06, -3.57, -7.81, -2.46, 0.83, 0.36),
            (3.18, 3.31, 1.92, 0.57, 4.36, 7.29, 6.61, 5.05),
        ),
        unit="percentage points",
        source=f"{PAPER}, released Images/modalityimprove_heatmap.png",
        caveat=_ORIENTATION + "One run per cell; no intervals published.",
    ),
    "task": PublishedTable(
        measure="accuracy of No-Think minus Think",
        cells=_QUESTION_TYPES,
        values=(
            (0.27, 0.22, 8.71, 0.42, 1.70),
            (0.84, 0.05, -10.09, 0.21, 1.14),
            (1.92, 0.32, 10.09, 0.05, -1.99),
            (1.54, 2.52, -1.83, 0.33, 2.27),
            (-0.31, -1.93, -4.59, -0.01, 2.70),
        ),
        unit="percentage points",
        source=f"{PAPER}, released Images/taskimprove_heatmap.png",
        caveat=_ORIENTATION
        + "One run per cell; no intervals published. Lesion grading, with 436 test questions, has"
        " the large values.",
    ),
}
"""Axis -> the published differences, in the order of the axis's cells."""

_RELATIVE: Final = "Relative to the base's accuracy, not percentage points"
HEADLINES: Final[tuple[Published, ...]] = (
    Published(
        "Med-R1 (Qwen2-VL-2B, GRPO)",
        "mean accuracy over 8 modalities",
        69.91,
        "percent",
        "IEEE TMI 2026 (ieeexplore 11371404), as quoted by a document on GitHub",
        "Second hand. The quoting document does not state whether it is the mean of the 8 x 8 table"
        " or of something else.",
        "modality",
    ),
    Published(
        "Med-R1 (Qwen2-VL-2B, GRPO)",
        "cross-modality accuracy over Qwen2-VL-2B",
        29.94,
        "relative percent",
        f"{PAPER}, abstract",
        f"{_RELATIVE}: with 69.91% it implies a base of 53.80%. The released zero-shot script"
        " counts 'C.' as wrong.",
        "modality",
    ),
    Published(
        "Med-R1 (Qwen2-VL-2B, GRPO)",
        "cross-task accuracy over Qwen2-VL-2B",
        32.06,
        "relative percent",
        f"{PAPER}, abstract",
        f"{_RELATIVE}; the absolute accuracies could not be read.",
        "task",
    ),
)

_CONTAMINATED: Final = (
    "All 88,996 open-access questions; how many of them a model saw in training differs and is"
    " mostly not reported"
)
_LINGSHU: Final = "Lingshu report, Table 6"
_REPRODUCED: Final = (
    "Another group's run of the released checkpoint, not the authors'; on data it was not trained"
    " on"
)


def _omnimed(subject: str, value: float, source: str, caveat: str = _CONTAMINATED) -> Published:
    return Published(subject, "OmniMedVQA accuracy", value, "percent", source, caveat)


def _transfer(subject: str, source: str, **values: float) -> tuple[Published, ...]:
    return tuple(
        Published(
            subject, f"{name.replace('_', ' ')} accuracy", value, "percent", source, _REPRODUCED
        )
        for name, value in values.items()
    )


_MEDGR2: Final = (
    "MedGR2 (AAAI-26, arXiv 2508.20549), OmniMedVQA overall, as summarised by third parties"
)
_OPHVLM: Final = "OphVLM README, OmniMedVQA-Eye"
THIRD_PARTY: Final[tuple[Published, ...]] = (
    *(
        _omnimed(subject, value, _LINGSHU)
        for subject, value in {
            "MedVLM-R1-2B": 77.7,
            "MedGemma-4B": 69.8,
            "LLaVA-Med-7B": 44.3,
            "HuatuoGPT-V-7B": 74.2,
            "BioMediX2-8B": 63.3,
            "Qwen2.5-VL-7B": 63.6,
            "InternVL2.5-8B": 81.3,
            "InternVL3-8B": 79.1,
            "Lingshu-7B": 82.9,
            "HealthGPT-14B": 75.2,
            "HuatuoGPT-V-34B": 74.0,
            "MedDr-40B": 64.3,
            "InternVL3-14B": 78.9,
            "Qwen2.5-VL-32B": 68.2,
            "InternVL2.5-38B": 79.9,
            "InternVL3-38B": 79.8,
            "Lingshu-32B": 83.4,
            "BiomedGPT": 27.9,
            "GPT-4.1": 75.5,
            "Claude Sonnet 4": 65.5,
            "Gemini-2.5-Flash": 71.0,
        }.items()
    ),
    _omnimed(
        "Lingshu-7B with RLVR",
        81.3,
        "Lingshu report",
        f"{_CONTAMINATED}. Reinforcement learning lowered it, from 82.9",
    ),
    _omnimed("Lingshu-7B", 82.74, "an outside reproduction with MedEvalKit"),
    _omnimed("Med-R1-3B", 72.57, _MEDGR2),
    _omnimed("Qwen2.5-VL-72B", 67.71, _MEDGR2),
    _omnimed("HuatuoGPT-V-34B", 76.70, _MEDGR2),
    _omnimed("MedGR2 SFT (7B)", 85.59, _MEDGR2),
    _omnimed("MedGR2 SFT+GRPO (7B)", 87.45, _MEDGR2),
    _omnimed("GMAI-VL-7B", 88.48, "GMAI-VL README"),
    _omnimed("LLaVA-Med-7B", 44.5, "HuatuoGPT-Vision README"),
    _omnimed("LLaVA-v1.6-34B", 61.4, "HuatuoGPT-Vision README"),
    _omnimed("LLaVA-1.5-LLaMA3-8B", 48.8, "HuatuoGPT-Vision README"),
    _omnimed("LLaVA-1.5-LLaMA3-8B with PubMedVision", 75.1, "HuatuoGPT-Vision README"),
    _omnimed("HuatuoGPT-V-34B", 76.9, "HuatuoGPT-Vision README"),
    *(
        Published(
            subject, "OmniMedVQA eye questions accuracy", value, "percent", _OPHVLM, _CONTAMINATED
        )
        for subject, value in {
            "Med-R1-2B-Fundus": 69.11,
            "MedVLM-R1": 64.31,
            "Qwen2.5-VL-3B": 56.26,
            "Qwen2.5-VL-7B": 60.24,
            "InternVL3-2B": 64.07,
            "HuatuoGPT-V-7B": 73.66,
        }.items()
    ),
    *_transfer(
        "Med-R1-2B",
        _LINGSHU,
        **{
            "MMMU-Med": 34.8,
            "VQA-RAD": 39.0,
            "SLAKE": 54.5,
            "PathVQA": 15.3,
            "PMC-VQA": 47.4,
            "MedXpertQA-MM": 21.1,
        },
    ),
    *_transfer(
        "Med-R1-2B",
        "Lingshu report, Table 7 (text only)",
        **{
            "MMLU-Med": 51.5,
            "PubMedQA": 66.2,
            "MedMCQA": 39.1,
            "MedQA": 39.9,
            "Medbullets": 33.6,
            "MedXQA": 11.2,
            "SGPQA": 17.9,
        },
    ),
    *_transfer(
        "Med-R1-2B", "Med-RWR", **{"MedXpertQA-MM": 21.5, "MMMU-H&M": 42.7, "ECBench": 36.7}
    ),
    *_transfer(
        "Med-R1-2B",
        "Med-RWR",
        **{
            "MMMU-Pro-H&M, first of two settings,": 33.9,
            "MMMU-Pro-H&M, second of two settings,": 23.8,
        },
    ),
    *_transfer(
        "Med-R1-3B",
        "MedSynapse-V",
        **{
            "VQA-RAD": 53.2,
            "SLAKE": 52.8,
            "PathVQA": 44.1,
            "PMC-VQA": 38.5,
            "MMMU*": 30.4,
            "MedXpert": 18.5,
            "GMAI-MMBench": 35.2,
        },
    ),
)
"""Numbers published by others, for Med-R1 and for models tested on the same questions.

Lingshu reports no OmniMedVQA accuracy for Med-R1: "trained on part of the OmniMedVQA test set".
"""

_FILES: Final = "Med-R1's released files, Splits/{}/: counted"
_SUBTRACTED: Final = "The train file could not be read: its count is the total minus the test file."
_DRAWS: Final = "Random over questions, not images; the two axes are independent draws."


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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
