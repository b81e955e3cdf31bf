"""Stage `download`: check the raw corpus's records and hash their images, by modality.

    python -m stages.download

What `data.dvc` imported is read in place, and nothing of it is copied. Records that cannot be used
go to quarantine with the reason. `images.jsonl` lists the image files of these records, each with
its SHA-256 and size: by them DVC sees which modalities new data touches, and stage resize sees that
it reads the corpus that was checked. Whether an image can be decoded is found out there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from stages.core import layout
from stages.core.cli import run_stage
from stages.core.errors import InputError
from stages.core.iteration.prefetch import prefetch
from stages.core.iteration.progress import counted
from stages.core.outputs import atomic_directory, write_json_lines
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.archives.hash_cache import HashCache
from stages.corpus.archives.source import Corpus, open_corpus
from stages.corpus.quarantine.ledger import write_quarantine
from stages.corpus.quarantine.limits import check_refused
from stages.corpus.quarantine.reasons import CorpusFault, Reason, RefusedDataError
from stages.corpus.records.reading import find_images, read_questions
from stages.corpus.records.records import Reading, Record, refuse
from stages.taxonomy import MODALITIES

OUTPUTS_FORMAT: Final = 1
"""`stages.core.outputs.FORMAT` of the JSON that this stage writes."""

MEMO: Final = layout.SCRATCH / "corpus" / "hashes"
"""What is known of images from the run before."""
_IN_FLIGHT: Final = 256 * 2**20
"""Bytes of images that are read and not yet hashed, at most, unless one alone has more."""
_QUEUED: Final = 1024
"""Images that are handed out at a time."""


def main() -> None:
    """Write data/corpus/<modality> for all modalities, and data/quarantine/download.parquet."""
    argparse.ArgumentParser(prog="python -m stages.download", description=__doc__).parse_args()
    params = load_params()
    settings = params.corpus
    path = Path(settings.archive)
    if not path.exists():
        raise InputError(
            f"{path} (corpus.archive) is missing: run `dvc repro`, or `dvc pull data.dvc` for the"
            " pinned corpus alone"
        )
    with open_corpus(path, settings.limits) as corpus:
        listed, files = find_images(corpus, read_questions(corpus))
        hashes, damaged = _hash_all(corpus, sorted(set(chain.from_iterable(files.values()))))
        reading = _without_damaged(listed, files, damaged)
        account = layout.QUARANTINE / "download.parquet"
        kept = [record.dataset for record in reading.records]
        quarantine = write_quarantine(
            account,
            "download",
            reading.read,
            kept,
            reading.rows,
            collect_provenance({"corpus": settings}),
        )
        if not reading.records:
            message = (
                f"{path} holds no usable record: {reading.read} read, all refused; {account}"
                " says why"
            )
            raise RefusedDataError(message, CorpusFault.NO_RECORD)
        check_refused(quarantine, params.quarantine, account, str(path))
        for slug in MODALITIES:
            records = [record for record in reading.records if record.modality == slug]
            _write(
                corpus, slug, sorted(records, key=lambda record: record.question_id), files, hashes
            )
    print(
        f"download: read {reading.read} records, kept {len(reading.records)}, quarantined"
        f" {len(reading.rows)} ({account})"
    )


def _without_damaged(
    reading: Reading, files: Mapping[str, Sequence[str]], damaged: Mapping[str, str]
) -> Reading:
    """The same reading, records whose image cannot be read quarantined."""
    why: dict[str, str] = {}
    for path, names in files.items():
        for name in names:
            if name in damaged:  # the first of a series that cannot be read
                why.setdefault(path, damaged[name])
    kept = [record for record in reading.records if record.image_path not in why]
    rows = [
        refuse(
            record,
            record.image_path,
            f"the image cannot be read from the corpus: {why[record.image_path]}",
            Reason.IMAGE_DAMAGED,
        )
        for record in reading.records
        if record.image_path in why
    ]
    return Reading(reading.read, kept, [*reading.rows, *rows])


def _hash_all(corpus: Corpus, names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The SHA-256 of each image, and for each that cannot be read, why.

    What the memo knows is not read.
    """
    memo = HashCache(MEMO)
    hashes = {name: known for name in names if (known := memo.get(corpus.fingerprint(name)))}
    fresh = corpus.in_order(name for name in names if name not in hashes)
    damaged = {}
    for name, digest, why in counted(_hash_each(corpus, fresh), len(fresh), "download", "image"):
        if why is None:
            hashes[name] = digest
        else:
            damaged[name] = why
    memo.write({corpus.fingerprint(name): digest for name, digest in hashes.items()})
    print(f"download: {len(names)} images, {len(fresh)} of them read, the others as they were")
    return hashes, damaged


def _hash_each(corpus: Corpus, names: Sequence[str]) -> Iterator[tuple[str, str, str | None]]:
    """Hash images on all cores, yielding name, SHA-256 and error in order.

    At most _IN_FLIGHT bytes and one image are in memory.
    """

    def hashed(name: str) -> tuple[str, str, str | None]:
        try:
            return name, hashlib.sha256(corpus.fetch(name)).hexdigest(), None
        except DamagedMemberError as error:
            return name, "", error.why

    # a small image counts as if it were larger, so that no more than _QUEUED are handed out
    at_least = _IN_FLIGHT // _QUEUED
    yield from prefetch(
        hashed,
        names,
        # files are read, unpacked and hashed without the interpreter's lock
        threads=os.cpu_count(),
        budget=_IN_FLIGHT,
        weight=lambda name: max(corpus.size(name), at_least),
    )


def _write(
    corpus: Corpus,
    slug: str,
    records: list[Record],
    files: Mapping[str, Sequence[str]],
    hashes: Mapping[str, str],
) -> None:
    paths = {record.image_path for record in records}
    names = sorted(set(chain.from_iterable(files[path] for path in paths)))
    with atomic_directory(layout.corpus(slug)) as folder:
        write_json_lines(
            folder / layout.corpus_records(slug).name, (record.fields for record in records)
        )
        images = (
            {"file": name, "sha256": hashes[name], "size": corpus.size(name)} for name in names
        )
        write_json_lines(folder / layout.corpus_images(slug).name, images)
    print(
        f"download: {slug}: {len(records)} records, {len(names)} image files ->"
        f" {layout.corpus(slug)}"
    )


if __name__ == "__main__":
    run_stage(main)
