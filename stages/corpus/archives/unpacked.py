"""Uncompressed copies of compressed tars, which cannot be read in random order themselves.

A copy is created once, in a stream, outside all outputs, and deleted when another archive replaces
it. It may be deleted at any time, and is then created again.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Collection, Iterator
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
from stages.corpus.archives.archive import explain_damage
from stages.corpus.archives.safety import MIB, check_growth

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_WINDOW: Final = 2**27
"""Bytes of zstd's back-references: as much as its own program allows by default."""
_BLOCK: Final = 4 * MIB
_RESERVE: Final = 256 * MIB
"""Bytes that stay free on the disk."""
_ERRORS: Final = (zlib.error, EOFError, gzip.BadGzipFile, zstandard.ZstdError)


def is_compressed(path: Path) -> bool:
    """Whether the first bytes are those of gzip or zstd."""
    with path.open("rb") as handle:
        return handle.read(4).startswith((_GZIP, _ZSTD))


@contextmanager
def unpacked_tars(
    paths: Collection[Path], folder: Path, limits: CorpusLimits
) -> Iterator[dict[Path, Path]]:
    """Uncompressed copies in `folder` of these compressed tars, created if missing.

    Copies of other tars are deleted. The lock stops parallel stages from deleting copies until the
    caller has opened them; an open file stays readable after its deletion.

    Raises RefusedDataError for a damaged tar or a bomb, DiskFullError if the disk is too small.
    """
    if not paths:
        yield {}
        return
    with exclusive_lock(folder / "lock"):
        copies = {path: folder / f"{_identity(path)}.tar" for path in paths}
        for old in [*folder.glob("*.tar"), *folder.glob(".*.tar.incomplete")]:
            if old not in copies.values():
                old.unlink()
        for path, copy in copies.items():
            if not copy.is_file():
                _unpack(path, copy, limits)
        yield copies


def _identity(path: Path) -> str:
    """Distinguishes an archive from an earlier one at the same path, on this machine."""
    info = path.stat()
    text = f"{path.resolve()} {info.st_size} {info.st_mtime_ns} {info.st_ino}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _unpack(path: Path, target: Path, limits: CorpusLimits) -> None:
    packed_size = path.stat().st_size
    _check_space(path, target, packed_size)
    report = progress_reporter(f"unpacking {path.name}", packed_size // MIB, "MiB")
    with (
        path.open("rb") as source,
        explain_damage(path, _ERRORS),
        atomic_file(target) as temporary,
        temporary.open("wb") as out,
    ):
        stream = _open_stream(source)
        unpacked = 0
        while block := stream.read(_BLOCK):
            unpacked += len(block)
            check_growth(path, unpacked, source.tell(), limits)
            _check_space(path, target, len(block))
            out.write(block)
            report(source.tell() // MIB, f"{unpacked // MIB} MiB unpacked, ")


def _open_stream(source: IO[bytes]) -> Any:
    magic = source.read(4)
    source.seek(0)
    if magic.startswith(_GZIP):
        return gzip.GzipFile(fileobj=source)
    return zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(
        source, read_across_frames=True, closefd=False
    )


def _check_space(path: Path, target: Path, needed: int) -> None:
    if shortages := find_shortages({target.parent: needed}, _RESERVE):
        _, total, free = shortages[0]
        raise DiskFullError(
            f"{path} is a compressed tar, which has to be unpacked to {target.parent}/ to be read"
            f" in random order: {free // MIB} MiB are free there, at least {total // MIB} MiB are"
            " needed. Free some space (`dvc gc --workspace` drops old results), or give the corpus"
            " as a zip or an uncompressed tar, which are read in place; then run again"
        )
