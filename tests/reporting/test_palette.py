"""Colour scales: readable text on every shade, and the ends of a scale."""

import pytest
from matplotlib.colors import Colormap, to_rgb

from stages.reporting.palette import DARK, DIVERGING, DIVERGING_DARK, LIGHT, bounds, max_abs, shades
from stages.scoring.tables import CrossTable


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in to_rgb(colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scale", [LIGHT, DARK, DIVERGING, DIVERGING_DARK])
def test_text_contrasts_with_every_shade(scale: Colormap) -> None:
    for colour, ink in [*shades(scale, 24), *shades(scale, 25)]:
        dark, light = sorted([luminance(colour), luminance(ink)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize(
    ("accuracies", "ends"),
    [
        ([0.23, 0.71, None], (0.2, 0.8)),
        ([0.3, 0.4], (0.3, 0.4)),
        ([0.5], (0.4, 0.6)),
        ([0.0], (0.0, 0.1)),
        ([1.0, 1.0], (0.9, 1.0)),
    ],
)
def test_the_scale_encloses_all_accuracies(
    accuracies: list[float | None], ends: tuple[float, float]
) -> None:
    row = {str(number): accuracy for number, accuracy in enumerate(accuracies)}
    assert bounds([CrossTable("accuracy", {"base": row}, {}, {})]) == pytest.approx(ends)


@pytest.mark.parametrize(
    ("values", "end"),
    [([0.23, -0.71, None], 0.8), ([0.05], 0.1), ([None], 0.1), ([], 0.1), ([-1.0], 1.0)],
)
def test_a_scale_of_differences_is_symmetric_about_zero(
    values: list[float | None], end: float
) -> None:
    row = {str(number): value for number, value in enumerate(values)}
    assert max_abs([CrossTable("visual gain", {"ct": row}, {}, {})]) == pytest.approx(end)
