"""Split images into shards and write them: equal images give equal shards, byte for byte.

Images are taken in the order of their names, and a shard ends after a name whose hash says so
(content-defined chunking, as in rsync and backup programs). Added or removed images therefore
change the shard they fall into and no other. A shard is named by a hash of its contents.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from stages.corpus.dataset.image_store import SUFFIX

MEAN: Final = 128
"""Average number of images per shard: about 20 MB of 384x384 pixels."""
MOST: Final = 4 * MEAN
"""Largest number of images per shard."""

_FORMAT: Final = "1"
"""To be changed when shards of the same images are written in another form."""
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_UNIX: Final = 3
_MODE: Final = 0o100644 << 16


def cut(names: Sequence[str]) -> Iterator[list[str]]:
    """Split sorted names into shards."""
    shard: list[str] = []
    for name in names:
        shard.append(name)
        last = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % MEAN == 0
        if last or len(shard) == MOST:
            yield shard
            shard = []
    if shard:
        yield shard


def shard_name(images: Iterable[tuple[str, str]]) -> str:
    """File name of a shard with these (member, content key) pairs in this order."""
    digest = hashlib.sha256(_FORMAT.encode())
    for member, key in images:
        digest.update(f"{member}\0{key}\0".encode())
    return digest.hexdigest()[:32] + SUFFIX


def write_shard(path: Path, images: Iterable[tuple[str, bytes]]) -> None:
    """Write a shard of (member, content) pairs, with one content in memory at a time.

    The bytes of the file depend on nothing else: all members have the same time and mode.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, content in images:
            info = zipfile.ZipInfo(member, _EPOCH)
            info.create_system = _UNIX
            info.external_attr = _MODE
            archive.writestr(info, content)
