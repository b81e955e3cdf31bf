"""Fuzzing of the readers of archives, records, images, DICOM and volumes with corrupt files.

    python -m benchmarks.fuzz [--quick] [--minutes N] [--seed N] [--json FILE] [READER ...]

Seeds are the files of tests/hostile, good and bad; mutations truncate, splice, repeat and change
them at random. The contract: an archive opens or raises InputError; records read are records
accepted plus records refused; an image has the configured size or raises ImageError. Any other
result, including a crash of the process, is a find, and its bytes are saved in `fuzz-finds/`. File
number N depends on the seed alone.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count, product, takewhile
from pathlib import Path
from typing import Any, Final

import zstandard
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import build_parser
from stages.core.errors import InputError
from stages.core.outputs import write_json
from stages.core.params import load_params, shipped_taxonomy
from stages.core.provenance import collect_provenance
from stages.corpus.archives.source import open_corpus
from stages.corpus.images.files import decode_files
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.records.records import read_record_files

REPOSITORY: Final = Path(__file__).parents[1]
FINDS: Final = Path("fuzz-finds")
_MAX_SEED_BYTES: Final = 200_000
"""Larger files are decompression bombs, each of which takes as long as a thousand others."""
_BAD_SHARE: Final = 0.2
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
"""Reads a file with a scratch folder and names the outcome; raises on a violated contract."""


@dataclass(frozen=True)
class Target:
    """A reader with seed files: those it accepts, and those it refuses."""

    good: Sequence[bytes]
    bad: Sequence[bytes]
    read: Reader

    def __post_init__(self) -> None:
        """Drop seeds that are too large."""
        for name in ("good", "bad"):
            seeds = [seed for seed in getattr(self, name) if len(seed) <= _MAX_SEED_BYTES]
            object.__setattr__(self, name, seeds)


def mutate(rng: random.Random, target: Target) -> bytes:
    """A random mutation of one or two seeds, most of them good."""
    seeds = target.bad if rng.random() < _BAD_SHARE else target.good
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
    """Archives and all their members."""
    from tests.hostile.archives import make_tar, make_zip
    from tests.hostile.corpus import CORPUS
    from tests.hostile.test_hostile import ARCHIVES

    limits = load_params(REPOSITORY / "params.yaml").corpus.limits.model_copy(
        update={"max_total_mb": 64, "max_member_mb": 16}
    )
    tar = make_tar(CORPUS)
    good = [
        make_zip(CORPUS),
        tar,
        make_zip(CORPUS, compress=True),
        gzip.compress(tar),
        zstandard.compress(tar),
    ]

    def read(content: bytes, folder: Path) -> str:
        path = folder / "corpus.zip"
        path.write_bytes(content)
        try:
            with open_corpus(path, limits, folder / "scratch") as corpus:
                for name in corpus.names:
                    with suppress(InputError):
                        if len(corpus.fetch(name)) != corpus.size(name):
                            raise AssertionError(f"{name} differs from its declared size")
                return "opened"
        except InputError:
            return "refused"

    return Target(good, [case.content for case in ARCHIVES.values()], read)


def record_reader() -> Target:
    """Question files, JSON and CSV."""
    from tests.hostile.corpus import GOOD
    from tests.hostile.test_hostile import FILES

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
        readings = [
            read_record_files([(f"Set.{kind}", content)], shipped_taxonomy())
            for kind in ("json", "csv")
        ]
        for reading in readings:
            if reading.read != len(reading.records) + len(reading.rows):
                raise AssertionError("records read are not records accepted + refused")
            json.dumps([record.fields for record in reading.records], ensure_ascii=False).encode()
        return "kept some" if any(reading.records for reading in readings) else "refused"

    return Target(good, [case.content for case in FILES.values()], read)


def image_reader(dicom: bool = False) -> Target:
    """Images of all formats, or DICOM files."""
    from tests.hostile.dicoms import DICOMS
    from tests.hostile.images import IMAGES

    cases = (DICOMS if dicom else IMAGES).values()
    return _decoding(
        [case.content for case in cases if case.end == "kept"],
        [case.content for case in cases if case.end != "kept"],
        frames=1,
    )


def volume_reader() -> Target:
    """Files of several slices or frames that are shown: NIfTI, DICOM, TIFF and GIF."""
    from tests.hostile.file_pages import PAGES
    from tests.hostile.volumes import VOLUMES

    cases = [case for case in (VOLUMES | PAGES).values() if list(case.files) == [""]]
    return _decoding(
        [case.files[""] for case in cases if case.reason is None],
        [case.files[""] for case in cases if case.reason is not None],
        frames=4,
    )


def _decoding(good: Sequence[bytes], bad: Sequence[bytes], frames: int) -> Target:
    """Decoding of a file with all its frames. `frames`: volume.frames."""
    params = load_params(REPOSITORY / "params.yaml")
    resize = params.resize.model_copy(update={"size": 28, "max_megapixels": 1})
    volume = params.volume.model_copy(update={"frames": frames})

    def read(content: bytes, folder: Path) -> str:
        try:
            decoded = decode_files([content], resize, params.dicom, volume)
            image = decoded.image
            if (image.mode, image.size) != ("RGB", (28, 28)):
                raise AssertionError(f"decoded to mode {image.mode}, size {image.size}")
            for frame in decoded.frames:
                frame.tobytes()
        except ImageError:
            return "refused"
        return "decoded"

    return Target(good, bad, read)


READERS: Final[dict[str, Callable[[], Target]]] = {
    "archives": archive_reader,
    "records": record_reader,
    "images": image_reader,
    "dicom": lambda: image_reader(dicom=True),
    "volumes": volume_reader,
}


@contextmanager
def _silence() -> Iterator[None]:
    """Disable logging and warnings, of which corrupt files cause thousands."""
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
    """Outcome counts, and (content, traceback) of the files that violated the contract."""
    outcomes: Counter[str] = Counter()
    finds: list[tuple[bytes, str]] = []
    with _silence(), tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        target = READERS[name]()
        current = Path(folder) / "current"
        for number in files:
            content = mutate(random.Random(f"{seed}/{name}/{number}"), target)  # noqa: S311  (files, no secrets)
            current.write_bytes(content)
            try:
                outcomes[target.read(content, Path(folder))] += 1
            except Exception:  # any other exception is a find
                outcomes["FOUND"] += 1
                finds.append((content, traceback.format_exc(limit=-3)))
    return outcomes, finds


def main() -> int:
    """Fuzz each reader in its own process and print the outcomes; exit code 1 after a find."""
    parser = build_parser("fuzz", __doc__, quick="half a minute")
    parser.add_argument(
        "readers", nargs="*", metavar="READER", help=f"{', '.join(READERS)} (default: all)"
    )
    parser.add_argument(
        "--minutes", type=float, help="for all readers together (default: 10, with --quick 0.5)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.readers or list(READERS)
    if unknown := sorted(set(names) - READERS.keys()):
        parser.error(f"unknown reader {', '.join(unknown)}; known: {', '.join(READERS)}")
    total = arguments.minutes or (0.5 if arguments.quick else 10.0)
    if arguments.one:
        return _fuzz_one(arguments.one, 60 * total, arguments.seed)
    minutes = total / len(names)
    results = {name: _fuzz_in_process(name, minutes, arguments.seed) for name in names}
    title = f"{total:g} minutes, seed {arguments.seed}"
    table = Table("reader", "files", "outcomes", title=title)
    for name, outcomes in results.items():
        files = sum(number for number in outcomes.values() if isinstance(number, int))
        texts = [f"{outcome}: {number}" for outcome, number in outcomes.items()]
        table.add_row(name, f"{files:,}", ", ".join(texts))
    Console().print(table)
    if arguments.json:
        result = {
            "readers": results,
            "minutes": total,
            "seed": arguments.seed,
            "provenance": collect_provenance({}),
        }
        write_json(arguments.json, result)
    return int(any("FOUND" in outcomes for outcomes in results.values()))


def _fuzz_in_process(name: str, minutes: float, seed: int) -> dict[str, Any]:
    """Outcome counts of a reader in its own process, whose crash is a find too."""
    command = [sys.executable, "-m", "benchmarks.fuzz", "--one", name]
    command += ["--minutes", str(minutes), "--seed", str(seed)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if process.returncode not in (0, 1):
        return {"FOUND": f"the process ended with {process.returncode}"}
    last = process.stdout.strip().splitlines()[-1:] or ["{}"]
    outcomes: dict[str, Any] = json.loads(last[0])
    return outcomes


def _fuzz_one(name: str, seconds: float, seed: int) -> int:
    end = time.monotonic() + seconds
    numbers = takewhile(lambda _: time.monotonic() < end, count())
    outcomes, finds = fuzz(name, numbers, seed)
    for number, (content, error) in enumerate(finds):
        FINDS.mkdir(exist_ok=True)
        (FINDS / f"{name}-{number}").write_bytes(content)
        print(f"{FINDS / name}-{number}: {error}", file=sys.stderr)
    print(json.dumps(dict(sorted(outcomes.items()))))
    return int(bool(finds))


if __name__ == "__main__":
    sys.exit(main())
