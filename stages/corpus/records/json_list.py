"""Records of a JSON file, with locations and refusals of what json.loads silently accepts.

The standard parser takes the last of two equal keys, NaN, and numbers too large for a float. It is
unknown which value was meant, or what another reader would make of it, so such a record is refused;
the others of its file are not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from sys import intern
from typing import Any, Final, NamedTuple

from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.context import CONTEXT
from stages.corpus.records.texts import RefusedRecord, is_unicode

_MAX_RECORD: Final = 1_000_000
"""Characters of one record."""
_MAX_DEPTH: Final = 16
"""Levels of lists and objects inside a record: JSON writers with indentation recurse, too."""
_MAX_DIGITS: Final = 400
"""Digits of a number: a float has at most 309 before its point, and Python refuses to read 4300."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BLANKS = re.compile(r"[ \t\n\r]*")


class RawRecord(NamedTuple):
    """One entry of a question file as read; `refusal` if its form alone disqualifies it.

    `number`: its index in a list, from 0; `line`: where it begins, from 1. None if it has none.
    """

    number: int | None
    line: int | None
    raw: Any
    refusal: RefusedRecord | None


def parse_list(text: str) -> Iterator[RawRecord]:
    """The elements of a JSON list in order, with line numbers if the list has several lines.

    Raises RefusedRecord if the file as a whole is not such a list. That may be discovered at its
    end, so until then none of the elements counts.
    """
    if not text:
        raise RefusedRecord("", "the file is empty", Reason.FILE_EMPTY)
    why = "not a JSON file that can be parsed"
    try:
        yield from _elements(text, is_multi_line=text.find("\n", 0, text.rfind("]") + 1) >= 0)
    except RecursionError:
        raise RefusedRecord("nested too deeply", why, Reason.FILE_UNREADABLE) from None
    except ValueError as error:
        raise RefusedRecord(str(error), why, Reason.FILE_UNREADABLE) from error


def _elements(text: str, is_multi_line: bool) -> Iterator[RawRecord]:
    """`parse_list`, with the errors of the parser."""
    refusals: list[RefusedRecord] = []
    decoder = _decoder(refusals)
    has_surrogates = _SURROGATE.search(text) is not None
    at = _skip_blanks(text, 0)
    if not text.startswith("[", at):
        element, end = decoder.raw_decode(text, at)
        if isinstance(element, dict) and text.startswith("{", _skip_blanks(text, end)):
            why = "one object after another (JSON Lines) instead of a list: write [{...}, {...}]"
            raise RefusedRecord("JSON Lines", why, Reason.FILE_FORM)
        _check_end(text, end)
        raise RefusedRecord(type(element).__name__, "not a JSON list of records", Reason.FILE_FORM)
    at = _skip_blanks(text, at + 1)
    index = 0
    line = 1
    line_counted_to = 0
    has_more = not text.startswith("]", at)
    while has_more:
        refusals.clear()
        raw, end = decoder.raw_decode(text, at)
        if is_multi_line:
            line += text.count("\n", line_counted_to, at)
            line_counted_to = at
        refusal = refusals[0] if refusals else _refusal(raw, end - at, has_surrogates)
        yield RawRecord(index, line if is_multi_line else None, raw, refusal)
        index += 1
        at = _skip_blanks(text, end)
        if has_more := text.startswith(",", at):
            at = _skip_blanks(text, at + 1)
        elif not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    _check_end(text, at + 1)


def _skip_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    assert match is not None, "it matches the empty text, too"
    return match.end()


def _check_end(text: str, at: int) -> None:
    """Raise JSONDecodeError unless only blanks follow."""
    if (rest := _skip_blanks(text, at)) < len(text):
        raise json.JSONDecodeError("Extra data", text, rest)


def _decoder(refusals: list[RefusedRecord]) -> json.JSONDecoder:
    """A decoder that adds to `refusals` what the standard one accepts."""
    unique_texts: dict[str, str] = {}

    def refuse(value: str, why: str, reason: Reason = Reason.RECORD_VALUE) -> None:
        refusals.append(RefusedRecord(value, why, reason))

    def parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # most texts of a corpus occur many times: share one object for each
        fields = {
            intern(key): unique_texts.setdefault(value, value) if type(value) is str else value
            for key, value in pairs
        }
        if len(fields) < len(pairs):
            keys = [key for key, _ in pairs]
            duplicate = next(key for key in keys if keys.count(key) > 1)
            refuse(duplicate, "a duplicate field: remove the wrong one", Reason.FIELD_DUPLICATE)
        return fields

    def parse_int(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            refuse(digits, f"a number of more than {_MAX_DIGITS} digits")
            return 0
        return int(digits)

    def parse_float(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            refuse(digits, "a number that is too large")
            return 0.0
        return number

    def parse_constant(name: str) -> None:
        refuse(name, f"{name} is not JSON: write null, or leave the field out")

    return json.JSONDecoder(
        object_pairs_hook=parse_object,
        parse_int=parse_int,
        parse_float=parse_float,
        parse_constant=parse_constant,
    )


def _refusal(raw: Any, size: int, has_surrogates: bool) -> RefusedRecord | None:
    """`size` in characters; `has_surrogates`: whether the file escapes any."""
    if size > _MAX_RECORD:
        why = f"a record of more than {_MAX_RECORD} characters"
        return RefusedRecord(f"{size} characters", why, Reason.RECORD_VALUE)
    if not isinstance(raw, dict):
        return None
    for key, value in raw.items():
        # without escaped surrogates keys and texts are valid; only other values can be wrong
        if not has_surrogates and type(value) is str:
            continue
        try:
            _check_value(key, 0)
            _check_value(value, 1)
        except RefusedRecord as refusal:
            name = key if is_unicode(key) else "a field's name"
            what = name if key in CONTEXT else refusal.what  # a context is never quoted
            return RefusedRecord(what, f"{name} {refusal.why}", refusal.reason)
    return None


def _check_value(value: Any, level: int) -> None:
    """Raise RefusedRecord for what a later stage could not write."""
    if level > _MAX_DEPTH:
        why = f"is nested more than {_MAX_DEPTH} levels deep"
        raise RefusedRecord(f"{level} levels", why, Reason.RECORD_VALUE)
    if isinstance(value, str):
        if not is_unicode(value):
            raise RefusedRecord(value, "is not Unicode text", Reason.FIELD_ENCODING)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_value(key, level)
            _check_value(inner, level + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner, level + 1)
