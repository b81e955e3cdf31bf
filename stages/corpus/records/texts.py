"""Texts of question files: decoding bytes, and characters that are unsafe in prompts or paths.

Questions and options go into prompts, ids and paths into file names, and all of them onto terminals
and pages. A text with characters that are not read there as they are written is refused, and never
cleaned.
"""

from __future__ import annotations

import codecs
import re
from typing import Final, NamedTuple

from stages.corpus.quarantine.ledger import safe_text
from stages.corpus.quarantine.reasons import Reason

MAX_TEXT_LENGTH: Final = 20_000
"""Characters of one text. The longest question of OmniMedVQA has 308.

A prompt's limit in tokens is grpo.max_prompt_length.
"""

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_SURROGATE = re.compile("[\ud800-\udfff]")
# allowed: tab, newline, and a carriage return before it; alone, one overwrites its line
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")
_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# overrides and isolates; the plain marks of Arabic and Hebrew, and Persian's joiners, are allowed
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
_INVISIBLE = re.compile("[\u200b\u2060-\u2064\ufeff\U000e0000-\U000e007f]")
# control tokens of Qwen and others, and the tags of the answer format
_TOKEN = re.compile(
    r"<\|[^\s<>|]{1,64}\|>|</?(?:think|answer|tool_call|tool_response)>", re.IGNORECASE
)


class RefusedRecord(Exception):
    """An unusable record or record file: offending value `what`, reason `why` and its code."""

    def __init__(self, what: object, why: str, reason: Reason) -> None:
        """`what` is converted to text that can be written to a file."""
        super().__init__(why)
        self.what = safe_text(what)
        self.why = why
        self.reason = reason


def decode(content: bytes) -> str:
    """A file's bytes as text: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises RefusedRecord for anything else.
    """
    remedy = "save it as UTF-8 (in Excel: CSV UTF-8)"
    if content.startswith(_UTF_32):
        raise RefusedRecord("UTF-32", f"not UTF-8 text: {remedy}", Reason.FILE_ENCODING)
    is_utf16 = content.startswith(_UTF_16)
    if not is_utf16 and (at := content.find(b"\0")) >= 0:
        raise RefusedRecord(
            f"a NUL byte in line {_line(content, at)}",
            f"not UTF-8 text, perhaps UTF-16 without a byte order mark: {remedy}",
            Reason.FILE_ENCODING,
        )
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte 0x{content[error.start]:02x} in line {_line(content, error.start)}"
        why = "not UTF-8 text, perhaps Windows-1252"
        if is_utf16:
            why = "UTF-16 text that is damaged or truncated"
        raise RefusedRecord(what, f"{why}: {remedy}", Reason.FILE_ENCODING) from None


def _line(content: bytes, at: int) -> int:
    return content.count(b"\n", 0, at) + 1


def is_plain(text: str) -> bool:
    """Fast check: a plain text has no problem; others may or may not have one."""
    return text.isprintable() and "<" not in text


class TextProblem(NamedTuple):
    """What makes a text unusable: `why` continues a sentence that begins with the text's name."""

    why: str
    reason: Reason


def find_text_problem(text: str) -> TextProblem | None:
    """What makes a question or an option unusable in a prompt; None if it is usable."""
    if len(text) > MAX_TEXT_LENGTH:
        why = f"has {len(text)} characters, the limit is {MAX_TEXT_LENGTH}"
        return TextProblem(why, Reason.FIELD_LENGTH)
    if is_plain(text):
        return None
    if _SURROGATE.search(text):
        return TextProblem("is not Unicode text", Reason.FIELD_ENCODING)
    if match := _CONTROL.search(text):
        return _control_character(match)
    if match := _DIRECTION.search(text):
        why = f"contains U+{ord(match[0]):04X}, which changes the writing direction"
        return TextProblem(why, Reason.FIELD_TEXT)
    if match := _INVISIBLE.search(text):
        why = f"contains U+{ord(match[0]):04X}, which is invisible"
        return TextProblem(why, Reason.FIELD_TEXT)
    if match := _TOKEN.search(text):
        why = f"contains {match[0]}, which a model reads as a command"
        return TextProblem(why, Reason.FIELD_TOKEN)
    return None


def find_name_problem(text: str) -> TextProblem | None:
    """The same for an id, a data set's name or a path, which must also be a single line."""
    if problem := find_text_problem(text):
        return problem
    if not is_plain(text) and (match := _LINE.search(text)):
        return _control_character(match)
    return None


def _control_character(match: re.Match[str]) -> TextProblem:
    why = f"contains the control character U+{ord(match[0]):04X}"
    return TextProblem(why, Reason.FIELD_TEXT)


def is_unicode(text: str) -> bool:
    """Whether a text can be written to a file: it has no lone surrogates."""
    return text.isprintable() or not _SURROGATE.search(text)
