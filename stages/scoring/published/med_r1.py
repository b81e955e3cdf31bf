"""Med-R1's own numbers: No-Think minus Think by cell, and the headline numbers.

Its absolute accuracies by modality and by question type are missing: they could not be read at the
source.
"""

from __future__ import annotations

from typing import Final

from stages.scoring.published.entries import Published, PublishedTable

PAPER: Final = "Med-R1, arXiv 2503.13939"

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
