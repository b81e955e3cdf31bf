"""Texts of question files: decoding bytes, and characters that are unsafe in prompts or paths.

Questions and options go into a prompt, ids and paths into file names, all of them onto terminals
and pages. A text with something in it that is not read there as it is written is refused by name;
nothing is taken out of it.
"""

from __future__ import annotations

import codecs
import re
from typing import Final, NamedTuple

from stages.corpus.quarantine.ledger import shown
from stages.corpus.quarantine.reasons import Reason

LONGEST: Final = 20_000
"""Characters of one text. The longest question of OmniMedVQA has 308; a prompt's limit in tokens is
grpo.max_prompt_length.
"""

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_NUL = re.compile(rb"\x00")
_SURROGATE = re.compile("[\ud800-\udfff]")
# newline, tab and the two characters of Windows' newline stay as they are; a carriage return alone
# writes over its line
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")
_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# overrides and isolates, not the plain marks that Arabic and Hebrew are written with; what joins
# letters in Persian stays, too
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
_INVISIBLE = re.compile("[\u200b\u2060-\u2064\ufeff\U000e0000-\U000e007f]")
# Qwen's and others' control tokens, and the tags that an answer is to be given in
_TOKEN = re.compile(
    r"<\|[^\s<>|]{1,64}\|>|</?(?:think|answer|tool_call|tool_response)>", re.IGNORECASE
)


class RefusedRecord(Exception):
    """An unusable record or record file.

    Offending value `what`, reason `why`, its code `reason`.
    """

    def __init__(self, what: object, why: str, reason: Reason) -> None:
        """Keep the value in a form that can be written down."""
        super().__init__(why)
        self.what, self.why, self.reason = shown(what), why, reason


def decode(content: bytes) -> str:
    """A file's bytes as text: UTF-8 with or without a byte order mark, or UTF-16 with one.

    RefusedRecord for anything else.
    """
    remedy = "save it as UTF-8 (in Excel: CSV UTF-8)"
    if content.startswith(_UTF_32):
        raise RefusedRecord("UTF-32", f"not UTF-8 text: {remedy}", Reason.FILE_ENCODING)
    if content.startswith(_UTF_16):
        encoding = "utf-16"
    else:
        encoding = "utf-8-sig"
        if content[:1] and (nul := _NUL.search(content)):
            line = content.count(b"\n", 0, nul.start()) + 1
            raise RefusedRecord(
                f"a NUL byte in line {line}",
                f"not UTF-8 text, perhaps UTF-16 without a byte order mark: {remedy}",
                Reason.FILE_ENCODING,
            )
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        position = f"byte 0x{content[error.start]:02x} in line {line}"
        if encoding == "utf-16":
            raise RefusedRecord(
                position,
                f"UTF-16 text that is damaged or truncated: {remedy}",
                Reason.FILE_ENCODING,
            ) from None
        raise RefusedRecord(
            position, f"not UTF-8 text, perhaps Windows-1252: {remedy}", Reason.FILE_ENCODING
        ) from None


def is_plain(text: str) -> bool:
    """Fast check that no text needs a closer look; False is no verdict."""
    return text.isprintable() and "<" not in text


class Unfit(NamedTuple):
    """What makes a text unfit: `why` continues a sentence that begins with the text's name."""

    why: str
    reason: Reason


def unfit(text: str) -> Unfit | None:
    """What makes a question or an option unfit for a prompt; None if it is fit."""
    if len(text) > LONGEST:
        return Unfit(f"has {len(text)} characters, the limit is {LONGEST}", Reason.FIELD_LENGTH)
    if is_plain(text):
        return None
    if _SURROGATE.search(text):
        return Unfit("is not Unicode text", Reason.FIELD_ENCODING)
    if match := _CONTROL.search(text):
        return _control(match)
    if match := _DIRECTION.search(text):
        why = f"holds U+{ord(match[0]):04X}, which changes the direction of writing"
        return Unfit(why, Reason.FIELD_TEXT)
    if match := _INVISIBLE.search(text):
        return Unfit(f"holds U+{ord(match[0]):04X}, which cannot be seen", Reason.FIELD_TEXT)
    if match := _TOKEN.search(text):
        return Unfit(f"holds {match[0]}, which a model reads as a command", Reason.FIELD_TOKEN)
    return None


def unfit_name(text: str) -> Unfit | None:
    """The same for an id, the name of a data set or a path, which have one line."""
    if why := unfit(text):
        return why
    if not is_plain(text) and (match := _LINE.search(text)):
        return _control(match)
    return None


def _control(match: re.Match[str]) -> Unfit:
    return Unfit(f"holds the control character U+{ord(match[0]):04X}", Reason.FIELD_TEXT)


def is_unicode(text: str) -> bool:
    """Can a text be written to a file: it has no half of a surrogate pair."""
    return text.isprintable() or not _SURROGATE.search(text)
