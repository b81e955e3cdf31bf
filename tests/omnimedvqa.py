"""OmniMedVQA's modalities and question types, as params.yaml of the repository has them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from stages.core.params import load_params

TAXONOMY: Final = load_params(Path(__file__).parents[1] / "params.yaml").taxonomy
AXES: Final = TAXONOMY.axes
MODALITIES: Final = {slug: TAXONOMY.modalities.name(slug) for slug in TAXONOMY.modalities}
"""Slug -> name in records."""
QUESTION_TYPES: Final = {
    slug: TAXONOMY.question_types.name(slug) for slug in TAXONOMY.question_types
}
QUESTION_TYPE_SLUGS: Final = {name: slug for slug, name in QUESTION_TYPES.items()}
