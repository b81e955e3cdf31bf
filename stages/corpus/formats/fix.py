"""Corrected copy of a sheet of questions: spellings that can be meant in one way only.

Answers, separators of options, options with their letters, and image paths are corrected if exactly
one reading fits the rest of the row and the files; other cells stay as they are. Each change and
each cell that is wrong but could not be fixed is listed, for a person to review.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stages.core.errors import InputError
from stages.core.outputs import atomic_file
from stages.corpus.dataset.paths import IMAGES
from stages.corpus.dataset.problems import LETTERS, letter_options
from stages.corpus.formats.images import ImageFolder
from stages.corpus.formats.questions import ConversionOptions
from stages.corpus.formats.rows import choose_sheet
from stages.corpus.formats.sheets import REQUIRED
from stages.corpus.formats.text_lists import is_list, read_image_list, read_texts
from stages.corpus.formats.workbook import TextRow, TextSheet
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.cells import filled_roles, image_path, image_roles, split_list
from stages.corpus.records.images import SEVERAL, read_image_paths
from stages.corpus.records.labels import check_labels
from stages.corpus.records.table import Header, check_header
from stages.corpus.records.texts import RefusedRecord

_SEPARATORS: Final = (";", "/", ",", "\n")
_LABEL: Final = re.compile(
    r"[(\[]?([A-Za-z])(?:[)\]]|\s?[.:,\u3001\u3002]|\s?[-\u2013\u2014]\s)\s*"
)
"""A letter at the beginning of an option: "A.", "(A)", "A - "."""
_LETTER: Final = re.compile(r"(?:(?:option|answer|choice)\s*)?[(\[]?([A-Za-z])[)\]]?[.:]?", re.I)
"""A letter alone: "b", "(B)", "Option B."."""
_LIST: Final = re.compile(r"\[\s*(?:[\"']|\])")


@dataclass(frozen=True)
class CellChange:
    """A cell that was corrected, or one that is wrong and could not be; then `after` is None."""

    row: int
    """Line of a text file, row of a workbook's sheet, from 1."""
    column: str
    before: str
    after: str | None
    why: str

    @property
    def is_fixed(self) -> bool:
        """Whether the cell was corrected."""
        return self.after is not None

    def __str__(self) -> str:
        """As in messages: place, before, after and why; without control characters."""
        after = "not corrected" if self.after is None else repr(self.after)
        return f"row {self.row}, {self.column}: {self.before!r} -> {after}: {self.why}"


def fix_sheet(sheet: Path, out: Path, options: ConversionOptions | None = None) -> list[CellChange]:
    """Write a corrected copy of a sheet of questions as CSV in UTF-8, and list the changes.

    Images are looked for in `options.images`, by default the sheet's folder. Raises InputError if
    the sheet cannot be read or would be replaced by its copy.
    """
    if out.resolve() == sheet.resolve():
        raise InputError(f"{out} is the sheet itself: name another file for the copy")
    options = options or ConversionOptions()
    opened = choose_sheet(sheet, options, lambda header: check_header(header, REQUIRED))
    folder = ImageFolder(options.images or sheet.parent)
    changes = []
    with atomic_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(opened.header.names)
        for row in opened.rows:
            cells, row_changes = _fix_row(opened, row, folder)
            writer.writerow(cells)
            changes += row_changes
    return changes


def _fix_row(
    sheet: TextSheet, row: TextRow, folder: ImageFolder
) -> tuple[list[str], list[CellChange]]:
    """Cells of the corrected row, and what was wrong with it."""
    number = row.location.line or row.location.row or 0
    if row.refusal and not row.cells:
        raise InputError(f"{row.location} cannot be copied: {row.refusal.what}: {row.refusal.why}")
    if row.refusal:
        error = row.refusal
        return row.cells, [CellChange(number, "", error.what, None, error.why)]
    names = sheet.header.names
    changes = [
        CellChange(number, names[at], error.what, None, error.why)
        for at, error in row.problems.items()
    ]
    fixed = _RowFixing(sheet.header, list(row.cells), folder)
    for at, after, why in fixed.fixes:
        if at not in row.problems:
            changes.append(CellChange(number, names[at], row.cells[at], after, why))
    return fixed.cells, changes


class _RowFixing:
    """Corrections of one row: of its options, then of its answer to them, and of its image."""

    def __init__(self, header: Header, cells: list[str], folder: ImageFolder) -> None:
        self.cells = cells
        self.fixes: list[tuple[int, str | None, str]] = []
        """Index of a cell, its new text or None, and why."""
        self._columns = header.columns
        self._folder = folder
        self._answer = cells[self._columns["answer"]]
        at = self._columns.get("options", self._columns.get("A", 0))
        try:
            texts = self._fix_options()
        except RefusedRecord as error:
            self.fixes.append((at, None, error.why))
        else:
            self._fix("answer", lambda cell: _fixed_answer(cell, texts))
        self._fix_images()

    def _fix(self, role: str, fixed: Callable[[str], tuple[str, str]]) -> None:
        """Replace a cell by the text that `fixed` returns with a reason."""
        at = self._columns[role]
        try:
            after, why = fixed(self.cells[at])
        except RefusedRecord as error:
            self.fixes.append((at, None, error.why))
        else:
            self._replace(at, after, why)

    def _replace(self, at: int, after: str, why: str) -> None:
        if after != self.cells[at]:
            self.cells[at] = after
            self.fixes.append((at, after, why))

    def _fix_options(self) -> list[str]:
        """Correct the options, in one cell or in several, and return their texts."""
        if "options" in self._columns:
            at = self._columns["options"]
            written, why = _split_options(self.cells[at], self._answer)
            texts = _without_letters(written)
            if texts != written:
                why = "options began with their letters"
            if why:
                self._replace(at, _join_texts(texts), why)
            return texts
        letters = [letter for letter in LETTERS if letter in self._columns]
        numbers = [self._columns[letter] for letter in letters]
        numbers = [at for at in numbers if self.cells[at].strip()]
        texts = _without_letters([self.cells[at].strip() for at in numbers])
        for at, text in zip(numbers, texts, strict=True):
            if text != self.cells[at].strip():
                self._replace(at, text, "options began with their letters")
        return texts

    def _fix_images(self) -> None:
        """Correct the columns of images that are filled: an empty one is wrong only if all are."""
        roles = image_roles(self._columns)
        filled = [role for role in roles if self.cells[self._columns[role]].strip()]
        try:
            filled_roles(filled)
        except RefusedRecord as error:
            self.fixes.append((self._columns[filled[1]], None, error.why))
            return
        for role in filled or roles[:1]:
            self._fix(role, self._fixed_list if role == "images" else self._fixed_image)

    def _fixed_list(self, cell: str) -> tuple[str, str]:
        """The paths in a cell, each as `_fixed_image`. RefusedRecord for the first problem."""
        written = cell.strip()
        has_list = is_list(written)
        paths = read_image_list(written) if has_list else split_list(written, "images")
        why = "images were a Python list" if has_list and not _is_json(written) else ""
        fixed = []
        for number, path in enumerate(paths, start=1):
            try:
                after, reason = self._fixed_image(path)
            except RefusedRecord as error:
                wrong = f"image {number} of {SEVERAL}: {error.why}"
                raise RefusedRecord(cell, wrong, error.reason) from None
            fixed.append(after)
            why = why or reason
        read_image_paths({SEVERAL: [image_path(path) for path in fixed]})
        return (_join_texts(fixed), why) if why else (cell, "")

    def _fixed_image(self, cell: str) -> tuple[str, str]:
        """The path of the only file that can be meant. Raises RefusedRecord for none or several."""
        try:
            self._folder.find(cell)
        except RefusedRecord as error:
            path = re.sub(r"/+", "/", cell.strip().replace("\\", "/"))
            path = path.removeprefix("./").removeprefix(IMAGES)
            try:
                return self._folder.find(path)[0], "separators of folders"
            except RefusedRecord:
                matches = self._folder.near_matches(path)
            if len(matches) == 1:
                return matches[0], "case or suffix of the only file with this name"
            if matches:
                why = f"several files can be meant: {', '.join(matches[:5])}"
                raise RefusedRecord(cell, why, Reason.IMAGE_MISSING) from None
            raise error from None
        return cell, ""


def _split_options(cell: str, answer: str) -> tuple[list[str], str]:
    """The options in one cell, and why it is to be rewritten; empty if it is right as it is."""
    text = cell.strip()
    if _LIST.match(text):
        return _parse_list(text)
    if "|" in text:
        return [each.strip() for each in text.split("|")], ""
    found = []
    for separator in _SEPARATORS:
        texts = [each.strip() for each in text.split(separator)]
        if len(texts) > 1 and all(texts) and len({*texts}) == len(texts) <= len(LETTERS):
            found.append((separator, texts))
    if len(found) > 1:
        # a separator that cuts the answer into pieces belongs to the texts
        found = [(mark, texts) for mark, texts in found if _by_text(answer, texts)]
    if len(found) != 1:
        why = "options can be separated in several ways, or in none: put | between them"
        raise RefusedRecord(cell, why, Reason.OPTIONS_FORM)
    separator, texts = found[0]
    return texts, f"options were separated by {separator!r}"


def _parse_list(text: str) -> tuple[list[str], str]:
    """The texts of a JSON list, or of a list as Python writes it."""
    why = ""
    try:
        texts = json.loads(text)
    except (ValueError, RecursionError):
        why = "options were a Python list"
        texts = read_texts(text, len(LETTERS))
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise RefusedRecord(text, "options are no list of texts", Reason.OPTIONS_FORM)
    return [each.strip() for each in texts], why


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _join_texts(texts: Sequence[str]) -> str:
    joined = "|".join(texts)
    is_plain = not any("|" in text for text in texts) and not _LIST.match(joined)
    return joined if is_plain else json.dumps(list(texts), ensure_ascii=False)


def _without_letters(texts: list[str]) -> list[str]:
    """Options without their letters, if all begin with their own."""
    matches = [_LABEL.match(text) for text in texts]
    letters = [match[1].upper() if match else "" for match in matches]
    if len(texts) > 1 and "".join(letters) == LETTERS[: len(texts)]:
        plain = [_LABEL.sub("", text, count=1) for text in texts]
        if all(plain) and len({*plain}) == len(plain):
            return plain
    check_labels(texts)
    return texts


def _fixed_answer(cell: str, texts: Sequence[str]) -> tuple[str, str]:
    """The option that an answer means. Raises RefusedRecord if it may mean none or several."""
    answer = cell.strip()
    by_letter = letter_options(texts).get(answer.upper()) if len(answer) == 1 else None
    if answer in texts or by_letter is not None:
        if by_letter not in (None, answer) and answer in texts:
            why = "the text of one option and the letter of another"
            raise RefusedRecord(cell, why, Reason.ANSWER_AMBIGUOUS)
        return cell, ""
    meant = {*_by_text(answer, texts), *_by_label(answer, texts)}
    if len(meant) == 1:
        return meant.pop(), "the only option that the answer can mean"
    why = "the answer can mean several options" if meant else "the answer is none of the options"
    raise RefusedRecord(cell, why, Reason.ANSWER_NOT_OFFERED)


def _by_text(answer: str, texts: Sequence[str]) -> list[str]:
    """Options that are the answer but for case, blanks and dots at the end."""
    return [text for text in texts if _folded(text) == _folded(answer)]


def _by_label(answer: str, texts: Sequence[str]) -> list[str]:
    """The option of a letter such as "(b)", or of one with its text: "B) Cyst"."""
    options = letter_options(texts)
    if match := _LETTER.fullmatch(answer):
        text = options.get(match[1].upper())
        return [] if text is None else [text]
    if match := _LABEL.match(answer):
        text = options.get(match[1].upper())
        same = text is not None and _folded(answer[match.end() :]) == _folded(text)
        return [text] if same and text is not None else []
    return []


def _folded(text: str) -> str:
    return " ".join(text.split()).rstrip(". \u3002").casefold()
