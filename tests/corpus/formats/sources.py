"""Small images, sheets and folders for the tests of the formats, and what they become."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import openpyxl
from PIL import Image

from stages.corpus.dataset.paths import QUESTIONS
from stages.corpus.formats.convert import Conversion, convert
from stages.corpus.formats.questions import ConversionOptions

ROW = {
    "image": "scans/a.png",
    "question": "What is seen, if anything?",
    "options": "Cyst, simple|Nodule",
    "answer": "Nodule",
    "modality": "CT",
    "type": "Disease Diagnosis",
}


def png(number: int = 0) -> bytes:
    """A PNG that no other number gives."""
    buffer = io.BytesIO()
    color = (number % 256, number // 256 % 256, 7)
    Image.new("RGB", (4, 4), color).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))


def write_csv(
    path: Path, rows: Iterable[Mapping[str, Any]], delimiter: str = ",", encoding: str = "utf-8"
) -> Path:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_book(path: Path, sheets: Mapping[str, Iterable[Mapping[str, Any]]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for name, rows in sheets.items():
        worksheet = book.create_sheet(name)
        for number, row in enumerate(rows):
            if number == 0:
                worksheet.append(list(row))
            worksheet.append(list(row.values()))
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path


def run(source: Path, target: Path, **options: Any) -> Conversion:
    """Convert, and check that nothing is lost."""
    conversion = convert(source, target, ConversionOptions(**options))
    assert conversion.entries == conversion.questions + len(conversion.refusals)
    assert len(records(target)) == conversion.questions
    return conversion


def records(corpus: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted((corpus / QUESTIONS).iterdir()):
        found += json.loads(path.read_text(encoding="utf-8"))
    for record in found:
        for image in image_paths(record):
            assert (corpus / image).exists()
    return found


def image_paths(record: Mapping[str, Any]) -> list[str]:
    return record.get("images") or [record["image_path"]]


def digest(folder: Path) -> dict[str, str]:
    """File -> hash of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refusals(conversion: Conversion) -> list[str]:
    return [str(each) for each in conversion.refusals]
