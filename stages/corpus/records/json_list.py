"""Records of a JSON file, each with its location and what json.loads would silently ignore.

The standard parser takes the last of two equal keys, and NaN, and numbers too large for a float.
Which value was meant, or what a reader elsewhere would make of it, nobody knows: such a record is
refused, the others of its file are not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from sys import intern
from typing import Any, Final, NamedTuple

from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.texts import RefusedRecord, is_unicode

LARGEST: Final = 1_000_000
"""Characters of one record."""
_DEEPEST: Final = 16
"""Levels of lists and objects inside a record: writers that indent go down by recursion, too."""
_MOST_DIGITS: Final = 400
"""Digits of a number: a float has at most 309 before its point, and Python itself refuses to read
4300.
"""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\n\r]*")


class RawRecord(NamedTuple):
    """One entry of a question file as read; `refusal` if its form alone disqualifies it.

    `number`: its place in a list, from 0; `line`: where it begins, from 1. Either is None where it
    says nothing.
    """

    number: int | None
    line: int | None
    raw: Any
    refusal: RefusedRecord | None


def parse_list(text: str) -> Iterator[RawRecord]:
    """The elements of a JSON list in their order; places in a file of several lines name the line.

    Raises RefusedRecord when the file as a whole is no such list, which may be found out at its
    end: until then, nothing of it counts.
    """
    if not text:
        raise RefusedRecord("", "the file is empty", Reason.FILE_EMPTY)
    try:
        yield from _elements(text, lines=text.find("\n", 0, text.rfind("]") + 1) >= 0)
    except RecursionError:
        raise RefusedRecord(
            "nested too deeply", "not a JSON file that can be parsed", Reason.FILE_UNREADABLE
        ) from None
    except ValueError as error:
        raise RefusedRecord(
            str(error), "not a JSON file that can be parsed", Reason.FILE_UNREADABLE
        ) from error


def _elements(text: str, lines: bool) -> Iterator[RawRecord]:
    """`parse_list`; errors are the parser's own."""
    odd: list[RefusedRecord] = []
    decoder = _decoder(odd)
    escaped = _SURROGATE.search(text) is not None
    at = _skip(text, 0)
    if not text.startswith("[", at):
        element, end = decoder.raw_decode(text, at)
        if (rest := _skip(text, end)) < len(text):
            raise json.JSONDecodeError("Extra data", text, rest)
        raise RefusedRecord(type(element).__name__, "not a JSON list of records", Reason.FILE_FORM)
    at = _skip(text, at + 1)
    index, line, counted = 0, 1, 0
    more = not text.startswith("]", at)
    while more:
        odd.clear()
        raw, end = decoder.raw_decode(text, at)
        if lines:
            line, counted = line + text.count("\n", counted, at), at
        yield RawRecord(index, line if lines else None, raw, _refusal(raw, odd, end - at, escaped))
        index, at = index + 1, _skip(text, end)
        if more := text.startswith(",", at):
            at = _skip(text, at + 1)
        elif not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if (rest := _skip(text, at + 1)) < len(text):
        raise json.JSONDecodeError("Extra data", text, rest)


def _skip(text: str, at: int) -> int:
    """The next position that is not blank."""
    match = _SPACE.match(text, at)
    assert match is not None, "it matches nothing, too"
    return match.end()


def _decoder(odd: list[RefusedRecord]) -> json.JSONDecoder:
    """A decoder that adds a refusal to `odd` for what the standard one passes over."""
    known: dict[str, str] = {}

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # most texts of a corpus stand in it many times: each is kept once
        fields = {
            intern(key): known.setdefault(value, value) if type(value) is str else value
            for key, value in pairs
        }
        if len(fields) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            why = "a duplicate field: remove the wrong one"
            odd.append(RefusedRecord(twice, why, Reason.FIELD_DUPLICATE))
        return fields

    def number(digits: str) -> int:
        if len(digits) > _MOST_DIGITS:
            odd.append(
                RefusedRecord(
                    digits, f"a number of more than {_MOST_DIGITS} digits", Reason.RECORD_VALUE
                )
            )
            return 0
        return int(digits)

    def fraction(digits: str) -> float:
        fields = float(digits)
        if not math.isfinite(fields):
            odd.append(RefusedRecord(digits, "a number that is too large", Reason.RECORD_VALUE))
            return 0.0
        return fields

    def constant(name: str) -> None:
        odd.append(
            RefusedRecord(
                name, f"{name} is not JSON: put null, or leave the field out", Reason.RECORD_VALUE
            )
        )

    return json.JSONDecoder(
        object_pairs_hook=make, parse_int=number, parse_float=fraction, parse_constant=constant
    )


def _refusal(raw: Any, odd: list[RefusedRecord], size: int, escaped: bool) -> RefusedRecord | None:
    """`size` in characters; `escaped`: could there be half of a surrogate pair in it?"""
    if odd:
        return odd[0]
    if size > LARGEST:
        return RefusedRecord(
            f"{size} characters", f"a record of more than {LARGEST} characters", Reason.RECORD_VALUE
        )
    if isinstance(raw, dict):
        for key, value in raw.items():
            if escaped or type(value) is not str:
                try:
                    _check_further(key, 0)
                    _check_further(value, 1)
                except RefusedRecord as refusal:
                    name = key if is_unicode(key) else "a field's name"
                    return RefusedRecord(refusal.what, f"{name} {refusal.why}", refusal.reason)
    return None


def _check_further(value: Any, level: int) -> None:
    """RefusedRecord for what no later stage could write down again."""
    if level > _DEEPEST:
        raise RefusedRecord(
            f"{level} levels", f"is nested more than {_DEEPEST} levels deep", Reason.RECORD_VALUE
        )
    if isinstance(value, str):
        if not is_unicode(value):
            raise RefusedRecord(value, "is not Unicode text", Reason.FIELD_ENCODING)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_further(key, level)
            _check_further(inner, level + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_further(inner, level + 1)
