"""Questions of a corpus and their image files, for stage download and the corpus check."""

from __future__ import annotations

from collections.abc import Iterator

from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.archives.source import Corpus
from stages.corpus.dataset.paths import image_files
from stages.corpus.dicom.headers.modality import modality_of
from stages.corpus.quarantine.ledger import RecordLocation, Row
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.records import Reading, read_record_files, refuse


def read_questions(corpus: Corpus) -> Reading:
    """Records of all question files; a file that cannot be read or parsed is one row.

    A record without modality_type has that of its image, if the image is DICOM and says it.
    """
    rows = []
    names = corpus.names

    def files() -> Iterator[tuple[str, bytes]]:
        for name in corpus.in_order(corpus.question_files):
            try:
                yield name, corpus.fetch(name)
            except DamagedMemberError as error:
                rows.append(
                    Row(
                        RecordLocation(name),
                        error.why,
                        "the file cannot be read from the corpus",
                        Reason.FILE_DAMAGED,
                    )
                )

    def modality(image_path: str) -> str | None:
        """Of a DICOM file, or the first one of a series."""
        try:
            return next(
                (modality_of(corpus.fetch(name)) for name in image_files(names, image_path)[:1]),
                None,
            )
        except DamagedMemberError:
            return None

    reading = read_record_files(files(), modality)
    return Reading(reading.read + len(rows), reading.records, [*reading.rows, *rows])


def find_images(corpus: Corpus, reading: Reading) -> tuple[Reading, dict[str, list[str]]]:
    """Quarantine records whose image is missing.

    image_path -> its files (several for a DICOM series).
    """
    names = corpus.names
    files = {
        path: image_files(names, path)
        for path in sorted({record.image_path for record in reading.records})
    }
    rows = [
        refuse(record, record.image_path, "the image is not in the corpus", Reason.IMAGE_MISSING)
        for record in reading.records
        if not files[record.image_path]
    ]
    kept = [record for record in reading.records if files[record.image_path]]
    return Reading(reading.read, kept, [*reading.rows, *rows]), {
        path: found for path, found in files.items() if found
    }
