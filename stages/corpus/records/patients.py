"""Which images are of one patient, from question tables and DICOM headers, without keeping any id.

An id lives in memory only. What is written into a record is the name of the first image of the
same patient, which says nothing about who that is, and changes only with the patient's images.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Final

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


def patient_of_file(content: bytes) -> bytes | None:
    """The hashed PatientID of a DICOM file; None if it has none, is damaged or is not DICOM."""
    if not is_dicom(content):
        return None
    # imports pydicom, which a corpus without DICOM does not need
    from stages.corpus.dicom.headers.elements import read_elements

    try:
        _, elements = read_elements(content, ("PatientID",), _MAX_INFLATED)
        values = elements.codes("PatientID", "LO")
    except ImageError:
        return None
    return hashed_id("\\".join(values))


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
    links: list[tuple[str, tuple[str, bytes]]] = []
    for record in records:
        ids = _ids_of_files(record, files, patient_of)
        if own := hashed_id(record.fields.get(PATIENT)):
            ids.add(own)
        for image in record.image_paths:
            links += ((image, (record.dataset, each)) for each in ids)
    if not links:
        return {}
    import networkx as nx  # takes a tenth of a second, and few corpora name patients

    first_of: dict[str, str] = {}
    for component in nx.connected_components(nx.Graph(links)):
        images = sorted(node for node in component if isinstance(node, str))
        first_of |= dict.fromkeys(images, images[0])
    return first_of
