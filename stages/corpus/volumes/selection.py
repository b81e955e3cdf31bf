"""Which slices of a volume, or frames of a clip, a question is about."""

from __future__ import annotations

from collections.abc import Sequence

from stages.core.params import Volume
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason


def select_frames(
    count: int,
    settings: Volume,
    named: Sequence[int] = (),
) -> tuple[int, ...]:
    """Indices, from 0, of the frames that a question about a volume of `count` frames shows.

    A volume with fewer frames than are asked for is shown whole. Indices are rising, but for
    frames that a question names: these stay in its order.

    Args:
        count: At least 1.
        settings: How many, and which, where the question names none.
        named: Numbers, from 1, that the question names; empty if it names none.

    Raises ImageError for a named number that is not in the volume or there twice, and for more
    than volume.max_images.
    """
    if count < 1:
        raise ValueError(f"a volume of {count} frames")
    if named:
        return _named(count, named, settings)
    if settings.selection == "all":
        _check_count(count, "slices, and volume.selection is all", settings)
        return tuple(range(count))
    wanted = min(settings.frames, count)
    if settings.selection == "center":
        first = (count - wanted + 1) // 2
        return tuple(range(first, first + wanted))
    # the centre of each of `wanted` equal parts; in whole numbers, so that none is rounded twice
    return tuple((2 * part + 1) * count // (2 * wanted) for part in range(wanted))


def _named(count: int, named: Sequence[int], settings: Volume) -> tuple[int, ...]:
    _check_count(len(named), "slices named in a question", settings)
    seen: set[int] = set()
    for number in named:
        if not 1 <= number <= count:
            raise ImageError(
                f"slice {number} is named in a question, and the volume has slices 1 to {count}",
                Reason.IMAGE_SLICE,
            )
        if number in seen:
            raise ImageError(f"slice {number} is named twice in a question", Reason.IMAGE_SLICE)
        seen.add(number)
    return tuple(number - 1 for number in named)


def _check_count(count: int, what: str, settings: Volume) -> None:
    if count > settings.max_images:
        raise ImageError(
            f"{count} {what}: the limit is {settings.max_images} (volume.max_images)",
            Reason.IMAGE_TOO_LARGE,
        )
