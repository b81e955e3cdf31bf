"""Fuzzing: give damaged files to the readers of archives, records, images and DICOM.

    python -m benchmarks.fuzz [--minutes N] [--seed N] [--json FILE] [READER ...]

Files begin as those of the table of hostile input, good and bad, and are cut, spliced, repeated and
changed at random. An archive opens, or is an InputError; records add up; an image has its size, or
is an ImageError. Anything else, a crash of the process too, is a find: the bytes that did it are
kept in `fuzz-finds/`. The same seed makes the same files, whatever the time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import zstandard
from rich.console import Console
from rich.table import Table

from stages.core.errors import InputError
from stages.core.outputs import write_json
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from stages.corpus.archives.source import open_corpus
from stages.corpus.images.decoding import decode_files
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.records.records import read_record_files

REPOSITORY: Final = Path(__file__).parents[1]
FINDS: Final = Path("fuzz-finds")
_LARGEST: Final = 200_000
"""Bytes of a file that is begun with: larger ones are bombs, each of which takes as long as a
thousand others.
"""
_BAD: Final = 0.2
_TOKENS: Final = (
    *(
        b"\x00",
        b"\xff",
        b"\xff" * 4,
        b"\x00" * 8,
        b"\x80",
        b"\x7f\xff\xff\xff",
        b"IDAT",
        b"IEND",
        b"\xff\xd9",
        b"\xff\xda",
        b"PK\x01\x02",
    ),
    *(
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"ustar",
        b"../",
        b"DICM",
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\\",
        b",",
        b":",
        b"\\ud800",
        b"NaN",
        b"1e999",
    ),
)

Reader = Callable[[bytes, Path], str]
"""What became of a file, in a word; raises whatever it must not."""


@dataclass(frozen=True)
class Target:
    """A reader, and files to begin with: those it takes, and those that were bad already."""

    good: Sequence[bytes]
    bad: Sequence[bytes]
    read: Reader

    def __post_init__(self) -> None:
        """Leave out what is too large."""
        for name in ("good", "bad"):
            object.__setattr__(
                self, name, [content for content in getattr(self, name) if len(content) <= _LARGEST]
            )


def mutate(rng: random.Random, target: Target) -> bytes:
    """A file made from one or two others, most of them good ones."""
    seeds = target.bad if rng.random() < _BAD else target.good
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(8):
            case 0:
                del content[at:]
            case 1 | 2 if content:
                content[at % len(content)] ^= 1 << rng.randrange(8)
            case 3:
                content[at:at] = rng.choice(_TOKENS)
            case 4 if content:
                token = rng.choice(_TOKENS)
                content[at : at + len(token)] = token
            case 5:
                del content[at : at + rng.choice((1, 2, 4, 100, 1000))]
            case 6:
                content[at:at] = content[at : at + rng.choice((4, 64, 1024))]
            case _:
                other = rng.choice(target.good)
                content[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(content)


def archive_reader() -> Target:
    """Archives, and all that is in them."""
    from tests.hostile.archives import tarred, zipped
    from tests.hostile.test_hostile import ARCHIVES, CORPUS

    limits = load_params(REPOSITORY / "params.yaml").corpus.limits.model_copy(
        update={"max_total_mb": 64, "max_member_mb": 16}
    )
    tar = tarred(CORPUS)
    good = [
        zipped(CORPUS),
        tar,
        zipped(CORPUS, stored=False),
        gzip.compress(tar),
        zstandard.compress(tar),
    ]

    def read(content: bytes, folder: Path) -> str:
        path = folder / "corpus.zip"
        path.write_bytes(content)
        try:
            with open_corpus(path, limits, folder / "scratch") as corpus:
                for name in corpus.names:
                    try:
                        if len(corpus.fetch(name)) != corpus.size(name):
                            raise AssertionError(f"{name} has another size than was said")
                    except InputError:
                        continue
                return "opened"
        except InputError:
            return "refused"

    return Target(good, [case.content for case in ARCHIVES.values()], read)


def record_reader() -> Target:
    """Question files, JSON and CSV."""
    from tests.hostile.test_hostile import FILES, GOOD

    records = list(GOOD.values())
    table = (
        "image;question;options;answer;modality;type\na.png;What?;one|two;B;ct;disease-diagnosis\n"
    )
    texts = [
        json.dumps(records),
        json.dumps(records, indent=1),
        table,
        (table + table[45:] * 3).replace(";", "\t"),
    ]
    good = [text.encode(encoding) for text, encoding in product(texts, ("utf-8", "utf-16"))]

    def read(content: bytes, folder: Path) -> str:
        found = [read_record_files([(f"Set.{kind}", content)]) for kind in ("json", "csv")]
        for reading in found:
            if reading.read != len(reading.records) + len(reading.rows):
                raise AssertionError("read is not kept + refused")
            json.dumps([record.fields for record in reading.records], ensure_ascii=False).encode()
        return "kept some" if any(reading.records for reading in found) else "refused"

    return Target(good, [case.content for case in FILES.values()], read)


def image_reader(dicom: bool = False) -> Target:
    """Images of all kinds, or DICOM files."""
    from tests.hostile.dicoms import DICOMS
    from tests.hostile.images import IMAGES

    params = load_params(REPOSITORY / "params.yaml")
    resize = params.resize.model_copy(update={"size": 28, "max_megapixels": 1})
    cases = (DICOMS if dicom else IMAGES).values()

    def read(content: bytes, folder: Path) -> str:
        try:
            found = decode_files([content], resize, params.dicom)
            if (found.image.mode, found.image.size) != ("RGB", (28, 28)):
                raise AssertionError(f"an image of {found.image.mode}, {found.image.size}")
            for frame in found.frames:
                frame.tobytes()
        except ImageError:
            return "refused"
        return "decoded"

    return Target(
        [case.content for case in cases if case.end == "kept"],
        [case.content for case in cases if case.end != "kept"],
        read,
    )


READERS: Final[dict[str, Callable[[], Target]]] = {
    "archives": archive_reader,
    "records": record_reader,
    "images": image_reader,
    "dicom": lambda: image_reader(dicom=True),
}


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing of what readers tell of thousands of damaged files, until this is left."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def fuzz(
    name: str, files: Iterable[int], seed: int
) -> tuple[Counter[str], list[tuple[bytes, str]]]:
    """Outcome counts, and the numbers whose file broke the reader's contract."""
    ends: Counter[str] = Counter()
    finds: list[tuple[bytes, str]] = []
    with _silence(), tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        target = READERS[name]()
        current = Path(folder) / "current"
        for number in files:
            content = mutate(random.Random(f"{seed}/{name}/{number}"), target)  # noqa: S311  (files, no secrets)
            current.write_bytes(content)
            try:
                ends[target.read(content, Path(folder))] += 1
            except Exception:  # whatever it is, it is a find
                ends["FOUND"] += 1
                finds.append((content, traceback.format_exc(limit=-3)))
    return ends, finds


def main() -> int:
    """Fuzz each reader in its own process and print the outcomes.

    Exit code 1 if anything was found.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "readers", nargs="*", metavar="READER", help=f"{', '.join(READERS)}; all if none is named"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of all readers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write what was seen to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    chosen = given.readers or list(READERS)
    if unknown := sorted(set(chosen) - READERS.keys()):
        parser.error(f"unknown reader {', '.join(unknown)}; there are {', '.join(READERS)}")
    if given.one:
        return _one(given.one, 60 * given.minutes, given.seed)
    made: dict[str, Any] = {}
    for name in chosen:
        # a decoder that takes the process down is a find, too
        command = [
            sys.executable,
            "-m",
            "benchmarks.fuzz",
            "--one",
            name,
            "--minutes",
            str(given.minutes / len(chosen)),
            "--seed",
            str(given.seed),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        last = done.stdout.strip().splitlines()[-1:] or ["{}"]
        made[name] = (
            json.loads(last[0])
            if done.returncode in (0, 1)
            else {"FOUND": f"the process ended with {done.returncode}"}
        )
    shown = Table(
        "reader",
        "files",
        "what became of them",
        title=f"{given.minutes:g} minutes, seed {given.seed}",
    )
    for name, ends in made.items():
        counts = {end: number for end, number in ends.items() if isinstance(number, int)}
        shown.add_row(
            name,
            f"{sum(counts.values()):,}",
            ", ".join(f"{end}: {number}" for end, number in ends.items()),
        )
    Console().print(shown)
    if given.json:
        write_json(
            given.json,
            {
                "readers": made,
                "minutes": given.minutes,
                "seed": given.seed,
                "provenance": collect_provenance({}),
            },
        )
    return int(any("FOUND" in ends for ends in made.values()))


def _one(name: str, seconds: float, seed: int) -> int:
    end = time.monotonic() + seconds

    def numbers() -> Iterator[int]:
        number = 0
        while time.monotonic() < end:
            yield number
            number += 1

    ends, finds = fuzz(name, numbers(), seed)
    for number, (content, why) in enumerate(finds):
        FINDS.mkdir(exist_ok=True)
        (FINDS / f"{name}-{number}").write_bytes(content)
        print(f"{FINDS / name}-{number}: {why}", file=sys.stderr)
    print(json.dumps(dict(sorted(ends.items()))))
    return int(bool(finds))


if __name__ == "__main__":
    sys.exit(main())
