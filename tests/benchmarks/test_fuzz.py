"""The readers' contract holds for a fixed sample of the files that benchmarks.fuzz generates."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import fuzz

FILES = {"archives": 800, "records": 12000, "images": 4000, "dicom": 8000}
"""About half a minute together, on one core."""


@pytest.mark.parametrize("reader", FILES)
@pytest.mark.filterwarnings("ignore")
def test_a_reader_keeps_its_word(reader: str) -> None:
    ends, finds = fuzz.fuzz(reader, range(FILES[reader]), seed=7)
    assert not finds, "\n".join(why for _, why in finds[:3])
    assert ends.total() == FILES[reader]
    assert len(ends) == 2, "some are taken, some are not: neither is all that is tried"


@pytest.mark.filterwarnings("ignore")
def test_a_reader_that_breaks_its_word_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(content: bytes, folder: Path) -> str:
        return ["decoded"][content.count(b"\xff\xff")]

    target = fuzz.Target([b"some image" * 9], [b"a bad one"], read)
    monkeypatch.setitem(fuzz.READERS, "broken", lambda: target)
    ends, finds = fuzz.fuzz("broken", range(300), seed=1)
    assert 0 < ends["FOUND"] == len(finds) < 300
    assert all(b"\xff\xff" in content and "IndexError" in why for content, why in finds)


def test_the_same_seed_makes_the_same_files() -> None:
    target = fuzz.record_reader()
    made = [[fuzz.mutate(random.Random(number), target) for number in range(50)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 40
