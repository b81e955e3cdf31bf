"""Phantoms of several slices, follow-ups and indications, and a question about each.

Every question has one of three places where its answer lies, and no other:

- in one slice: a DICOM series of `SLICES` slices, of which one has lesions. They are left in half
  of the volumes and right in the other half, and in each slice equally often;
- in the order: a follow-up whose last image has lesions on the other side than its first; the one
  between has them on either side equally often. The images without their order, or any of them
  but the last, say nothing about the side now;
- in the patient's context: an indication that names a side, about an image of the corpus. Its
  lesions are on either side equally often, whatever the indication says.

All questions are about the side, in words that the embedded base knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any, Final

import numpy as np
from PIL import Image

from stages.core.params import shipped_taxonomy
from stages.corpus.dataset.paths import IMAGES
from stages.corpus.sample.drawing import draw
from stages.corpus.sample.phantoms import (
    LETTERS,
    QUESTION_TYPE_OF,
    QUESTIONS,
    SHAPES,
    SIDES,
    Phantom,
)

SERIES: Final = "Phantom Brain MRI series"
FOLLOW_UP: Final = "Phantom Knee MRI follow-up"
INDICATION: Final = "Phantom MRI with indication"
SETS: Final = (SERIES, FOLLOW_UP, INDICATION)
"""Names of the source sets."""
VOLUMES: Final = 60
"""Of the series, and of the follow-ups; a multiple of 12, for their balance."""
SLICES: Final = 3
"""Of a volume, and images of a follow-up."""
INDICATIONS: Final = 96
"""Questions with an indication; a multiple of 4."""

NOW: Final = "On which side of the image is the lesion now?"
PAIN: Final = "On which side is the pain?"

_MODALITY: Final = "mri"
_SIZE: Final = (64, 64)
"""Small, as are the files: the corpus is part of the repository."""
_JPEG: Final[dict[str, Any]] = {"quality": 40, "optimize": True}
_UIDS: Final = "1.2.826.0.1.3680043.8.498.7"
"""Below pydicom's root; every series, and every slice below that of its series, has its own."""

Records = list[dict[str, Any]]


def draw_series(seed: int, number: int) -> tuple[dict[str, bytes], Records]:
    """DICOM series as path -> file, and one question about each.

    `number`: of the source set, for the seeds of its images.
    """
    files: dict[str, bytes] = {}
    records: Records = []
    for index in range(VOLUMES):
        rng = np.random.default_rng([seed, number, index])
        side = SIDES[index % 2]
        shown = (index // 2 + index % 2) % SLICES
        lesion = _with_lesions(rng, "Brain", side)
        normal = Phantom(_MODALITY, "Brain", None, None, None, 0)
        folder = f"{IMAGES}{SERIES}/volume_{index:03d}"
        for place in range(SLICES):
            image = draw(lesion if place == shown else normal, _SIZE, rng)
            files[f"{folder}/{place + 1}.dcm"] = _dicom(image, index, place)
        question = str(rng.choice(QUESTIONS["side"]))
        seen = {"image_path": folder, "slices": list(range(1, SLICES + 1))}
        records.append(_record(SERIES, index, question, side, rng, seen))
    return files, records


def draw_follow_ups(seed: int, number: int) -> tuple[dict[str, bytes], Records]:
    """Images of patients over time as path -> file, and one question about those of each."""
    files: dict[str, bytes] = {}
    records: Records = []
    for index in range(VOLUMES):
        rng = np.random.default_rng([seed, number, index])
        now = SIDES[index % 2]
        first = SIDES[1 - index % 2]
        between = SIDES[index // 2 % 2]
        lesion = _with_lesions(rng, "Knee", now)
        paths = [f"{IMAGES}{FOLLOW_UP}/follow-up_{index:03d}_{time}.jpg" for time in "abc"]
        for path, side in zip(paths, (first, between, now), strict=True):
            files[path] = _jpeg(draw(replace(lesion, side=side), _SIZE, rng))
        seen = {"images": paths, "patient": _patient(index)}
        records.append(_record(FOLLOW_UP, index, NOW, now, rng, seen))
    return files, records


def indications(seed: int, number: int, phantoms: Mapping[str, Phantom]) -> Records:
    """One question with an indication about each of `INDICATIONS` images.

    `phantoms`: image_path -> what it shows; at least INDICATIONS / 2 of them with lesions on each
    side. Raises ValueError if there are fewer.
    """
    records: Records = []
    for side in SIDES:
        paths = [path for path, phantom in phantoms.items() if phantom.side == side]
        if len(paths) < INDICATIONS // 2:
            raise ValueError(f"{len(paths)} images with lesions on the side {side}")
        for path in paths[: INDICATIONS // 2]:
            index = len(records)
            rng = np.random.default_rng([seed, number, index])
            told = SIDES[index % 2]
            known = {
                "image_path": path,
                "sex": str(rng.choice(["female", "male"])),
                "indication": f"pain, side: {told}",
            }
            records.append(_record(INDICATION, index, PAIN, told, rng, known))
    return records


def _patient(index: int) -> str:
    """Id of the patient of two volumes: one with the answer Left, one with Right.

    Splits keep both together, so that half of every test's answers are Left.
    """
    return f"P-{index // 2:02d}"


def _with_lesions(rng: np.random.Generator, anatomy: str, side: str) -> Phantom:
    """A phantom with lesions that are large enough to be seen in one of several images."""
    return Phantom(
        _MODALITY,
        anatomy,
        shape=str(rng.choice(SHAPES)),
        grade="Severe",
        side=side,
        count=int(rng.integers(3, 5)),
    )


def _record(
    dataset: str,
    index: int,
    question: str,
    gold: str,
    rng: np.random.Generator,
    seen: Mapping[str, Any],
) -> dict[str, Any]:
    """A record in OmniMedVQA's fields; `seen`: its images, and what it says of the patient."""
    options = [SIDES[place] for place in rng.permutation(len(SIDES))]
    return {
        "dataset": dataset,
        "question_id": f"{dataset}_{index:05d}",
        "question_type": QUESTION_TYPE_OF["side"],
        "question": question,
        "gt_answer": gold,
        **seen,
        **{f"option_{letter}": text for letter, text in zip(LETTERS, options, strict=False)},
        "modality_type": shipped_taxonomy().modalities.name(_MODALITY),
    }


def _jpeg(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.convert("L").save(buffer, "JPEG", **_JPEG)
    return buffer.getvalue()


def _dicom(image: Image.Image, volume: int, place: int) -> bytes:
    """A slice as an MR image of a series, 5 mm above the one before."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.filewriter import dcmwrite
    from pydicom.uid import UID, JPEGBaseline8Bit, MRImageStorage

    series = UID(f"{_UIDS}.{volume + 1}")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"{series}.{place + 1}")
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    # not pydicom's, which names its version
    meta.ImplementationClassUID = UID(_UIDS)
    meta.ImplementationVersionName = "PHANTOMS"
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.Modality = "MR"
    data.BurnedInAnnotation = "NO"
    data.PatientID = _patient(volume)
    data.SeriesInstanceUID = series
    data.InstanceNumber = place + 1
    data.ImagePositionPatient = [0, 0, 5 * place]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.Rows, data.Columns = image.height, image.width
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.PixelRepresentation = 0
    # this window leaves the eight bits as they are
    data.WindowCenter = 128
    data.WindowWidth = 256
    data.LossyImageCompression = "01"
    data.PixelData = encapsulate([_jpeg(image)])
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    buffer = BytesIO()
    dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()
