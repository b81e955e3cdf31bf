"""Cache of image hashes by file mark, so that unchanged images are not read again.

An image is known by its mark (stages/corpus/archives/source.py). This takes two contents for the
same if a zip gives both the same name, size and CRC-32, or a folder the same path, size, time of
change and inode. So it does not see bytes that were damaged while the CRC beside them stayed, nor a
CRC that somebody forged. Both are seen by stage resize, which compares what it reads with the hash:
the one sends records to quarantine there, the other is an error, and no wrong image is taken for
the right one. A file to lose: without it, or if it is damaged, all images are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from stages.core.outputs import atomic_file

MOST: Final = 4_000_000
"""Images that are remembered, 48 bytes each."""
OTHER_CORPUS: Final = (
    "the corpus is another one than was read, or lies about its members: delete"
    " .scratch/corpus/hashes, `dvc repro -f download`"
)
"""What to do about an image that does not have its hash."""
_MAGIC: Final = b"sha256 of images, 1\n"
_KEY: Final = 16
_HASH: Final = 32


class HashCache:
    """Mark -> SHA-256, as lower-case hex, of an earlier run."""

    def __init__(self, path: Path) -> None:
        """Read the file; one that is missing or damaged knows nothing."""
        self.path = path
        self._known = _read(path)

    def get(self, mark: str) -> str | None:
        """The hash of the content with this mark; None if it is unknown or the mark is empty."""
        digest = self._known.get(_key(mark)) if mark else None
        return digest.hex() if digest else None

    def write(self, hashes: Mapping[str, str]) -> None:
        """Remember these marks and hashes, and nothing else, for the next run."""
        known = sorted(
            (_key(mark), bytes.fromhex(digest)) for mark, digest in hashes.items() if mark
        )[:MOST]
        digest = hashlib.sha256(_MAGIC)
        with atomic_file(self.path) as temporary, temporary.open("wb") as out:
            out.write(_MAGIC)
            for pair in known:
                both = b"".join(pair)
                digest.update(both)
                out.write(both)
            out.write(digest.digest())


def _key(mark: str) -> bytes:
    return hashlib.blake2b(mark.encode("utf-8", "surrogateescape"), digest_size=_KEY).digest()


def _read(path: Path) -> dict[bytes, bytes]:
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    body, digest = content[:-_HASH], content[-_HASH:]
    if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
        return {}
    size = _KEY + _HASH
    starts = range(len(_MAGIC), len(body), size)
    return {body[start : start + _KEY]: body[start + _KEY : start + size] for start in starts}
