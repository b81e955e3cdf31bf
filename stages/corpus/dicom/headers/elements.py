"""The elements of a DICOM file (PS3.10, PS3.5) that this project asks for, and none else.

pydicom takes the file apart; elements that are not wanted are skipped unread. Values stay raw bytes
until one of the functions below converts them, because pydicom's own conversion quotes what it does
not like, and that may be a patient's name. For the same reason its warnings and logs are off while
it works, and its exceptions end here: reasons are worded without any value.
"""

from __future__ import annotations

import logging
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Final, TypeVar

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import UID

from stages.corpus.quarantine.image_errors import ImageError
from stages.corpus.quarantine.reasons import Reason

Result = TypeVar("Result")

PREFIX: Final = b"DICM"
_PREFIX_AT: Final = 128
_UNDEFINED: Final = 0xFFFFFFFF
_META: Final = 0x0002
_TRANSFER_SYNTAX: Final = 0x00020010
_MOST_ITEMS: Final = 65_536
"""Items of a sequence: as many as any file has frames, and more."""

IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"

_logger = logging.getLogger("pydicom")
_logger.setLevel(logging.CRITICAL + 1)
_logger.propagate = False

_lock = threading.Lock()
_quiet_now: list[warnings.catch_warnings[None]] = []
_quiet_users = 0


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings from here on. The first thread that is in switches them off, the last one that
    leaves puts them back.

    `warnings.catch_warnings` by itself is not made for threads: the first one to leave would put
    them back for all.
    """
    global _quiet_users
    with _lock:
        if not _quiet_users:
            _quiet_now.append(warnings.catch_warnings())
            _quiet_now[-1].__enter__()
            warnings.simplefilter("ignore")
        _quiet_users += 1
    try:
        yield
    finally:
        with _lock:
            _quiet_users -= 1
            if not _quiet_users:
                _quiet_now.pop().__exit__(None, None, None)


def guarded(reason: str, work: Callable[[], Result]) -> Result:
    """What `work` returns, silently; ImageError with `reason` if it raises anything but an
    ImageError.

    The error is raised outside of the handler, so that it does not carry the other one, which may
    quote values, as its context.
    """
    try:
        with quiet():
            return work()
    except (ImageError, MemoryError):
        raise
    except Exception:  # noqa: S110  the reason is given below
        pass
    raise ImageError(reason)


@dataclass(frozen=True)
class Elements:
    """A data set: typed access to elements by keyword; all functions give None for an element that
    is absent or empty.

    They raise ImageError for one whose value representation or length it cannot have, naming the
    keyword, never the value.
    """

    _dataset: Dataset = field(repr=False)

    def unsigned(self, keyword: str) -> int | None:
        """The value of a US element."""
        found = self._raw(keyword, ("US",))
        return None if found is None else int(self._struct(keyword, found, "H", 1)[0])

    def words(self, keyword: str, count: int, *, signed: bool) -> tuple[int, ...] | None:
        """`count` values of a US or SS element; where it does not say which of the two it is,
        `signed` decides.
        """
        found = self._raw(keyword, ("US", "SS"))
        if found is None:
            return None
        kind = {"US": "H", "SS": "h"}.get(found.VR or "", "h" if signed else "H")
        return tuple(int(value) for value in self._struct(keyword, found, kind, count))

    def integers(self, keyword: str, count: int) -> tuple[int, ...] | None:
        """`count` values of an IS element."""
        return self._parsed(keyword, ("IS",), count, int)

    def decimals(self, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
        """`count` finite values of a DS, FD or FL element; None: as many as there are, at least
        one.
        """
        found = self._raw(keyword, ("DS", "FD", "FL"))
        if found is None:
            return None
        if found.VR in ("FD", "FL"):
            kind = "d" if found.VR == "FD" else "f"
            number = count or max(len(found.value or b"") // struct.calcsize(kind), 1)
            values = tuple(float(value) for value in self._struct(keyword, found, kind, number))
        else:
            values = self._parsed(keyword, ("DS",), count, float) or ()
        if not all(math.isfinite(value) for value in values):
            raise ImageError(f"{keyword} is not a finite number")
        return values

    def has(self, keyword: str) -> bool:
        """Whether there is such an element with a value, be it a good one or not."""
        found = self._found(keyword)
        return bool(
            found is not None
            and found.value
            and (not isinstance(found.value, bytes) or found.value.strip(b" \0"))
        )

    def codes(self, keyword: str, representation: str = "CS") -> list[str]:
        """The values of a CS element as they are written: for comparisons with lists of known ones,
        never to be passed on.
        """
        found = self._raw(keyword, (representation,))
        return (
            []
            if found is None
            else [
                part.strip(" \0")
                for part in (found.value or b"").decode("ascii", "replace").split("\\")
            ]
        )

    def code(
        self, keyword: str, allowed: Collection[str], representation: str = "CS"
    ) -> str | None:
        """The value of a CS element if it is one of `allowed`; None otherwise, also if the element
        is not as it should be.
        """
        try:
            found = self.codes(keyword, representation)
        except ImageError:
            return None
        # the one of the list: nothing that was in the file goes on
        return next((code for code in allowed if found == [code]), None)

    def uid(self, keyword: str) -> str | None:
        """The value of a UI element: for comparisons, never to be passed on."""
        found = self._raw(keyword, ("UI",))
        return (
            None if found is None else (found.value or b"").decode("ascii", "replace").strip(" \0")
        )

    def bulk(self, keyword: str, allowed: Collection[str]) -> tuple[bytes, str | None, bool] | None:
        """A long value, its representation if the file says it, and whether its length was
        undefined (encapsulated fragments).
        """
        found = self._raw(keyword, allowed)
        return None if found is None else (found.value or b"", found.VR, found.length == _UNDEFINED)

    def items(self, keyword: str) -> list[Elements]:
        """The items of a sequence; [] if it is absent or empty."""
        tag = _tag(keyword)
        if tag not in self._dataset:
            return []

        def convert() -> list[Elements]:
            element = self._dataset[tag]
            if element.VR != "SQ":
                raise ImageError(f"{keyword} is not a sequence")
            return [Elements(item) for item in element.value[:_MOST_ITEMS]]

        return guarded(f"{keyword} is a damaged sequence", convert)

    def little_endian(self, keyword: str) -> bool:
        """The order of bytes of an element that is there."""
        found = self._found(keyword)
        return not isinstance(found, RawDataElement) or found.is_little_endian

    def _found(self, keyword: str) -> DataElement | RawDataElement | None:
        """An element as it is, never converted: an empty one would be, but for `keep_deferred`."""
        tag = _tag(keyword)
        return self._dataset.get_item(tag, keep_deferred=True) if tag in self._dataset else None

    def _raw(self, keyword: str, allowed: Collection[str]) -> RawDataElement | None:
        found = self._found(keyword)
        if found is None:
            return None
        # implicit VR says nothing of it, UN is what a forwarding system writes that does not know
        # the element
        known = (
            found.VR is None
            or found.VR == "UN"
            or any(part in allowed for part in found.VR.split(" or "))
        )
        if not isinstance(found, RawDataElement) or not known:
            raise ImageError(f"{keyword} has a value representation that it cannot have")
        value = found.value or b""
        if found.length != _UNDEFINED and len(value) != found.length:
            raise ImageError(
                f"{keyword} is longer than the file: it was cut short, or the length is wrong"
            )
        return found if value else None

    def _struct(
        self, keyword: str, found: RawDataElement, kind: str, count: int
    ) -> tuple[float, ...]:
        order = "<" if found.is_little_endian else ">"
        value = found.value or b""
        if len(value) != struct.calcsize(kind) * count:
            raise ImageError(f"{keyword} has the wrong length")
        return struct.unpack(f"{order}{count}{kind}", value)

    def _parsed(
        self,
        keyword: str,
        allowed: Collection[str],
        count: int | None,
        kind: Callable[[str], Result],
    ) -> tuple[Result, ...] | None:
        found = self._raw(keyword, allowed)
        if found is None:
            return None
        parts = (found.value or b"").decode("ascii", "replace").strip(" \0").split("\\")
        if not any(part.strip() for part in parts):
            return None
        values = guarded(f"{keyword} is not a number", lambda: tuple(kind(part) for part in parts))
        if count is not None and len(values) != count:
            raise ImageError(f"{keyword} has the wrong number of values")
        return values


def is_dicom(content: bytes) -> bool:
    """Whether a file is one of DICOM's Part 10: 128 bytes of any kind, then "DICM"."""
    return content[_PREFIX_AT : _PREFIX_AT + len(PREFIX)] == PREFIX


def read_elements(
    content: bytes, keywords: Collection[str], most_inflated: int
) -> tuple[str, Elements]:
    """The transfer syntax (a UID that DICOM registers) and the elements of these keywords, at the
    top level.

    most_inflated: bytes that a deflated file may unpack to. Raises ImageError with the reason.
    """
    return guarded("the DICOM header is damaged", lambda: _read(content, keywords, most_inflated))


def syntax_name(uid: str) -> str:
    """The registered name of a transfer syntax, "JPEG 2000 Image Compression"; "unregistered" for
    any other UID.
    """
    return UID(uid).name if is_registered(uid) else "unregistered"


def is_registered(uid: str) -> bool:
    """Whether DICOM has registered this transfer syntax. Others are not to be quoted."""
    return UID(uid).type == "Transfer Syntax"


def _read(content: bytes, keywords: Collection[str], most_inflated: int) -> tuple[str, Elements]:
    file = BytesIO(content)
    read_preamble(file, force=False)
    meta = Elements(
        read_dataset(
            file,
            False,
            True,
            stop_when=lambda tag, vr, length: tag >> 16 != _META,
            specific_tags=[_TRANSFER_SYNTAX],
        )
    )
    syntax = meta.uid("TransferSyntaxUID")
    if syntax is None:
        raise ImageError("the DICOM file does not say in which transfer syntax it is written")
    if not is_registered(syntax):
        raise ImageError("a DICOM file in a transfer syntax that is not registered")
    if syntax == DEFLATED:
        file = BytesIO(_inflated(content[file.tell() :], most_inflated))
    tags: list[BaseTag | int] = [_tag(keyword) for keyword in keywords]
    seen: set[int] = set()

    def check(tag: BaseTag, vr: str | None, length: int) -> bool:
        """Never stops; pydicom would take the last of two elements, other readers the first."""
        if tag in seen and tag in tags:
            raise ImageError("a DICOM element stands twice in the file")
        if length:  # pydicom also asks with a length of 0, before it reads, about the first element
            seen.add(tag)
        return False

    return syntax, Elements(
        read_dataset(
            file, syntax == IMPLICIT, syntax != BIG_ENDIAN, stop_when=check, specific_tags=tags
        )
    )


def _inflated(content: bytes, most: int) -> bytes:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    found = unpacker.decompress(content, most)
    if unpacker.unconsumed_tail or (len(found) == most and not unpacker.eof):
        why = f"the deflated data are larger than {most / 2**20:.0f} MiB (dicom.max_inflated_mb)"
        raise ImageError(why, Reason.IMAGE_TOO_LARGE)
    if not unpacker.eof:
        raise ImageError("the deflated data were cut short")
    return found


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag
