"""Small corpora as zips, tars of all kinds and folders."""

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
    """The corpus there, under LIMITS with changes; copies of compressed tars lie beside it."""
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
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(
        path.suffix, bytes
    )
    path.write_bytes(packed(buffer.getvalue()))
    return path


def write_folder(path: Path, files: dict[str, bytes], top: str = "") -> Path:
    for name, data in files.items():
        (path / top / name).parent.mkdir(parents=True, exist_ok=True)
        (path / top / name).write_bytes(data)
    return path


def write(path: Path, files: dict[str, bytes], top: str = "OmniMedVQA/") -> Path:
    """By the name: a zip, a tar of some kind, or without a suffix, a folder."""
    kinds = {".zip": write_zip, "": write_folder}
    return kinds.get(path.suffix, write_tar)(path, files, top)
