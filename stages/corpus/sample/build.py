"""The embedded corpus: phantoms in OmniMedVQA's layout, all file kinds, and some broken files.

    python -m stages.corpus.sample.build [--out infra/sample/omnimedvqa-phantoms.zip]

Sixteen source sets, two a modality, one an anatomy. Every run gives the same bytes (with the Pillow
and numpy of infra/requirements.lock): seeds are [7, set, image], and the zip's dates are fixed.
Images are stored as they are, question files as bzip2, which gives the same bytes wherever it runs;
deflate does not.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from stages.core.outputs import atomic_file
from stages.corpus.dataset.paths import IMAGES, QUESTIONS
from stages.corpus.sample.phantoms import (
    QUESTION_TYPE_OF,
    LETTERS,
    Phantom,
    askable,
    draw,
    options_for,
    sample_phantom,
)
from stages.corpus.sample.phantoms import QUESTIONS as WORDINGS
from stages.taxonomy import MODALITIES

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

# part of the archive that data.dvc pins: another word here is another corpus, so it keeps the path
# of this module at that time
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

_GREY = ("ct", "mri", "x-ray", "ultrasound", "oct")
"""Modalities whose images have no colour to lose."""

_TURNED_BY = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how pixels are stored so that a viewer, turning them as the tag says, shows
them upright.
"""


_JPEG: Final[dict[str, Any]] = {"quality": 80, "optimize": True}


def build_sample() -> dict[str, bytes]:
    """All files of the corpus: path under the top folder -> content."""
    files = {"README.txt": README.encode()}
    tables: dict[str, list[dict[str, Any]]] = {}
    for number, (dataset, modality, anatomy) in enumerate(SETS):
        records = tables[dataset] = []
        for index in range(IMAGES_PER_SET):
            rng = np.random.default_rng([SEED, number, index])
            phantom = sample_phantom(rng, modality, anatomy)
            suffix, content = _encode(draw(phantom, _size(rng), rng), modality, rng)
            path = f"{IMAGES}{dataset}/{_stem(index, rng)}{suffix}"
            files[path] = content
            records += _questions(phantom, dataset, path, len(records), rng)
    files |= _broken(files, tables)
    files |= {f"{QUESTIONS}{dataset}.json": _json(records) for dataset, records in tables.items()}
    return files


def write_archive(files: dict[str, bytes], out: Path) -> None:
    """Write files under the top folder as a zip whose bytes depend on nothing else."""
    with (
        atomic_file(out) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name in sorted(files):
            info = zipfile.ZipInfo(TOP + name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = (
                3,
                0o100644 << 16,
            )  # a plain file of a Unix, wherever it is made
            archive.writestr(
                info,
                files[name],
                zipfile.ZIP_BZIP2 if name.startswith(QUESTIONS) else zipfile.ZIP_STORED,
            )


def main() -> None:
    """Write the archive and say what is in it."""
    arguments = argparse.ArgumentParser(
        prog="python -m stages.corpus.sample.build", description=__doc__
    )
    arguments.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out: Path = arguments.parse_args().out
    files = build_sample()
    write_archive(files, out)
    images = sum(name.startswith(IMAGES) for name in files)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {images} images, {len(SETS)} source sets")


# --- questions
# --------------------------------------------------------------------------------------------------


def _questions(
    phantom: Phantom, dataset: str, path: str, first: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """One record for each thing that can be asked of a phantom; of count and side, one."""
    left_out = str(rng.choice(["count", "side"]))
    records = []
    for number, asked in enumerate(
        (asked for asked in askable(phantom) if asked != left_out), start=first
    ):
        options = options_for(phantom, asked, rng, biased=True)
        records.append(
            {
                "dataset": dataset,
                "question_id": f"{dataset}_{number:05d}",
                "question_type": QUESTION_TYPE_OF[asked],
                "question": str(rng.choice(WORDINGS[asked])),
                "gt_answer": phantom.answer(asked),
                "image_path": path,
                **{
                    f"option_{letter}": option
                    for letter, option in zip(LETTERS, options, strict=False)
                },
                "modality_type": MODALITIES[phantom.modality],
            }
        )
    return records


def _json(records: list[dict[str, Any]]) -> bytes:
    """A JSON list, a line a record."""
    return (
        "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n"
    ).encode()


# --- images
# --------------------------------------------------------------------------------------------------


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height) from 96 to 198 pixels, either orientation, aspect ratio up to 1.6."""
    short = int(rng.integers(96, 125))
    long = round(short * (1 + 0.6 * float(rng.random())))
    return (short, long) if rng.random() < 0.5 else (long, short)


def _stem(index: int, rng: np.random.Generator) -> str:
    """A file name without suffix: mostly plain, some with what path handling trips over."""
    plain = f"image_{index:03d}"
    odd = (
        f"image {index:03d} (1)",
        f"[{index:03d}] séance",
        f"Bild-{index:03d}.größe 1",
        f"画像{index:03d}",
    )
    return str(rng.choice(odd)) if rng.random() < 0.1 else plain


def _encode(image: Image.Image, modality: str, rng: np.random.Generator) -> tuple[str, bytes]:
    """An image as (suffix, file content), in a kind of file drawn by its share."""
    kinds = [kind for kind in _KINDS if modality in _GREY or not kind.grey]
    shares = np.array([kind.share for kind in kinds])
    kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
    return kind.suffix, kind.encode(image)


def _saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    return _saved(image, "JPEG", **_JPEG)


def _grey_jpeg(image: Image.Image) -> bytes:
    return _saved(image.convert("L"), "JPEG", **_JPEG)


def _cmyk_jpeg(image: Image.Image) -> bytes:
    return _saved(image.convert("CMYK"), "JPEG", **_JPEG)


def _turned_jpeg(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return _saved(image.transpose(_TURNED_BY[orientation]), "JPEG", **_JPEG, exif=exif)


def _palette_png(image: Image.Image) -> bytes:
    few = image.quantize(16, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return _saved(few, "PNG", bits=4, optimize=True)


def _grey_png(image: Image.Image) -> bytes:
    return _saved(image.convert("L"), "PNG", optimize=True)


def _deep_png(image: Image.Image) -> bytes:
    """12 of 16 bits, as scanners write them: a viewer that does not scale shows black."""
    levels = np.asarray(image.convert("L"), dtype=np.uint16) * 12 + 700
    return _saved(Image.fromarray(levels), "PNG", optimize=True)


def _rgba_png(image: Image.Image) -> bytes:
    framed = image.convert("RGBA")
    framed.putalpha(_frame(image))
    return _saved(framed, "PNG", optimize=True)


def _la_png(image: Image.Image) -> bytes:
    framed = image.convert("LA")
    framed.putalpha(_frame(image))
    return _saved(framed, "PNG", optimize=True)


def _frame(image: Image.Image) -> Image.Image:
    """Opaque but for a narrow frame."""
    alpha = Image.new("L", image.size, 0)
    alpha.paste(255, (3, 3, image.width - 3, image.height - 3))
    return alpha


def _tiff(image: Image.Image) -> bytes:
    return _saved(image, "TIFF", compression="tiff_lzw")


def _bmp(image: Image.Image) -> bytes:
    return _saved(
        image.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE), "BMP"
    )


class _Kind(NamedTuple):
    share: float
    """Of the images that may be of this kind, before the shares are scaled to 1."""
    suffix: str
    encode: Callable[[Image.Image], bytes]
    grey: bool = False
    """Loses the colours: for modalities that have none."""


_KINDS: Final = (
    _Kind(0.68, ".jpg", _jpeg),
    _Kind(0.10, ".jpeg", _grey_jpeg, grey=True),
    *(
        _Kind(0.02, ".JPG", partial(_turned_jpeg, orientation=orientation))
        for orientation in _TURNED_BY
    ),
    _Kind(0.055, ".png", _palette_png),
    _Kind(0.03, ".png", _grey_png, grey=True),
    _Kind(0.025, ".png", _deep_png, grey=True),
    _Kind(0.02, ".jpg", _cmyk_jpeg),
    _Kind(0.01, ".png", _rgba_png),
    _Kind(0.01, ".png", _la_png, grey=True),
    _Kind(0.01, ".tif", _tiff),
    _Kind(0.01, ".bmp", _bmp),
)


# --- what is broken
# --------------------------------------------------------------------------------------------------


def _broken(files: dict[str, bytes], tables: dict[str, list[dict[str, Any]]]) -> dict[str, bytes]:
    """Append one bad record of each kind to `tables`, each in its own set.

    The bad files they name.
    """
    datasets = [dataset for dataset, _, _ in SETS]
    whole = next(content for name, content in sorted(files.items()) if name.endswith(".jpg"))
    folders = [f"{IMAGES}{dataset}/" for dataset in datasets]
    images = {
        f"{folders[0]}truncated.jpg": whole[: len(whole) // 2],
        f"{folders[1]}not an image.png": b"This is a text, whatever its name says.\n",
        f"{folders[2]}empty.jpg": b"",
    }
    changes: list[dict[str, str | None]] = [
        {"image_path": path} for path in (*images, f"{folders[3]}missing.jpg")
    ]
    changes += [
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
    cut = _json(tables[datasets[-1]])
    return images | {f"{QUESTIONS}Phantom Broken.json": cut[: len(cut) // 8]}


if __name__ == "__main__":
    main()
