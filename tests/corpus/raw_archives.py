"""Writers of small corpora as zips, tars of every kind and folders."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

from stages.core.params import CorpusLimits
from stages.corpus.archives.source import Corpus, open_corpus

GOOD = {
    "QA_information/Open-access/B.json": b"[]",
    "QA_information/Open-access/A.json": b"[1]",
    "Images/A/29.1.Blur fundus/6045cb817f5b..JPG": b"picture" * 1000,
    "Images/B [x]/größe.png": b"other",
}
LIMITS = CorpusLimits(max_members=10_000, max_member_mb=64, max_total_mb=256, max_ratio=200)
KINDS = ("c.zip", "c.tar", "c.tar.gz", "c.tar.zst")


@contextmanager
def opened_at(path: Path, **limits: int) -> Iterator[Corpus]:
    """The corpus at `path`, under LIMITS with changes; copies of compressed tars go beside it."""
    with open_corpus(path, LIMITS.model_copy(update=limits), path.parent / "scratch") as corpus:
        yield corpus


def write_zip(path: Path, files: dict[str, bytes], top: str = "OmniMedVQA/") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(top + name, data)
    return path


def write_tar(
    path: Path,
    files: dict[str, bytes],
    top: str = "OmniMedVQA/",
    extra: tarfile.TarInfo | None = None,
) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        if extra:
            file.addfile(extra)
    compressors = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    compress = compressors.get(path.suffix, bytes)
    path.write_bytes(compress(buffer.getvalue()))
    return path


def write_folder(path: Path, files: dict[str, bytes], top: str = "") -> Path:
    for name, data in files.items():
        file = path / top / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def write(path: Path, files: dict[str, bytes], top: str = "OmniMedVQA/") -> Path:
    """Write a zip, a tar or a folder, as the suffix says."""
    writers = {".zip": write_zip, "": write_folder}
    return writers.get(path.suffix, write_tar)(path, files, top)
