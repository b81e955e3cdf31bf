"""NIfTI files made by nibabel from arrays, and the settings of volumes."""

from __future__ import annotations

from typing import Any

from stages.core.params import Volume

SETTINGS = Volume(plane="acquired", frames=1, selection="uniform", window=None, max_images=16)


def volume_settings(**changes: Any) -> Volume:
    """The defaults of params.yaml, with unvalidated changes."""
    return SETTINGS.model_copy(update=changes)
