"""Typed access to the elements of a DICOM file (PS3.5, PS3.10), without quoting patient data.

pydicom parses the file; elements that were not asked for are skipped unread. Values stay raw bytes
until one of the functions below converts them, because pydicom's own conversion quotes values that
it does not like, which may be a patient's name. For the same reason its warnings and logs are off
while it works, and its exceptions end here: no message of an ImageError contains a value.
"""

from __future__ import annotations

import logging
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Final, NamedTuple, TypeVar

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import UID

from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

Result = TypeVar("Result")

_UNDEFINED_LENGTH: Final = 0xFFFFFFFF
_META_GROUP: Final = 0x0002
_TRANSFER_SYNTAX: Final = 0x00020010
_MAX_ITEMS: Final = 65_536
"""Items of a sequence: more than any file has frames."""
_PADDING: Final = " \0"
"""What pads a value to an even length (PS3.5 6.2)."""

IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"

_logger = logging.getLogger("pydicom")
_logger.setLevel(logging.CRITICAL + 1)
_logger.propagate = False

_quiet_lock = threading.Lock()
_quiet_users = 0
_saved_warnings = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress all warnings, in any thread, until the last user leaves.

    `warnings.catch_warnings` alone is not thread-safe: the first thread to leave would restore the
    warnings for all.
    """
    global _quiet_users
    with _quiet_lock:
        if not _quiet_users:
            _saved_warnings.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if not _quiet_users:
                _saved_warnings.close()


def guarded(reason: str, work: Callable[[], Result]) -> Result:
    """Call `work` without warnings; any exception becomes an ImageError with `reason`.

    ImageError and MemoryError pass. The new error is raised outside the handler, so that it does
    not carry the other exception, which may quote values, as its context.
    """
    try:
        with quiet():
            return work()
    except (ImageError, MemoryError):
        raise
    except Exception:  # noqa: S110  raised below, with the reason
        pass
    raise ImageError(reason)


class BulkValue(NamedTuple):
    """Long value of an element."""

    content: bytes
    representation: str | None
    """None with implicit VR."""
    undefined_length: bool
    """Whether the value is encapsulated in fragments (PS3.5 A.4)."""


@dataclass(frozen=True)
class Elements:
    """Data set with typed access to its elements by keyword.

    All methods return None for an element that is absent or empty. They raise ImageError for one
    with a wrong value representation or length; the message has the keyword, never the value.
    """

    _dataset: Dataset = field(repr=False)

    def unsigned(self, keyword: str) -> int | None:
        """Value of a US element."""
        element = self._checked(keyword, ("US",))
        return None if element is None else int(_unpack(keyword, element, "H", 1)[0])

    def words(self, keyword: str, count: int, *, signed: bool) -> tuple[int, ...] | None:
        """`count` values of a US or SS element.

        signed: whether it is SS, where the file does not give its value representation.
        """
        element = self._checked(keyword, ("US", "SS"))
        if element is None:
            return None
        code = {"US": "H", "SS": "h"}.get(element.VR or "", "h" if signed else "H")
        return tuple(int(value) for value in _unpack(keyword, element, code, count))

    def integers(self, keyword: str, count: int) -> tuple[int, ...] | None:
        """`count` values of an IS element."""
        return self._parsed(keyword, ("IS",), count, int)

    def decimals(self, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
        """`count` finite values of a DS, FD or FL element, or all of them, at least one."""
        element = self._checked(keyword, ("DS", "FD", "FL"))
        if element is None:
            return None
        if element.VR in ("FD", "FL"):
            code = "d" if element.VR == "FD" else "f"
            expected = count or max(len(element.value or b"") // struct.calcsize(code), 1)
            values = tuple(float(value) for value in _unpack(keyword, element, code, expected))
        else:
            values = self._parsed(keyword, ("DS",), count, float) or ()
        if not all(math.isfinite(value) for value in values):
            raise ImageError(f"{keyword} is not a finite number")
        return values

    def has(self, keyword: str) -> bool:
        """Whether there is such an element with a value, valid or not."""
        element = self._element(keyword)
        if element is None or not element.value:
            return False
        return not isinstance(element.value, bytes) or bool(element.value.strip(b" \0"))

    def codes(self, keyword: str, representation: str = "CS") -> list[str]:
        """Values of a CS element as written, to be compared with known ones, never passed on."""
        element = self._checked(keyword, (representation,))
        if element is None:
            return []
        return [part.strip(_PADDING) for part in _ascii(element).split("\\")]

    def code(
        self, keyword: str, allowed: Collection[str], representation: str = "CS"
    ) -> str | None:
        """Value of a CS element if it is one of `allowed`; None for any other or a wrong one."""
        try:
            codes = self.codes(keyword, representation)
        except ImageError:
            return None
        # the string in `allowed` is returned: no bytes of the file are passed on
        return next((code for code in allowed if codes == [code]), None)

    def uid(self, keyword: str) -> str | None:
        """Value of a UI element, to be compared with others, never passed on."""
        element = self._checked(keyword, ("UI",))
        return None if element is None else _ascii(element).strip(_PADDING)

    def bulk(self, keyword: str, allowed: Collection[str]) -> BulkValue | None:
        """Long value of an element with one of the `allowed` value representations."""
        element = self._checked(keyword, allowed)
        if element is None:
            return None
        return BulkValue(element.value or b"", element.VR, element.length == _UNDEFINED_LENGTH)

    def items(self, keyword: str) -> list[Elements]:
        """Items of a sequence; [] if it is absent or empty."""
        tag = _tag(keyword)
        if tag not in self._dataset:
            return []

        def convert() -> list[Elements]:
            element = self._dataset[tag]
            if element.VR != "SQ":
                raise ImageError(f"{keyword} is not a sequence")
            return [Elements(item) for item in element.value[:_MAX_ITEMS]]

        return guarded(f"{keyword} is a damaged sequence", convert)

    def first_item(self, keyword: str) -> Elements | None:
        """First item of a sequence; None if it is absent or empty."""
        return next(iter(self.items(keyword)), None)

    def little_endian(self, keyword: str) -> bool:
        """Byte order of an element that is present."""
        element = self._element(keyword)
        return not isinstance(element, RawDataElement) or element.is_little_endian

    def _element(self, keyword: str) -> DataElement | RawDataElement | None:
        """Unconverted element; without `keep_deferred` pydicom would convert an empty one."""
        tag = _tag(keyword)
        return self._dataset.get_item(tag, keep_deferred=True) if tag in self._dataset else None

    def _checked(self, keyword: str, allowed: Collection[str]) -> RawDataElement | None:
        """Element with an allowed value representation and a complete value."""
        element = self._element(keyword)
        if element is None:
            return None
        # Implicit VR gives None. Systems that forward an element they do not know write UN. pydicom
        # itself may leave a choice open: "US or SS".
        allowed_here = element.VR in (None, "UN") or any(
            part in allowed for part in (element.VR or "").split(" or ")
        )
        if not isinstance(element, RawDataElement) or not allowed_here:
            raise ImageError(f"{keyword} has the wrong value representation")
        value = element.value or b""
        if element.length not in (_UNDEFINED_LENGTH, len(value)):
            raise ImageError(
                f"{keyword} is longer than the file: the file is truncated, or the length is wrong"
            )
        return element if value else None

    def _parsed(
        self,
        keyword: str,
        allowed: Collection[str],
        count: int | None,
        parse: Callable[[str], Result],
    ) -> tuple[Result, ...] | None:
        """Numbers that are written as text (IS, DS), separated by backslashes."""
        element = self._checked(keyword, allowed)
        if element is None:
            return None
        parts = _ascii(element).strip(_PADDING).split("\\")
        if not any(part.strip() for part in parts):
            return None
        values = guarded(f"{keyword} is not a number", lambda: tuple(parse(part) for part in parts))
        if count is not None and len(values) != count:
            raise ImageError(f"{keyword} has the wrong number of values")
        return values


def read_elements(
    content: bytes, keywords: Collection[str], max_inflated: int
) -> tuple[str, Elements]:
    """Transfer syntax (a registered UID) and the top-level elements of these keywords.

    max_inflated: bytes that a deflated file may unpack to. Raises ImageError with the reason.
    """
    return guarded("the DICOM header is damaged", lambda: _read(content, keywords, max_inflated))


def syntax_name(uid: str) -> str:
    """Registered name of a transfer syntax, or "unregistered": other UIDs may name a patient."""
    return UID(uid).name if is_registered(uid) else "unregistered"


def is_registered(uid: str) -> bool:
    """Whether DICOM has registered this transfer syntax. Others are not to be quoted."""
    return UID(uid).type == "Transfer Syntax"


def _read(content: bytes, keywords: Collection[str], max_inflated: int) -> tuple[str, Elements]:
    file = BytesIO(content)
    read_preamble(file, force=False)
    # the file meta information is always explicit VR, little endian (PS3.10 7.1)
    meta = read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag >> 16 != _META_GROUP,
        specific_tags=[_TRANSFER_SYNTAX],
    )
    syntax = Elements(meta).uid("TransferSyntaxUID")
    if syntax is None:
        raise ImageError("TransferSyntaxUID is missing from the DICOM file")
    if not is_registered(syntax):
        raise ImageError("the transfer syntax of the DICOM file is not registered")
    if syntax == DEFLATED:
        file = BytesIO(_inflate(content[file.tell() :], max_inflated))
    tags: list[BaseTag | int] = [_tag(keyword) for keyword in keywords]
    seen: set[int] = set()

    def refuse_duplicates(tag: BaseTag, vr: str | None, length: int) -> bool:
        """Called for each element; never stops.

        Of two elements with one tag pydicom would take the last, other readers the first.
        """
        if tag in seen and tag in tags:
            raise ImageError("a DICOM element occurs twice in the file")
        # pydicom first announces the first element with length 0, which must not count as seen
        if length:
            seen.add(tag)
        return False

    dataset = read_dataset(
        file,
        is_implicit_VR=syntax == IMPLICIT,
        is_little_endian=syntax != BIG_ENDIAN,
        stop_when=refuse_duplicates,
        specific_tags=tags,
    )
    return syntax, Elements(dataset)


def _inflate(content: bytes, max_bytes: int) -> bytes:
    """Raw deflate data (PS3.5 A.5), unpacked up to a limit."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = unpacker.decompress(content, max_bytes)
    if unpacker.unconsumed_tail or (len(inflated) == max_bytes and not unpacker.eof):
        limit = f"{max_bytes / 2**20:.0f} MiB (dicom.max_inflated_mb)"
        raise ImageError(f"the deflated data are larger than {limit}", Reason.IMAGE_TOO_LARGE)
    if not unpacker.eof:
        raise ImageError("the deflated data are truncated")
    return inflated


def _unpack(keyword: str, element: RawDataElement, code: str, count: int) -> tuple[float, ...]:
    """`count` binary numbers of a `struct` code."""
    value = element.value or b""
    if len(value) != struct.calcsize(code) * count:
        raise ImageError(f"{keyword} has the wrong length")
    order = "<" if element.is_little_endian else ">"
    return struct.unpack(f"{order}{count}{code}", value)


def _ascii(element: RawDataElement) -> str:
    return (element.value or b"").decode("ascii", "replace")


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag
