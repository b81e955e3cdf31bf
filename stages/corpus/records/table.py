"""A spreadsheet's CSV as records in OmniMedVQA's form: one question per row, columns by name.

A CSV allows more spellings than JSON, but nothing is guessed: a column has a few names, a modality
is a slug or one of its names, an answer is a text or a letter. A row that can be read in two ways
is refused. Rows become the same objects as in a JSON file and pass the same checks.
docs/own-data.md describes the table for its authors.

Other columns are ignored: they often hold what should not be passed on with an image.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from stages.corpus.dataset.paths import IMAGES, unsafe_path
from stages.corpus.dataset.problems import LETTERS, letter_options
from stages.corpus.quarantine.reasons import UNKNOWN_NAME, Reason
from stages.corpus.records.context import CONTEXT
from stages.corpus.records.images import IMAGE, SEVERAL, SLICES
from stages.corpus.records.json_list import RawRecord
from stages.corpus.records.labels import check_labels
from stages.corpus.records.texts import RefusedRecord
from stages.taxonomy import Taxonomy, Vocabulary

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "image": ("image", "image path", "image file", "picture", "file", "file name"),
    "images": ("images", "image paths", "image files", "pictures"),
    "slices": ("slices", "frames"),
    "question": ("question",),
    "options": ("options", "choices"),
    "answer": ("answer", "correct answer", "correct option", "gt answer"),
    "modality": ("modality", "modality type"),
    "type": ("type", "question type"),
    "id": ("id", "question id"),
    "dataset": ("dataset", "data set"),
    "patient": ("patient", "patient id", "subject", "subject id"),
    "age": ("age", "patient age"),
    "sex": ("sex", "gender", "patient sex"),
    "history": ("history", "clinical history", "medical history"),
    "indication": ("indication", "clinical indication"),
    "context": ("context", "clinical context", "clinical information"),
}
"""Column -> its names, in any case, with or without blanks, hyphens and underscores.

`images`, several in a cell, may stand for `image`. Options may also have columns of their own:
option A, option B and so on, choice A, or A.
"""

_REQUIRED = ("image", "question", "answer", "modality", "type")
_DELIMITERS = ",;\t"
_OPTION = re.compile(r"(?:(?:option|choice)[\s_-]*)?([a-z])", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:option|choice)[\s_-]+[a-z]", re.IGNORECASE)
"""A column of one option, unlike "options": "option S"."""
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_OTHER_SEPARATOR = re.compile(r"[;,/\n\t]|\bor\b")
_NUMBER = re.compile(r"[0-9]{1,7}")
_LINE_END = re.compile(r"\r\n|\r|\n")
_JSON_LIST = re.compile(r'\[\s*(?:"|\])')
_PYTHON_LIST = re.compile(r"\[\s*'")
_QUOTING = (
    "unbalanced quotation marks, or a cell that is too long because of one that is not closed: put"
    ' the whole cell in "...", and write "" for one inside it'
)
_CELL_TOO_LONG = (
    "a cell of more than {} characters in one line: an image belongs into a file of its own, whose"
    " path is written in the cell"
)

NameOf = Callable[[str, str], str]
"""The name for a cell, given the field of the record; RefusedRecord if it is unknown."""


@dataclass(frozen=True)
class Header:
    """The line with the names of the columns: the first non-empty one."""

    delimiter: str
    names: tuple[str, ...]
    columns: Mapping[str, int]
    """Key of COLUMNS, or option letter -> index of the column."""
    line: int

    @property
    def ignored_columns(self) -> list[str]:
        """The names of the columns without a known meaning."""
        used = set(self.columns.values())
        return [
            name for number, name in enumerate(self.names) if number not in used and name.strip()
        ]

    @property
    def is_private(self) -> bool:
        """Whether rows have what must not be quoted, a patient's context."""
        return not self.columns.keys().isdisjoint(CONTEXT)

    def row(self, cells: Sequence[str]) -> dict[str, str]:
        """Cells of the known columns: key of COLUMNS, or option letter -> cell."""
        return {role: cells[number] for role, number in self.columns.items()}

    def check_width(self, cells: list[str]) -> None:
        """Raise RefusedRecord for cells that belong to no column, or to none with a name."""
        if len(cells) != len(self.names):
            delimiter = "tab" if self.delimiter == "\t" else f"'{self.delimiter}'"
            why = (
                "a row of another length than the first line: put a cell that contains a"
                f" {delimiter} in quotation marks"
            )
            what = f"{len(cells)} cells" if self.is_private else cells
            raise RefusedRecord(what, why, Reason.ROW_LENGTH)
        for name, cell in zip(self.names, cells, strict=True):
            if cell.strip() and not name.strip():
                why = "a cell in a column without a name: name the column, or remove it"
                raise RefusedRecord("" if self.is_private else cell, why, Reason.COLUMN_UNNAMED)


def parse_table(text: str, dataset: str, taxonomy: Taxonomy) -> Iterator[RawRecord]:
    """Rows of a CSV as raw records with their lines; `dataset` is the default of that column.

    Empty rows are skipped. Raises RefusedRecord if there is no usable header.
    """
    header = read_header(text)
    vocabularies: dict[str, Vocabulary] = {
        each.field: each for each in (taxonomy.modalities, taxonomy.question_types)
    }

    def name_of(cell: str, field: str) -> str:
        return _name(cell, vocabularies[field])

    for line, cells, refusal in table_rows(text, header):
        raw = _id_only(cells, header) if cells else None  # identifies the row if it is refused
        if refusal is None:
            try:
                raw = row_record(header.row(cells), dataset, name_of)
            except RefusedRecord as error:
                refusal = error
        yield RawRecord(None, line, raw, refusal)


class TableRow(NamedTuple):
    """Cells of a row and its line; no cells if the quotation marks do not match."""

    line: int
    cells: list[str]
    refusal: RefusedRecord | None


def table_rows(text: str, header: Header) -> Iterator[TableRow]:
    """The rows of a CSV below its header that are not empty."""
    lines = _Lines(text)
    reader = csv.reader(lines, delimiter=header.delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        cells: list[str] = []
        refusal = None
        try:
            cells = next(reader)
            if reader.line_num <= header.line or not any(cell.strip() for cell in cells):
                continue
            header.check_width(cells)
        except StopIteration:
            return
        except csv.Error as error:
            limit = csv.field_size_limit()
            if lines.last_length > limit:  # without a line's end in it
                why = _CELL_TOO_LONG.format(f"{limit:,}")
                refusal = RefusedRecord(
                    f"{lines.last_length:,} characters", why, Reason.CELL_LENGTH
                )
            else:
                refusal = RefusedRecord(str(error), _QUOTING, Reason.ROW_QUOTING)
        except RefusedRecord as error:
            refusal = error
        yield TableRow(line, cells, refusal)


def read_header(text: str) -> Header:
    """Detect delimiter and columns; RefusedRecord names missing and duplicate columns."""
    header = find_header(text)
    has_images = "images" in header.columns
    check_header(header, [role for role in _REQUIRED if not (has_images and role == "image")])
    return header


def find_header(text: str, delimiters: str = _DELIMITERS, others: Collection[str] = ()) -> Header:
    """The header under the delimiter that gives the most known columns, and these `others`."""
    if not text.strip():
        raise RefusedRecord("", "the file is empty", Reason.FILE_EMPTY)
    headers = [_header(text, delimiter) for delimiter in delimiters]
    return max(headers, key=lambda header: len(header.columns) + len({*header.names} & {*others}))


def check_header(header: Header, required: Sequence[str] = _REQUIRED) -> None:
    """Raise RefusedRecord, naming them, for missing and duplicate columns."""
    names = ", ".join(repr(name) for name in header.names)
    roles = [role for name in header.names if (role := _role(name))]
    if duplicates := sorted({role for role in roles if roles.count(role) > 1}):
        role = duplicates[0]
        column = f"option {role}" if len(role) == 1 else role
        why = f"two columns for {column}: remove one"
        raise RefusedRecord(names, why, Reason.COLUMN_DUPLICATE)
    missing = [name for name in required if name not in header.columns]
    letters = [letter for letter in LETTERS if letter in header.columns]
    if "options" not in header.columns and letters[:2] != ["A", "B"]:
        missing.append("options")
    elif gap := _gap(letters):
        last = header.names[header.columns[letters[-1]]]
        why = (
            f"the column {last!r} is for an option, but none is for option {gap}: name the columns"
            " of options A, B and so on, and others otherwise"
        )
        raise RefusedRecord(names, why, Reason.OPTION_GAP)
    if missing:
        columns = f"column{'s' * (len(missing) > 1)} {', '.join(missing)}"
        why = f"the first line lacks the {columns}{_suggestion(missing[0], header)}"
        raise RefusedRecord(names, why, Reason.COLUMN_MISSING)
    if "options" in header.columns and letters[:1] == ["A"]:
        why = "options are in one column and in several: remove the one or the others"
        raise RefusedRecord(names, why, Reason.COLUMN_DUPLICATE)


def _gap(letters: Sequence[str]) -> str | None:
    """The first letter that is missing between A and the last one."""
    expected = LETTERS[: len(letters)]
    return next((letter for letter in expected if letter not in letters), None)


def _header(text: str, delimiter: str) -> Header:
    reader = csv.reader(_Lines(text), delimiter=delimiter, strict=True)
    try:
        names = next((cells for cells in reader if any(cell.strip() for cell in cells)), [])
    except csv.Error:
        names = []
    return name_columns(names, delimiter, reader.line_num)


def name_columns(names: Sequence[str], delimiter: str = ",", line: int = 1) -> Header:
    """The header of these column names, with the meaning of each."""
    columns = {role: number for number, name in enumerate(names) if (role := _role(name))}
    return Header(delimiter, tuple(names), columns, line)


def _role(name: str) -> str | None:
    """The meaning of a column name: a key of COLUMNS, a letter for an option, or None."""
    plain = _plain(name)
    roles = (role for role, names in COLUMNS.items() if plain in map(_plain, names))
    role = None if _NUMBERED.fullmatch(name.strip()) else next(roles, None)
    match = _OPTION.fullmatch(name.strip())
    return role or (match[1].upper() if match else None)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _suggestion(missing: str, header: Header) -> str:
    """A name in the header that looks like a missing one."""
    names = [name.strip().casefold() for name in header.ignored_columns]
    close = difflib.get_close_matches(missing, names, 1)
    return f"; is {close[0]!r} meant for {missing}?" if close else ""


class _Lines(Iterator[str]):
    """Lines with their ends, as editors count them: str.splitlines splits at form feeds, too."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.last_length = 0
        """Characters of the line that came last."""

    def __next__(self) -> str:
        if self._at == len(self._text):
            raise StopIteration
        match = _LINE_END.search(self._text, self._at)
        end = match.end() if match else len(self._text)
        line = self._text[self._at : end]
        self._at = end
        self.last_length = len(line)
        return line


def _id_only(cells: Sequence[str], header: Header) -> dict[str, str]:
    at = header.columns.get("id", len(cells))
    return {"question_id": cells[at].strip()} if at < len(cells) else {}


def row_record(row: Mapping[str, str], dataset: str, name_of: NameOf) -> dict[str, Any]:
    """A row as a raw record. Raises RefusedRecord unless there is exactly one way to read it.

    `row`: its cells under the keys of COLUMNS and option letters. `name_of` gives the names that
    the record has for a modality and a question type.
    """
    options = _options(row)
    answer = _answer(row["answer"], options)
    modality = name_of(row["modality"], "modality_type")
    kind = name_of(row["type"], "question_type")
    images = _images(row)
    image = images[0] if len(images) == 1 else images
    own_dataset = row.get("dataset", "").strip()
    question = row["question"].strip()
    context = {name: text for name in CONTEXT if (text := row.get(name, "").strip())}
    content: list[Any] = [own_dataset, kind, question, answer.strip(), image, options, modality]
    slices = _slices(row.get("slices", ""))
    if slices is not None:
        content.append(slices)
    record: dict[str, Any] = {
        "dataset": own_dataset or dataset,
        "question_id": row.get("id", "").strip() or content_id(content, context),
        "question_type": kind,
        "question": row["question"],
        "gt_answer": answer,
        **({IMAGE: image} if isinstance(image, str) else {SEVERAL: image}),
        **options,
        **context,
    }
    if slices is not None:
        record[SLICES] = slices
    if patient := row.get("patient", "").strip():
        record["patient"] = patient
    if modality.strip():  # otherwise the image's DICOM header may declare it
        record["modality_type"] = modality
    return record


def _images(row: Mapping[str, str]) -> list[str]:
    """The paths of a row's images, as records write them: one, or those of the cell `images`."""
    several = row.get("images", "").strip()
    image = row.get("image", "").strip()
    if several and image:
        why = "an image, and images beside it: write all into the column of several, in order"
        raise RefusedRecord(image, why, Reason.IMAGE_LIST)
    return [_image(path) for path in (_split(several, "images") if several else [image])]


def _image(path: str) -> str:
    """The path of an image below Images/."""
    while path.startswith("./"):
        path = path.removeprefix("./")
    if is_address(path):
        why = "an address: download the image, and write its path from the CSV's folder"
        raise RefusedRecord(path, why, Reason.IMAGE_PATH)
    if path and not path.startswith(IMAGES) and not unsafe_path(path):
        path = IMAGES + path
    return path


def _slices(cell: str) -> list[int] | None:
    """The numbers in a cell, as 3|7|9 or 3, 7, 9; None if it is empty."""
    if not cell.strip():
        return None
    words = re.split(r"[|,;\s]+", cell.strip().removeprefix("[").removesuffix("]").strip())
    if not all(_NUMBER.fullmatch(word) for word in words):
        why = "slices are whole numbers, counted from 1, with | between them"
        raise RefusedRecord(cell, why, Reason.IMAGE_SLICE)
    return [int(word) for word in words]


def is_address(path: str) -> bool:
    """Whether an image path is an address, such as https://..., and not a file's."""
    return _ADDRESS.match(path) is not None


def content_id(content: list[Any], context: Mapping[str, Any] | None = None) -> str:
    """An id that does not depend on the row's position or file; `context`: its fields, if any."""
    if context:
        content = [*content, dict(context)]
    return f"row-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20]}"


def _options(row: Mapping[str, str]) -> dict[str, str]:
    """The options of a row under OmniMedVQA's names, without empty ones."""
    if "options" in row:
        texts = _split(row["options"].strip(), "options")
        if len(texts) == 1 and _OTHER_SEPARATOR.search(texts[0]):
            why = "one option, as no | is in the cell: put | between the options"
            raise RefusedRecord(row["options"], why, Reason.OPTIONS_FORM)
        if len(texts) > len(LETTERS):
            why = f"{len(texts)} options, at most {len(LETTERS)} are possible"
            raise RefusedRecord(row["options"], why, Reason.OPTION_EXTRA)
        options = {f"option_{letter}": text for letter, text in letter_options(texts).items()}
    else:
        options = {
            f"option_{role}": text
            for role, text in sorted(row.items())
            if len(role) == 1 and text.strip()
        }
    check_labels(list(options.values()))
    return options


def _split(cell: str, name: str) -> list[str]:
    """The texts in a cell `name`, "options" or "images": a JSON list, or separated by |."""
    reason = Reason.OPTIONS_FORM if name == "options" else Reason.IMAGE_LIST
    if _PYTHON_LIST.match(cell):
        why = f'{name} look like a Python list: put each in "..." as in JSON, or | between them'
        raise RefusedRecord(cell, why, reason)
    if not _JSON_LIST.match(cell):
        return [text.strip() for text in cell.split("|")] if cell else []
    try:
        texts = json.loads(cell)
    except (ValueError, RecursionError) as error:
        why = f"{name} begin like a JSON list but are not one ({error})"
        raise RefusedRecord(cell, why, reason) from None
    if not all(isinstance(text, str) for text in texts):
        why = f"{name} are a JSON list, but not only of texts"
        raise RefusedRecord(cell, why, reason)
    return list(texts)


def _answer(cell: str, options: Mapping[str, str]) -> str:
    """The text of the correct option; a cell that names none is returned, to be refused."""
    answer = cell.strip()
    by_letter = options.get(f"option_{answer.upper()}") if len(answer) == 1 else None
    by_text = next((text for text in options.values() if text.strip() == answer), None)
    if by_letter is not None and by_text is not None and by_letter.strip() != by_text.strip():
        why = (
            "the answer is the text of one option and the letter of another,"
            f" {by_letter.strip()!r}: write the text of the other"
        )
        raise RefusedRecord(cell, why, Reason.ANSWER_AMBIGUOUS)
    if by_text is not None:
        return by_text
    return cell if by_letter is None else by_letter


def _name(cell: str, vocabulary: Vocabulary) -> str:
    """The name for a slug or accepted name in any case; an empty cell is returned as it is."""
    value = cell.strip().casefold()
    if not value:
        return cell
    if name := vocabulary.spellings.get(value):
        return name
    slug = vocabulary.nearest(value)
    suggestion = f"; did you mean {slug}?" if slug else ";"
    field = vocabulary.field
    allowed = f"allowed: {', '.join(vocabulary)}, or their names in params.yaml"
    raise RefusedRecord(cell.strip(), f"unknown {field}{suggestion} {allowed}", UNKNOWN_NAME[field])
