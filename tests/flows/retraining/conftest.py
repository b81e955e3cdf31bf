"""What tests of retraining share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flows.dvc_api import preloading


@pytest.fixture(scope="module", autouse=True)
def without_preloading() -> Iterator[None]:
    """Stand-ins for trainings and evaluations need no libraries, which take seconds to import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preloading, "FEWEST", 1000)
        yield
