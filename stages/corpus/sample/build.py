"""The embedded corpus: phantoms in OmniMedVQA's layout, all file kinds, and some broken files.

    python -m stages.corpus.sample.build [--out infra/sample/omnimedvqa-phantoms.zip]

Sixteen source sets of single images: two per modality, one per anatomy. Three more have series,
follow-ups and indications (stages/corpus/sample/volumes.py). Every run gives the same bytes (with
the Pillow and numpy of infra/requirements.lock): seeds are [7, set, image], and the zip's dates are
fixed. Images are stored uncompressed, question files as bzip2, which gives the same bytes on every
platform; deflate does not.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from stages.core.cli import stage_parser
from stages.core.outputs import atomic_file
from stages.core.params import shipped_taxonomy
from stages.corpus.dataset.paths import IMAGES, QUESTIONS
from stages.corpus.sample import volumes
from stages.corpus.sample.drawing import draw
from stages.corpus.sample.options import options_for
from stages.corpus.sample.phantoms import LETTERS, QUESTION_TYPE_OF, Phantom, sample_phantom
from stages.corpus.sample.phantoms import QUESTIONS as WORDINGS

DEFAULT_OUT: Final = Path("infra/sample/omnimedvqa-phantoms.zip")
TOP: Final = "OmniMedVQA-phantoms/"
SEED: Final = 7
IMAGES_PER_SET: Final = 96

SETS: Final[tuple[tuple[str, str, str], ...]] = (
    ("Phantom Chest CT", "ct", "Chest"),
    ("Phantom Abdomen CT (axial)", "ct", "Abdomen"),
    ("Phantom Brain MRI", "mri", "Brain"),
    ("Phantom Knee MRI (sagittal)", "mri", "Knee"),
    ("Phantom Röntgen Thorax", "x-ray", "Chest"),
    ("Phantom Hand X-ray [AP]", "x-ray", "Hand"),
    ("Phantom Breast Ultrasound", "ultrasound", "Breast"),
    ("Phantom Schilddrüse Sonographie", "ultrasound", "Thyroid"),
    ("Phantom Skin Dermoscopy", "dermoscopy", "Skin"),
    ("Phantom Nail Dermoscopy", "dermoscopy", "Nail"),
    ("Phantom Retina Fundus 45°", "fundus", "Retina"),
    ("Phantom Macula Fundus", "fundus", "Macula"),
    ("Phantom Macula OCT", "oct", "Macula"),
    ("Phantom Nerf Optique OCT [B-scan]", "oct", "Nerve"),
    ("Phantom Blood Smear", "microscopy", "Blood"),
    ("Phantom Colon H&E", "microscopy", "Colon"),
)
"""(data set, modality slug, anatomy)."""

INDICATED: Final = "mri"
"""Modality whose images the questions with an indication are about."""

# Part of the archive that data.dvc pins: no byte may change, so it keeps this module's old path.
README: Final = """\
OmniMedVQA-phantoms: a synthetic corpus in the layout of OmniMedVQA (arXiv 2402.09181)

The pictures are drawings made by a program (stages/corpus/sample.py). They show no \
patient and no anatomy of anyone,
and come from no scanner. The "diseases" are shapes. NOT FOR CLINICAL USE, nor for any \
statement about medicine: the
corpus exists so that the pipeline can be run and tested on a laptop.

Some records and pictures are broken on purpose, so that every run shows how bad input \
is refused:
a truncated, an empty and a missing picture, a text named .png, a question file that is \
cut short, and records without
an answer, with an answer that is no option, with equal options, of an unknown modality \
or question type, and without
a question.
"""

_GREY_MODALITIES: Final = ("ct", "mri", "x-ray", "ultrasound", "oct")
"""Modalities whose images have no colour to lose."""

_INVERSE_ROTATIONS: Final = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> rotation of the stored pixels that a viewer undoes as the tag says."""

_JPEG: Final[dict[str, Any]] = {"quality": 80, "optimize": True}

Tables = dict[str, list[dict[str, Any]]]
"""Data set -> its records."""


def build_sample() -> dict[str, bytes]:
    """All files of the corpus: path under the top folder -> content."""
    files = {"README.txt": README.encode()}
    tables: Tables = {}
    shown: dict[str, Phantom] = {}
    for number, (dataset, modality, anatomy) in enumerate(SETS):
        records = tables[dataset] = []
        for index in range(IMAGES_PER_SET):
            # one generator per image: the order of the draws from it decides the bytes
            rng = np.random.default_rng([SEED, number, index])
            phantom = sample_phantom(rng, modality, anatomy)
            image = draw(phantom, _size(rng), rng)
            suffix, content = _encode(image, modality, rng)
            path = f"{IMAGES}{dataset}/{_stem(index, rng)}{suffix}"
            files[path] = content
            if modality == INDICATED:
                shown[path] = phantom
            records += _questions(phantom, dataset, path, len(records), rng)
    files |= _add_broken(files, tables)
    first = len(SETS)
    drawn, tables[volumes.SERIES] = volumes.draw_series(SEED, first)
    files |= drawn
    drawn, tables[volumes.FOLLOW_UP] = volumes.draw_follow_ups(SEED, first + 1)
    files |= drawn
    tables[volumes.INDICATION] = volumes.indications(SEED, first + 2, shown)
    for dataset, records in tables.items():
        files[f"{QUESTIONS}{dataset}.json"] = _json(records)
    return files


def write_archive(files: dict[str, bytes], out: Path) -> None:
    """Write files under the top folder as a zip whose bytes depend on nothing else."""
    with (
        atomic_file(out) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name in sorted(files):
            info = zipfile.ZipInfo(TOP + name, date_time=(1980, 1, 1, 0, 0, 0))
            # a regular Unix file, whatever the platform
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            is_table = name.startswith(QUESTIONS)
            compression = zipfile.ZIP_BZIP2 if is_table else zipfile.ZIP_STORED
            archive.writestr(info, files[name], compression)


def main() -> None:
    """Write the archive and print its size."""
    parser = stage_parser("corpus.sample.build", __doc__)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out: Path = parser.parse_args().out
    files = build_sample()
    write_archive(files, out)
    images = sum(name.startswith(IMAGES) for name in files)
    sets = sum(name.startswith(QUESTIONS) for name in files)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {images} images, {sets} question files")


# --- questions ------------------------------------------------------------------------------------


def _questions(
    phantom: Phantom, dataset: str, path: str, first: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """One record per attribute of a phantom, numbered from `first`; without count or side."""
    skipped = str(rng.choice(["count", "side"]))
    records = []
    attributes = [attribute for attribute in phantom.attributes if attribute != skipped]
    for number, attribute in enumerate(attributes, start=first):
        options = options_for(phantom, attribute, rng, biased=True)
        record = {
            "dataset": dataset,
            "question_id": f"{dataset}_{number:05d}",
            "question_type": QUESTION_TYPE_OF[attribute],
            "question": str(rng.choice(WORDINGS[attribute])),
            "gt_answer": phantom.answer(attribute),
            "image_path": path,
        }
        for letter, option in zip(LETTERS, options, strict=False):
            record[f"option_{letter}"] = option
        record["modality_type"] = shipped_taxonomy().modalities.name(phantom.modality)
        records.append(record)
    return records


def _json(records: list[dict[str, Any]]) -> bytes:
    """A JSON list with one line per record."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    return f"[\n{lines}\n]\n".encode()


# --- images ---------------------------------------------------------------------------------------


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height) from 96 to 198 pixels, either orientation, aspect ratio up to 1.6."""
    short = int(rng.integers(96, 125))
    long = round(short * (1 + 0.6 * float(rng.random())))
    return (short, long) if rng.random() < 0.5 else (long, short)


def _stem(index: int, rng: np.random.Generator) -> str:
    """A file name without suffix; one in ten is hard on path handling."""
    odd = (
        f"image {index:03d} (1)",
        f"[{index:03d}] séance",
        f"Bild-{index:03d}.größe 1",
        f"画像{index:03d}",
    )
    return str(rng.choice(odd)) if rng.random() < 0.1 else f"image_{index:03d}"


def _encode(image: Image.Image, modality: str, rng: np.random.Generator) -> tuple[str, bytes]:
    """An image as (suffix, file content), in a random kind of file."""
    has_colors = modality not in _GREY_MODALITIES
    kinds = [kind for kind in _KINDS if not (kind.loses_color and has_colors)]
    shares = np.array([kind.share for kind in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
    return kind.suffix, kind.encode(image)


def _save(image: Image.Image, file_format: str, **settings: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **settings)
    return buffer.getvalue()


def _jpeg(image: Image.Image, mode: str = "RGB") -> bytes:
    return _save(image.convert(mode), "JPEG", **_JPEG)


def _rotated_jpeg(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return _save(image.transpose(_INVERSE_ROTATIONS[orientation]), "JPEG", **_JPEG, exif=exif)


def _palette(image: Image.Image, colors: int) -> Image.Image:
    return image.quantize(colors, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _palette_png(image: Image.Image) -> bytes:
    return _save(_palette(image, 16), "PNG", bits=4, optimize=True)


def _grey_png(image: Image.Image) -> bytes:
    return _save(image.convert("L"), "PNG", optimize=True)


def _16_bit_png(image: Image.Image) -> bytes:
    """12 of 16 bits, as scanners write them: a viewer that does not scale shows black."""
    levels = np.asarray(image.convert("L"), dtype=np.uint16) * 12 + 700
    return _save(Image.fromarray(levels), "PNG", optimize=True)


def _alpha_png(image: Image.Image, mode: str) -> bytes:
    """Opaque except for a narrow frame."""
    alpha = Image.new("L", image.size, 0)
    alpha.paste(255, (3, 3, image.width - 3, image.height - 3))
    framed = image.convert(mode)
    framed.putalpha(alpha)
    return _save(framed, "PNG", optimize=True)


def _tiff(image: Image.Image) -> bytes:
    return _save(image, "TIFF", compression="tiff_lzw")


def _bmp(image: Image.Image) -> bytes:
    return _save(_palette(image, 64), "BMP")


class _Kind(NamedTuple):
    share: float
    """Of the images that may be of this kind, before the shares are scaled to 1."""
    suffix: str
    encode: Callable[[Image.Image], bytes]
    loses_color: bool = False
    """For grey modalities only."""


_KINDS: Final = (
    _Kind(0.68, ".jpg", _jpeg),
    _Kind(0.10, ".jpeg", partial(_jpeg, mode="L"), loses_color=True),
    *(
        _Kind(0.02, ".JPG", partial(_rotated_jpeg, orientation=orientation))
        for orientation in _INVERSE_ROTATIONS
    ),
    _Kind(0.055, ".png", _palette_png),
    _Kind(0.03, ".png", _grey_png, loses_color=True),
    _Kind(0.025, ".png", _16_bit_png, loses_color=True),
    _Kind(0.02, ".jpg", partial(_jpeg, mode="CMYK")),
    _Kind(0.01, ".png", partial(_alpha_png, mode="RGBA")),
    _Kind(0.01, ".png", partial(_alpha_png, mode="LA"), loses_color=True),
    _Kind(0.01, ".tif", _tiff),
    _Kind(0.01, ".bmp", _bmp),
)


# --- broken files and records ---------------------------------------------------------------------


def _add_broken(files: dict[str, bytes], tables: Tables) -> dict[str, bytes]:
    """Append one bad record of each kind to `tables`, each to its own set; return the bad files."""
    datasets = list(tables)
    folders = [f"{IMAGES}{dataset}/" for dataset in datasets]
    a_jpeg = next(content for name, content in sorted(files.items()) if name.endswith(".jpg"))
    images = {
        f"{folders[0]}truncated.jpg": a_jpeg[: len(a_jpeg) // 2],
        f"{folders[1]}not an image.png": b"This is a text, whatever its name says.\n",
        f"{folders[2]}empty.jpg": b"",
    }
    changes: list[dict[str, str | None]] = [{"image_path": path} for path in images]
    changes += [
        {"image_path": f"{folders[3]}missing.jpg"},
        {"gt_answer": None},
        {"gt_answer": "None of these"},
        {"option_A": "Same", "option_B": "Same", "gt_answer": "Same"},
        {"modality_type": "Crystal ball"},
        {"question_type": "Small Talk"},
        {"question": ""},
    ]
    for dataset, change in zip(datasets, changes, strict=False):
        records = tables[dataset]
        bad = records[0] | {"question_id": f"{dataset}_{len(records):05d}"} | change
        records.append({field: value for field, value in bad.items() if value is not None})
    table = _json(tables[datasets[-1]])
    return images | {f"{QUESTIONS}Phantom Broken.json": table[: len(table) // 8]}


if __name__ == "__main__":
    main()
