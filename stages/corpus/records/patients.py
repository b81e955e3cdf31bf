"""Which images are of one patient or study, from tables and DICOM headers, without keeping an id.

An id lives in memory only. What is written into a record is the name of the first image of the
same patient, which says nothing about who that is, and changes only with the patient's images.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple

from stages.core.iteration.import_lock import IMPORT_LOCK
from stages.corpus.dicom.headers.preamble import is_dicom
from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.records import PATIENT, Reading, Record, refuse

_PLACEHOLDERS: Final = frozenset(
    (
        *("", "-", "0", "n/a", "na", "none", "null", "unknown", "removed", "xxx", "xxxx"),
        *("anon", "anonymous", "anonymised", "anonymized", "deidentified", "de-identified"),
        *("patient", "test"),
    )
)
"""Ids that many patients of a data set have: they say nothing."""
_MAX_INFLATED: Final = 2**24
"""Bytes of a deflated file that are inflated to find its patient."""
_salt: Final = secrets.token_bytes(32)
"""New in each process: hashes of ids can be compared within it, and never looked up."""


def hashed_id(text: str | None) -> bytes | None:
    """A salted hash of a patient's id, comparable within this process; None for a placeholder."""
    plain = " ".join((text or "").split()).casefold()
    if plain in _PLACEHOLDERS:
        return None
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), key=_salt).digest()


class FileIds(NamedTuple):
    """Hashed ids of a DICOM file; None for one that it lacks."""

    patient: bytes | None = None
    study: bytes | None = None


def ids_of_file(content: bytes) -> FileIds:
    """PatientID and StudyInstanceUID of a file; none if it is damaged or is not DICOM."""
    if not is_dicom(content):
        return FileIds()
    # imports pydicom, which a corpus without DICOM does not need
    with IMPORT_LOCK:
        from stages.corpus.dicom.headers.elements import read_elements

    try:
        _, elements = read_elements(content, ("PatientID", "StudyInstanceUID"), _MAX_INFLATED)
        patient = "\\".join(elements.codes("PatientID", "LO"))
        study = elements.uid("StudyInstanceUID")
    except ImageError:
        return FileIds()
    return FileIds(hashed_id(patient), hashed_id(study))


def refuse_mixed_patients(
    reading: Reading, files: Mapping[str, Sequence[str]], patient_of: Mapping[str, bytes]
) -> Reading:
    """The same reading with records refused whose several images are of different patients.

    Arguments as of `link_patients`.
    """
    records: list[Record] = []
    rows = list(reading.rows)
    for record in reading.records:
        if len(record.image_paths) > 1 and len(_ids_of_files(record, files, patient_of)) > 1:
            why = "images of different patients, by PatientID in the DICOM headers"
            rows.append(refuse(record, list(record.image_paths), why, Reason.IMAGE_LIST))
        else:
            records.append(record)
    return Reading(reading.read, records, rows)


def _ids_of_files(
    record: Record, files: Mapping[str, Sequence[str]], patient_of: Mapping[str, bytes]
) -> set[bytes]:
    names = chain.from_iterable(files[image] for image in record.image_paths)
    return {patient_of[name] for name in names if name in patient_of}


def link_patients(
    records: Iterable[Record],
    files: Mapping[str, Sequence[str]],
    patient_of: Mapping[str, bytes],
) -> dict[str, str]:
    """Image -> first image, by name, of the same patient; images of unknown patients are absent.

    `files`: image -> its files; `patient_of`: file -> hashed PatientID. Ids count within a data
    set: patient 7 of another one is somebody else.
    """
    links: list[_Link] = []
    for record in records:
        ids = _ids_of_files(record, files, patient_of)
        if own := hashed_id(record.fields.get(PATIENT)):
            ids.add(own)
        for image in record.image_paths:
            links += ((image, (record.dataset, each)) for each in ids)
    return _first_images(links)


def link_studies(
    records: Iterable[Record], files: Mapping[str, Sequence[str]], study_of: Mapping[str, bytes]
) -> dict[str, str]:
    """Image -> first image, by name, of the same study, which no two data sets share.

    Arguments as of `link_patients`. Images without a study are absent.
    """
    links: list[_Link] = []
    for image in sorted(set(chain.from_iterable(record.image_paths for record in records))):
        links += ((image, ("", study_of[name])) for name in files[image] if name in study_of)
    return _first_images(links)


_Link = tuple[str, tuple[str, bytes]]
"""An image, and a data set's id that it has."""


def _first_images(links: Sequence[_Link]) -> dict[str, str]:
    """Image -> the first of those that ids connect with it."""
    if not links:
        return {}
    import networkx as nx  # takes a tenth of a second, and few corpora name patients

    first_of: dict[str, str] = {}
    for component in nx.connected_components(nx.Graph(links)):
        images = sorted(node for node in component if isinstance(node, str))
        first_of |= dict.fromkeys(images, images[0])
    return first_of
