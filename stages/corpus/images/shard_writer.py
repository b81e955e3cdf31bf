"""How resized images are cut into shards, and a shard is written: the same images give the same
shards, whatever was there before.

Images are taken in the order of their names, and a shard ends after a name whose hash says so.
Images that come or go change the shard they fall into, and no other (content-defined chunking, as
rsync and backup programs do with bytes). The name of a shard is a hash of what is in it.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from stages.corpus.dataset.image_store import SUFFIX

MEAN: Final = 128
"""Images of a shard, on average: about 20 MB of 384x384 pixels."""
MOST: Final = 4 * MEAN

_FORM: Final = "1"
"""Changes when shards of the same images are written otherwise."""
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_MODE: Final = 0o100644 << 16


def cut(names: Sequence[str]) -> Iterator[list[str]]:
    """The names, which must be sorted, a shard at a time."""
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
    """The file name of a shard with these (member, key of what it shows) in this order."""
    digest = hashlib.sha256(_FORM.encode())
    for member, key in images:
        digest.update(f"{member}\0{key}\0".encode())
    return digest.hexdigest()[:32] + SUFFIX


def write_shard(path: Path, images: Iterable[tuple[str, bytes]]) -> None:
    """Write (member, content of its file) as they come: one at a time is in memory, and nothing but
    them decides the bytes.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, content in images:
            info = zipfile.ZipInfo(member, _EPOCH)
            info.create_system, info.external_attr = 3, _MODE
            archive.writestr(info, content)
