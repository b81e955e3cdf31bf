"""A compressed tar as an uncompressed one: it can be read in any order only so.

The copy is made once, in a stream, and kept outside all outputs until another archive takes its
place: what a run needs of it is the newest. It may be deleted at any time, and is then made again.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import zstandard

from stages.core.disk_space import find_shortages
from stages.core.errors import DiskFullError
from stages.core.file_lock import exclusive_lock
from stages.core.iteration.progress import progress_reporter
from stages.core.outputs import atomic_file
from stages.core.params import CorpusLimits
from stages.corpus.archives.archive import damage_explained
from stages.corpus.archives.safety import MIB, check_growth

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_WINDOW: Final = 2**27
"""Bytes of what came before that zstd may refer to: as much as its own program takes without being
asked for more.
"""
_BLOCK: Final = 4 * MIB
_RESERVE: Final = 256 * MIB
"""Bytes that are left free on the disk."""
_DAMAGE: Final = (zlib.error, EOFError, gzip.BadGzipFile, zstandard.ZstdError)


def is_compressed(path: Path) -> bool:
    """Whether the first bytes are those of gzip or zstd."""
    with path.open("rb") as handle:
        magic = handle.read(4)
    return magic.startswith((_GZIP, _ZSTD))


@contextmanager
def unpacked_tars(
    paths: Iterable[Path], folder: Path, limits: CorpusLimits
) -> Iterator[dict[Path, Path]]:
    """Uncompressed copies in `folder` of these compressed tars, created if missing.

    Copies of other tars are deleted.

    They stay where they are until this is left; one that was opened meanwhile can be read for
    longer. Whoever else wants some waits: the stages of all modalities begin at once.
    RefusedDataError for a damaged one or a bomb, DiskFullError for too small a disk.
    """
    if not (wanted := list(paths)):
        yield {}
        return
    with exclusive_lock(folder / "lock"):
        copies = {path: folder / f"{_identity(path)}.tar" for path in wanted}
        for old in [*folder.glob("*.tar"), *folder.glob(".*.tar.incomplete")]:
            if old not in copies.values():
                old.unlink()
        for path, copy in copies.items():
            if not copy.is_file():
                _unpack(path, copy, limits)
        yield copies


def _identity(path: Path) -> str:
    """What tells an archive from the one that lay there before, on this machine."""
    info = path.stat()
    return hashlib.sha256(
        f"{path.resolve()} {info.st_size} {info.st_mtime_ns} {info.st_ino}".encode()
    ).hexdigest()[:32]


def _unpack(path: Path, target: Path, limits: CorpusLimits) -> None:
    packed = path.stat().st_size
    _check_space(path, target, packed)
    report = progress_reporter(f"unpacking {path.name}", packed // MIB, "MiB")
    with (
        path.open("rb") as source,
        damage_explained(path, _DAMAGE),
        atomic_file(target) as temporary,
        temporary.open("wb") as out,
    ):
        stream = _stream(source)
        unpacked = 0
        while block := stream.read(_BLOCK):
            unpacked += len(block)
            check_growth(path, unpacked, source.tell(), limits)
            _check_space(path, target, len(block))
            out.write(block)
            report(source.tell() // MIB, f"{unpacked // MIB} MiB unpacked, ")


def _stream(source: IO[bytes]) -> Any:
    magic = source.read(4)
    source.seek(0)
    if magic.startswith(_GZIP):
        return gzip.GzipFile(fileobj=source)
    return zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(
        source, read_across_frames=True, closefd=False
    )


def _check_space(path: Path, target: Path, needed: int) -> None:
    for _, total, free in find_shortages({target.parent: needed}, _RESERVE):
        raise DiskFullError(
            f"{path} is unpacked to {target.parent}/, since a compressed tar cannot be read in any"
            f" order: {free // MIB} MiB are free there, {total // MIB} MiB at least are needed."
            " Free some space (`dvc gc --workspace` drops old results), or give the corpus as a"
            " zip or an uncompressed tar, which are read in place; then run again"
        )
