"""Questions of a corpus and their image files, for stage download and the corpus check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.archives.source import Corpus
from stages.corpus.dataset.paths import first_below, image_files
from stages.corpus.dicom.headers.modality import declared_modality
from stages.corpus.quarantine.ledger import RecordLocation, Row
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.records import Reading, Record, read_record_files, refuse
from stages.corpus.records.texts import RefusedRecord
from stages.taxonomy import Taxonomy


def read_questions(corpus: Corpus, taxonomy: Taxonomy) -> Reading:
    """Records of all question files; a file that cannot be read or parsed is one row.

    A record without modality_type takes that of its image, if the image is DICOM and declares one.
    """
    rows = []
    names = corpus.names

    def question_files() -> Iterator[tuple[str, bytes]]:
        for name in corpus.in_order(corpus.question_files):
            try:
                yield name, corpus.fetch(name)
            except DamagedMemberError as error:
                why = "the file cannot be read from the corpus"
                rows.append(Row(RecordLocation(name), error.why, why, Reason.FILE_DAMAGED))

    def image_modality(image_path: str) -> str | None:
        """Of a DICOM file, or of the first one of a series; RefusedRecord for one of no slug."""
        files = image_files(names, image_path)
        try:
            declared = declared_modality(corpus.fetch(files[0])) if files else None
        except DamagedMemberError:
            return None
        slug = taxonomy.by_dicom.get(declared or "")
        if declared and slug is None:
            why = (
                f"modality_type is missing, and Modality {declared!r} in the DICOM header is none"
                f" of {', '.join(taxonomy.modalities)}: write the one that the image is of"
            )
            raise RefusedRecord(declared, why, Reason.UNKNOWN_MODALITY)
        return slug

    reading = read_record_files(question_files(), taxonomy, image_modality)
    return Reading(reading.read + len(rows), reading.records, [*reading.rows, *rows])


def find_images(corpus: Corpus, reading: Reading) -> tuple[Reading, dict[str, list[str]]]:
    """Quarantine records whose image is missing.

    Also returns image_path -> its files in the corpus, several for a folder of slices.
    """
    names = corpus.names
    files_of: dict[str, list[str]] = {}
    paths: set[str] = set()
    for record in reading.records:
        paths.update(record.image_paths)
    for path in sorted(paths):
        if files := image_files(names, path):
            files_of[path] = files
    records: list[Record] = []
    rows = list(reading.rows)
    for record in reading.records:
        missing = next((path for path in record.image_paths if path not in files_of), None)
        if missing is None:
            records.append(record)
        else:
            rows.append(refuse(record, missing, _why_missing(names, missing), Reason.IMAGE_MISSING))
    return Reading(reading.read, records, rows), _used(files_of, records)


def _why_missing(names: Sequence[str], image_path: str) -> str:
    """Why no file is found for an image path; `names`: all files of the corpus, sorted."""
    file = first_below(names, image_path)
    if file is None:
        return "the image is not in the corpus"
    folder = file.rpartition("/")[0]
    return f"a folder without a file directly in it: name the folder of the slices, as {folder}"


def _used(files_of: Mapping[str, list[str]], records: Iterable[Record]) -> dict[str, list[str]]:
    """Without the images of refused records alone, which need not be read."""
    used: set[str] = set()
    for record in records:
        used.update(record.image_paths)
    return {path: files for path, files in files_of.items() if path in used}
