"""Stage `resize@<modality>`: decode every image once, as an RGB PNG of the policies' input size.

    python -m stages.resize ct

All records of an image that cannot be decoded go to quarantine. The others get `image` (the path by
which stages/corpus/dataset/image_store.py opens it), `source_size` (original width and height, from
which data tests recognise upscaled images), `source_mode`, `brightness`, and `pixel_hash` and
`perceptual_hash`, by which stage splits finds copies. A record of a DICOM file or series also gets
`dicom`, the header fields that are kept.

Images already resized from the same bytes with the same settings come from a cache outside of DVC's
outputs.

Of a volume (a DICOM series, a file with several frames, NIfTI) the frames are kept that questions
show, by `volume` in params.yaml or by their own `slices`. A record of such a volume has their
number as `frames`; one about several images also has `shown`, the paths of all in order, and
`sources`, the hashes of the files and volumes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

from stages.core import layout
from stages.core.cli import run_stage, stage_parser
from stages.core.errors import InputError
from stages.core.outputs import atomic_directory, read_json_lines, write_json_lines
from stages.core.params import load_params
from stages.core.provenance import collect_provenance
from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.archives.hash_cache import CORPUS_CHANGED
from stages.corpus.archives.source import Corpus, open_corpus
from stages.corpus.dataset.paths import image_files
from stages.corpus.images.frames import Slices, VolumeFrames
from stages.corpus.images.image_cache import ImageCache
from stages.corpus.images.resizer import ImageResizer, ImageResult, ImageSource
from stages.corpus.images.shown import add_images
from stages.corpus.quarantine.advice import remedy_of
from stages.corpus.quarantine.image_errors import ImageError, UnreadError
from stages.corpus.quarantine.ledger import Row, write_quarantine
from stages.corpus.quarantine.limits import check_refused
from stages.corpus.quarantine.locations import locate_in_corpus
from stages.corpus.records.records import iterate_records, refuse
from stages.corpus.records.texts import RefusedRecord

OUTPUTS_FORMAT: Final = 1
"""`stages.core.outputs.FORMAT` of the JSON that this stage writes."""

CACHE: Final = layout.SCRATCH / "images"

_REMEDY = "run `dvc repro download`"


def main() -> None:
    """Write data/images, data/records and data/quarantine/resize of a modality."""
    parser = stage_parser("resize", __doc__)
    params = load_params()
    parser.add_argument("modality", choices=params.modalities)
    slug = parser.parse_args().modality
    # records are read twice: at full scale, keeping them would take more memory than all else
    records = layout.corpus_records(slug)
    count = 0
    slices: dict[str, set[Slices]] = defaultdict(set)
    for record in iterate_records(records, _REMEDY, params.taxonomy):
        count += 1
        for name in record.image_paths:
            slices[name].add(record.slices)
    hashes = read_hashes(layout.corpus_images(slug))
    sources = ImageSources(slices, hashes)
    path = Path(params.corpus.archive)
    if not path.exists():
        raise InputError(
            f"{path} (corpus.archive), which contains the images, is missing: run `dvc pull"
            " data.dvc`"
        )
    with (
        open_corpus(path, params.corpus.limits) as corpus,
        closing(ImageCache(CACHE, round(params.cache.images_gb * 1e9))) as cache,
        atomic_directory(layout.images(slug)) as images,
    ):
        frames = VolumeFrames(images, cache, params.volume, slices)
        resizer = ImageResizer(
            slug,
            params.taxonomy.modalities.categories[slug],
            sources,
            partial(_fetch, corpus, hashes),
            params.resize,
            params.dicom,
            params.volume,
            cache,
            frames,
        )
        results = resizer.write_shards(images)
    datasets: list[str] = []  # of the usable records, one each
    rows: list[Row] = []

    def usable() -> Iterator[dict[str, Any]]:
        for record in iterate_records(records, _REMEDY, params.taxonomy):
            try:
                fields = add_images(
                    record, results, frames.facts, layout.images(slug), params.volume
                )
            except RefusedRecord as refusal:
                rows.append(refuse(record, refusal.what, refusal.why, refusal.reason))
            else:
                datasets.append(record.dataset)
                yield fields

    write_json_lines(layout.records(slug), usable())
    quarantine_file = layout.QUARANTINE / "resize" / f"{slug}.parquet"
    provenance = collect_provenance(
        {"resize": params.resize, "dicom": params.dicom, "volume": params.volume}
    )
    quarantine = write_quarantine(
        quarantine_file, f"resize@{slug}", count, datasets, rows, provenance
    )
    located = locate_in_corpus(quarantine, layout.LOCATIONS)  # for the message only
    check_refused(located, params.quarantine, quarantine_file, str(layout.corpus(slug)), remedy_of)
    print(
        f"resize {slug}: read {count} records of {len(results)} images ({resizer.decoded_count}"
        f" of them decoded), kept {len(datasets)}, quarantined {len(rows)}"
    )
    _report_unflagged(slug, results)


def read_hashes(path: Path) -> dict[str, bytes]:
    """Image file -> SHA-256 (bytes, half the size of hex digits), from a file of stage download.

    Raises InputError if it is missing, not JSON Lines, or a line lacks `file` or `sha256`.
    """
    hashes = {}
    for number, entry in enumerate(read_json_lines(path, _REMEDY), start=1):
        try:
            hashes[entry["file"]] = bytes.fromhex(entry["sha256"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}, line {number}: no image file with its sha256 ({error!r}): {_REMEDY}"
            ) from error
    return hashes


class ImageSources(Mapping[str, ImageSource]):
    """Lazy mapping image_path -> its files and their hashes from stage download."""

    def __init__(self, paths: Iterable[str], hashes: Mapping[str, bytes]) -> None:
        """`hashes`: file -> SHA-256. Raises InputError if an image has no files."""
        self._paths = sorted(paths)
        self._hashes = hashes
        self._names = sorted(hashes)
        for path in self._paths:
            if not image_files(self._names, path):
                raise InputError(
                    f"{path}, named in a record, is missing from images.jsonl: {_REMEDY}"
                )

    def __getitem__(self, path: str) -> ImageSource:
        """The files of an image."""
        files = image_files(self._names, path)
        return ImageSource(
            tuple((name, self._hashes[name].hex()) for name in files), path not in self._hashes
        )

    def __iter__(self) -> Iterator[str]:
        """The images, sorted."""
        return iter(self._paths)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._paths)


def _fetch(corpus: Corpus, hashes: Mapping[str, bytes], name: str) -> bytes:
    """The bytes of a file, checked against the hash from stage download.

    Raises UnreadError if the file is corrupt, InputError if it is missing or has changed.
    """
    try:
        content = corpus.fetch(name)
    except KeyError:
        raise InputError(f"{corpus.path}: {name!r} is missing: {CORPUS_CHANGED}") from None
    except DamagedMemberError as error:
        raise UnreadError(f"{name} cannot be read from the corpus: {error.why}") from error
    if hashlib.sha256(content).digest() != hashes[name]:
        raise InputError(f"{corpus.path}: {name!r} has other bytes: {CORPUS_CHANGED}")
    return content


def _report_unflagged(slug: str, results: Mapping[str, ImageResult]) -> None:
    """Print the number of DICOM images that do not state whether text is burned into them."""
    dicom = [
        result["dicom"]
        for result in results.values()
        if not isinstance(result, ImageError) and "dicom" in result
    ]
    if unflagged := sum("BurnedInAnnotation" not in tags for tags in dicom):
        print(
            f"resize {slug}: {unflagged} of these images are DICOM without BurnedInAnnotation: text"
            " may be burned into them"
        )


if __name__ == "__main__":
    run_stage(main)
