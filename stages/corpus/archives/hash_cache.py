"""Cache of image hashes by file fingerprint, so that unchanged images are not read again.

A fingerprint (`Corpus.fingerprint`) takes two contents for the same if a zip gives both the same
name, size and CRC-32, or a folder the same path, size, modification time and inode. Two changes
escape it, and stage resize, which compares what it reads with the hash, finds both:

- bytes damaged under an unchanged CRC: the records of the image are quarantined;
- a forged CRC: stage resize ends with an error.

The file may be deleted: if it is missing or damaged, all images are read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from stages.core.outputs import atomic_file

CORPUS_CHANGED: Final = (
    "the corpus has changed since it was read, or contradicts its own list of members: delete"
    " .scratch/corpus/hashes and run `dvc repro -f download`"
)
"""Remedy for an image whose content does not have the cached hash."""
_MAX_ENTRIES: Final = 4_000_000
_MAGIC: Final = b"sha256 of images, 1\n"
_KEY_SIZE: Final = 16
_HASH_SIZE: Final = 32
_ENTRY_SIZE: Final = _KEY_SIZE + _HASH_SIZE


class HashCache:
    """Map from fingerprint to SHA-256, in lower-case hex, as the previous run wrote it."""

    def __init__(self, path: Path) -> None:
        """Read the file; one that is missing or damaged counts as empty."""
        self.path = path
        self._digests = _read(path)

    def get(self, fingerprint: str) -> str | None:
        """The hash of the content with this fingerprint; None if unknown or empty."""
        digest = self._digests.get(_key(fingerprint)) if fingerprint else None
        return digest.hex() if digest else None

    def write(self, hashes: Mapping[str, str]) -> None:
        """Replace the file with these hashes by fingerprint."""
        entries = sorted(
            _key(fingerprint) + bytes.fromhex(digest)
            for fingerprint, digest in hashes.items()
            if fingerprint
        )
        body = _MAGIC + b"".join(entries[:_MAX_ENTRIES])
        with atomic_file(self.path) as temporary, temporary.open("wb") as out:
            out.write(body)
            out.write(hashlib.sha256(body).digest())


def _key(fingerprint: str) -> bytes:
    encoded = fingerprint.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(encoded, digest_size=_KEY_SIZE).digest()


def _read(path: Path) -> dict[bytes, bytes]:
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    body = content[:-_HASH_SIZE]
    checksum = content[-_HASH_SIZE:]
    if not body.startswith(_MAGIC) or hashlib.sha256(body).digest() != checksum:
        return {}
    digests = {}
    for start in range(len(_MAGIC), len(body), _ENTRY_SIZE):
        entry = body[start : start + _ENTRY_SIZE]
        digests[entry[:_KEY_SIZE]] = entry[_KEY_SIZE:]
    return digests
