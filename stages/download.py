"""Stage `download`: the raw corpus archive as checked records and their pictures, a folder for each modality.

    python -m stages.download

What `data.dvc` imported is read once; records that cannot be used go to quarantine with the reason. Pictures are
copied as they are: whether they can be decoded is found out in stage resize.
"""

from __future__ import annotations

import argparse
import posixpath
import shutil
from pathlib import Path

from stages import layout
from stages.cli import run_stage
from stages.corpus.archive import QUESTIONS, Archive, open_archive
from stages.corpus.dicom import modality_of
from stages.corpus.dicom_series import picture_files
from stages.corpus.modalities import MODALITIES
from stages.corpus.quarantine import Row, write_quarantine
from stages.corpus.records import Reading, Record, read_record_files
from stages.errors import InputError
from stages.outputs import whole_directory, write_json
from stages.params import load_params
from stages.progress import counted
from stages.provenance import provenance

_BLOCK = 4096
"""Bytes a file takes beyond its size, at most, on common file systems."""


def main() -> None:
    """Write data/corpus/<modality> for all modalities, and data/quarantine/download.json."""
    argparse.ArgumentParser(prog="python -m stages.download", description=__doc__).parse_args()
    settings = load_params().corpus
    path = Path(settings.archive)
    if not path.is_file():
        raise InputError(f"{path} (corpus.archive) is missing: run `dvc repro`, or `dvc pull data.dvc` for the pinned corpus alone")
    with open_archive(path) as archive:
        reading = _with_images(archive, _read(archive))
        account = layout.QUARANTINE / "download.json"
        write_quarantine(account, "download", reading.read, len(reading.records), reading.rows, provenance({"corpus": settings}))
        if not reading.records:
            raise InputError(f"{path} holds no usable record: {reading.read} read, all refused; {account} says why")
        by_modality = {slug: [record for record in reading.records if record.modality == slug] for slug in MODALITIES}
        _check_space(archive, by_modality)
        for slug, records in by_modality.items():
            _write(archive, slug, sorted(records, key=lambda record: record.question_id))
    print(f"download: read {reading.read} records, kept {len(reading.records)}, quarantined {len(reading.rows)} ({account})")


def _read(archive: Archive) -> Reading:
    """The records of all question files: those directly in the open-access folder."""
    files = [name for name in archive.names if posixpath.dirname(name) + "/" == QUESTIONS and name.endswith(".json")]
    names = archive.names

    def modality(image_path: str) -> str | None:
        """Of a DICOM file, or the first one of a series."""
        return next((modality_of(content) for _, content in archive.read(picture_files(names, image_path)[:1])), None)

    return read_record_files(archive.read(files), modality)


def _with_images(archive: Archive, reading: Reading) -> Reading:
    """The same reading, records whose picture is not in the archive quarantined."""
    found, rows = [], list(reading.rows)
    names = archive.names
    for record in reading.records:
        if picture_files(names, record.image_path):
            found.append(record)
        else:
            rows.append(Row(record.place, record.image_path, "the image is not in the archive"))
    return Reading(reading.read, found, rows)


def _images(archive: Archive, records: list[Record]) -> set[str]:
    """The files of all pictures: one each, or those of a DICOM series."""
    names = archive.names
    return {name for path in {record.image_path for record in records} for name in picture_files(names, path)}


def _check_space(archive: Archive, by_modality: dict[str, list[Record]]) -> None:
    """InputError if the pictures will not fit on the disk."""
    needed = sum(archive.size(name) + _BLOCK for records in by_modality.values() for name in _images(archive, records))
    layout.DATA.mkdir(exist_ok=True)
    free = shutil.disk_usage(layout.DATA).free
    if needed > free:
        raise InputError(
            f"{archive.path} needs {needed / 2**20:.0f} MiB unpacked, {layout.DATA}/ has {free / 2**20:.0f} MiB free: "
            "free some space (`dvc gc --workspace` drops old results) and run again"
        )


def _write(archive: Archive, slug: str, records: list[Record]) -> None:
    images = _images(archive, records)
    with whole_directory(layout.corpus(slug)) as folder:
        for name, content in counted(archive.read(images), len(images), slug, "image"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        write_json(folder / "records.json", [record.fields for record in records])
    print(f"download: {slug}: {len(records)} records, {len(images)} images -> {layout.corpus(slug)}")


if __name__ == "__main__":
    run_stage(main)
