"""A spreadsheet's CSV as records in OmniMedVQA's form: one question per row, columns by name.

What a CSV adds to JSON is leave for more than one spelling, never for a guess: columns go by a few
names, a modality by our slug or by OmniMedVQA's words, an answer by its text or its letter; where
two readings of a cell differ, the row is refused. Rows become the same objects as a JSON file
holds, and go through the same check. docs/own-data.md says it for those who fill in the sheet.

Columns of other names are not taken: they often hold what should not travel with an image.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stages.corpus.dataset.paths import IMAGES, unsafe_path
from stages.corpus.dataset.problems import LETTERS
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.json_list import RawRecord
from stages.corpus.records.texts import RefusedRecord
from stages.taxonomy import MODALITIES, QUESTION_TYPES, nearest

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "image": ("image", "image path", "image file", "picture", "file", "file name"),
    "question": ("question",),
    "options": ("options", "choices"),
    "answer": ("answer", "correct answer", "correct option", "gt answer"),
    "modality": ("modality", "modality type"),
    "type": ("type", "question type"),
    "id": ("id", "question id"),
    "dataset": ("dataset", "data set"),
}
"""Column -> the names it goes by, in any case, with or without blanks, hyphens and underscores.
Options may also stand in columns of their own: option A to option D, choice A to choice D, or A to
D.
"""

_REQUIRED = ("image", "question", "answer", "modality", "type")
_DELIMITERS = ",;\t"
_OPTION = re.compile(r"(?:option|choice)([a-h])|([a-d])")
_LINE_END = re.compile(r"\r\n|\r|\n")
_JSON_LIST = re.compile(r'\[\s*(?:"|\])')
_PYTHON_LIST = re.compile(r"\[\s*'")
_LABELLED = re.compile(r"\(?([A-Da-d])[):]")
_QUOTING = (
    "quotation marks do not fit, or one is not closed, so that a cell is too long: put the whole"
    ' cell in "...", and write "" for one inside it'
)


@dataclass(frozen=True)
class Header:
    """The line with the names of the columns: the first that is not empty."""

    delimiter: str
    names: tuple[str, ...]
    columns: Mapping[str, int]
    """Column, or option letter, -> its number from 0."""
    line: int

    @property
    def left_out(self) -> list[str]:
        """The names of the columns that are not taken."""
        used = set(self.columns.values())
        return [
            name for number, name in enumerate(self.names) if number not in used and name.strip()
        ]


def parse_table(text: str, dataset: str) -> Iterator[RawRecord]:
    """Rows of a CSV as raw records with their lines; `dataset` is used for rows that name none.

    Empty rows do not count. Raises RefusedRecord if there is no header to read them by.
    """
    header = read_header(text)
    reader = csv.reader(_lines(text), delimiter=header.delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        cells: list[str] = []
        raw: Any = None
        refusal = None
        try:
            cells = next(reader)
            if reader.line_num <= header.line or not any(cell.strip() for cell in cells):
                continue
            raw = _id_alone(cells, header)
            raw = _record(cells, header, dataset)
        except StopIteration:
            return
        except csv.Error as error:
            refusal = RefusedRecord(str(error), _QUOTING, Reason.ROW_QUOTING)
        except RefusedRecord as found:
            refusal = found
        yield RawRecord(None, line, raw, refusal)


def read_header(text: str) -> Header:
    """Detect delimiter and columns; RefusedRecord names missing and duplicate columns."""
    if not text.strip():
        raise RefusedRecord("", "the file is empty", Reason.FILE_EMPTY)
    header = max(
        (_header(text, delimiter) for delimiter in _DELIMITERS),
        key=lambda present: len(present.columns),
    )
    roles = [role for name in header.names if (role := _role(name))]
    present = ", ".join(repr(name) for name in header.names)
    if twice := sorted({role for role in roles if roles.count(role) > 1}):
        raise RefusedRecord(
            present, f"two columns mean {_spoken(twice[0])}: take one out", Reason.COLUMN_DUPLICATE
        )
    missing = [name for name in _REQUIRED if name not in header.columns]
    letters = [letter for letter in LETTERS if letter in header.columns]
    if "options" not in header.columns and letters[:2] != ["A", "B"]:
        missing.append("options")
    if missing:
        raise RefusedRecord(
            present,
            f"the first line lacks the column{'s' * (len(missing) > 1)}"
            f" {', '.join(missing)}{_meant(missing, header)}",
            Reason.COLUMN_MISSING,
        )
    if "options" in header.columns and letters:
        raise RefusedRecord(
            present,
            "options are in one column and in several: remove the one or the others",
            Reason.COLUMN_DUPLICATE,
        )
    return header


def _header(text: str, delimiter: str) -> Header:
    reader = csv.reader(_lines(text), delimiter=delimiter, strict=True)
    try:
        names = next((cells for cells in reader if any(cell.strip() for cell in cells)), [])
    except csv.Error:
        names = []
    columns = {role: number for number, name in enumerate(names) if (role := _role(name))}
    return Header(delimiter, tuple(names), columns, reader.line_num)


def _role(name: str) -> str | None:
    """The meaning of a column name: a key of COLUMNS, a letter for an option, or None."""
    plain = _plain(name)
    if match := _OPTION.fullmatch(plain):
        return (match[1] or match[2]).upper()
    return next((role for role, names in COLUMNS.items() if plain in map(_plain, names)), None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _spoken(role: str) -> str:
    return f"option {role}" if len(role) == 1 else role


def _meant(missing: Sequence[str], header: Header) -> str:
    """A name in the header that looks like the first missing one."""
    close = difflib.get_close_matches(
        missing[0], [name.strip().casefold() for name in header.left_out], 1
    )
    return f"; is {close[0]!r} meant for {missing[0]}?" if close else ""


def _lines(text: str) -> Iterator[str]:
    """Lines with their ends, as editors count them.

    str.splitlines would also cut at form feeds and inside cells.
    """
    at = 0
    for match in _LINE_END.finditer(text):
        yield text[at : match.end()]
        at = match.end()
    if at < len(text):
        yield text[at:]


def _id_alone(cells: Sequence[str], header: Header) -> dict[str, str]:
    """What a refused row can be called by."""
    at = header.columns.get("id", len(cells))
    return {"question_id": cells[at].strip()} if at < len(cells) else {}


def _record(cells: list[str], header: Header, dataset: str) -> dict[str, str]:
    """A row as a raw record; RefusedRecord where its cells cannot be read in exactly one way."""
    if len(cells) != len(header.names):
        sign = {"\t": "tab"}.get(header.delimiter, f"'{header.delimiter}'")
        raise RefusedRecord(
            cells,
            f"a row of another length than the first line: put a cell that holds a {sign} in"
            " quotation marks",
            Reason.ROW_LENGTH,
        )
    if nameless := [
        cell
        for name, cell in zip(header.names, cells, strict=True)
        if cell.strip() and not name.strip()
    ]:
        raise RefusedRecord(
            nameless[0],
            "a cell under a column without a name: name the column in the first line, or take"
            " it out",
            Reason.COLUMN_UNNAMED,
        )
    row = {role: cells[number] for role, number in header.columns.items()}
    options = _options(row)
    answer = _answer(row["answer"], options)
    modality = _literal(row["modality"], MODALITIES, "modality_type")
    kind = _literal(row["type"], QUESTION_TYPES, "question_type")
    image = row["image"].strip()
    if image and not image.startswith(IMAGES) and not unsafe_path(image):
        image = IMAGES + image
    content = [
        row.get("dataset", "").strip(),
        kind,
        row["question"].strip(),
        answer.strip(),
        image,
        options,
        modality,
    ]
    record = {
        "dataset": row.get("dataset", "").strip() or dataset,
        "question_id": row.get("id", "").strip() or _id_of(content),
        "question_type": kind,
        "question": row["question"],
        "gt_answer": answer,
        "image_path": image,
        **options,
    }
    # of a DICOM file the header may say it
    return record | ({"modality_type": modality} if modality.strip() else {})


def _id_of(content: list[Any]) -> str:
    """An id that a row keeps wherever it stands in the file, or in another file."""
    return f"row-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20]}"


def _options(row: Mapping[str, str]) -> dict[str, str]:
    """The options of a row under OmniMedVQA's names; empty ones are left out."""
    if "options" in row:
        texts = _split(row["options"].strip())
        options = {
            f"option_{chr(ord('A') + number)}": text for number, text in enumerate(texts[:26])
        }
    else:
        options = {
            f"option_{role}": text
            for role, text in sorted(row.items())
            if len(role) == 1 and text.strip()
        }
    labels = [
        match[1].upper() for text in options.values() if (match := _LABELLED.match(text.strip()))
    ]
    if len(options) > 1 and labels == list(LETTERS[: len(options)]):
        raise RefusedRecord(
            list(options.values()),
            "options begin with their letters, which are added later: write their texts alone",
            Reason.OPTION_LETTERS,
        )
    return options


def _split(cell: str) -> list[str]:
    """The options in one cell: a JSON list of texts, or texts with | between them."""
    if _PYTHON_LIST.match(cell):
        raise RefusedRecord(
            cell,
            'options look like a list of Python\'s: put "..." around each, as JSON has it, or |'
            " between them",
            Reason.OPTIONS_FORM,
        )
    if not _JSON_LIST.match(cell):
        return [text.strip() for text in cell.split("|")] if cell else []
    try:
        texts = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise RefusedRecord(
            cell, f"options begin like a JSON list, but are none ({error})", Reason.OPTIONS_FORM
        ) from None
    if not all(isinstance(text, str) for text in texts):
        raise RefusedRecord(
            cell, "options are a JSON list, but not of texts alone", Reason.OPTIONS_FORM
        )
    return list(texts)


def _answer(cell: str, options: Mapping[str, str]) -> str:
    """The text of the correct option.

    Anything that is neither text nor letter of one stays, to be refused.
    """
    answer = cell.strip()
    by_letter = options.get(f"option_{answer.upper()}") if len(answer) == 1 else None
    by_text = next((text for text in options.values() if text.strip() == answer), None)
    if by_letter is not None and by_text is not None and by_letter.strip() != by_text.strip():
        raise RefusedRecord(
            cell,
            "the answer is the text of one option and the letter of another,"
            f" {by_letter.strip()!r}: write the text of the other",
            Reason.ANSWER_AMBIGUOUS,
        )
    if by_text is not None:
        return by_text
    return cell if by_letter is None else by_letter


def _literal(cell: str, literals: Mapping[str, str], field: str) -> str:
    """OmniMedVQA's word for a slug or the word itself, in any case.

    An empty cell stays, to be refused.
    """
    value = cell.strip().casefold()
    if not value:
        return cell
    for name, literal in literals.items():
        if value in (name, literal.casefold()):
            return literal
    suggestion = f"; did you mean {slug}?" if (slug := nearest(value, literals)) else ";"
    reason = Reason.UNKNOWN_MODALITY if literals is MODALITIES else Reason.UNKNOWN_QUESTION_TYPE
    raise RefusedRecord(
        cell.strip(),
        f"unknown {field}{suggestion} allowed: {', '.join(literals)}, or OmniMedVQA's words for"
        " them",
        reason,
    )
