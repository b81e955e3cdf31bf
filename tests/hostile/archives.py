"""Archives that escape, explode, lie or are broken, each written from a good corpus."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import zstandard

from stages.corpus.quarantine.reasons import CorpusFault, Reason
from tests.hostile.cases import Case

Files = Mapping[str, bytes]
_IMAGE = "Images/Hostile/bad.png"
_SPARE = 2**24
"""Bytes unpacked below which no ratio counts."""


def zipped(
    files: Files,
    *,
    stored: bool = True,
    change: Callable[[zipfile.ZipInfo], None] = lambda info: None,
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    ) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = archive.compression
            change(info)
            archive.writestr(info, data)
    return buffer.getvalue()


def tarred(files: Files, more: tarfile.TarInfo | None = None, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **settings) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if more:
            archive.addfile(more)
    return buffer.getvalue()


def special(kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(_IMAGE)
    info.type, info.linkname = kind, target
    return info


def cut(content: bytes, tenths: int) -> bytes:
    return content[: len(content) * tenths // 10]


def of_mode(kind: int, name: str) -> Callable[[zipfile.ZipInfo], None]:
    def change(info: zipfile.ZipInfo) -> None:
        if info.filename == name:
            info.external_attr = (kind | 0o777) << 16

    return change


def patched(
    content: bytes, signature: bytes, offset: int, value: bytes, last: bool = True
) -> bytes:
    """The content with bytes at `offset` from the last, or first, of a signature replaced."""
    at = (content.rindex(signature) if last else content.index(signature)) + offset
    return content[:at] + value + content[at + len(value) :]


def lying_size(files: Files, named: str) -> bytes:
    """The last member, which a record names, says that it is a hundred bytes, and is a megabyte."""
    content = zipped(
        {**{name: data for name, data in files.items() if name != named}, named: bytes(2**20)},
        stored=False,
    )
    return patched(content, b"PK\x01\x02", 24, struct.pack("<I", 100))


def overlapping(files: Files) -> bytes:
    """Two entries share one member's bytes: a zip bomb without nesting (Fifield 2019)."""
    content = zipped(
        {**files, "Images/Hostile/a.png": b"a" * 99, "Images/Hostile/b.png": b"a" * 99}
    )
    where = content.rindex(b"PK\x01\x02")
    first = content.rindex(b"PK\x01\x02", 0, where)
    return content[: where + 42] + content[first + 42 : first + 46] + content[where + 46 :]


def huge_header(files: Files) -> bytes:
    """A tar whose name alone, in an extended header, is 30 MB."""
    return tarred({**files, "Images/" + "x" * 30_000_000: b""}, format=tarfile.PAX_FORMAT)


def damaged(files: Files, name: str) -> bytes:
    """One byte of a stored member is another one, so that its checksum does not hold."""
    content = bytearray(zipped(files))
    info = next(
        info
        for info in zipfile.ZipFile(io.BytesIO(bytes(content))).infolist()
        if info.filename == name
    )
    content[info.header_offset + 30 + len(name.encode()) + 8] ^= 0xFF
    return bytes(content)


def prefixed(files: Files) -> bytes:
    """A self-extracting zip: a program in front."""
    return b"#!/bin/sh\nexit 1\n" + zipped(files)


def archives(files: Files, named: str, question_file: str) -> dict[str, Case]:
    """All cases made from a good corpus.

    `named` is an image that a record names, `question_file` a file with questions.
    """
    good = dict(files)
    packed = zipped(good)
    # at the end of what is cut, more than a tar's own padding
    cut_zip, cut_tar = (
        make({**good, "Images/last.bin": bytes(range(256)) * 400}) for make in (zipped, tarred)
    )
    plus = partial(lambda name, data=b"x": {**good, name: data})
    cases = {
        "zip slip": Case(
            zipped(plus("../../evil.png")), "refused", CorpusFault.UNSAFE_MEMBER, "evil.png"
        ),
        "zip slip inside": Case(
            zipped(plus("Images/../../evil.png")), "refused", CorpusFault.UNSAFE_MEMBER, "evil.png"
        ),
        "tar slip": Case(
            tarred(plus("../../evil.png")), "refused", CorpusFault.UNSAFE_MEMBER, "evil.png"
        ),
        "absolute path in a zip": Case(
            zipped(plus("/tmp/evil.png")), "refused", CorpusFault.UNSAFE_MEMBER, "evil.png"
        ),
        "absolute path in a tar": Case(
            tarred(plus("/tmp/evil.png")), "refused", CorpusFault.UNSAFE_MEMBER, "evil.png"
        ),
        "drive letter": Case(
            zipped(plus("C:/evil.png")), "refused", CorpusFault.UNSAFE_MEMBER, "evil.png"
        ),
        "backslashes": Case(
            tarred(plus("Images\\..\\..\\evil.png")),
            "refused",
            CorpusFault.UNSAFE_MEMBER,
            "evil.png",
        ),
        "symlink in a tar": Case(
            tarred(good, special(tarfile.SYMTYPE)), "refused", CorpusFault.UNSAFE_MEMBER, "bad.png"
        ),
        "symlink upwards in a tar": Case(
            tarred(good, special(tarfile.SYMTYPE, "../../..")),
            "refused",
            CorpusFault.UNSAFE_MEMBER,
            "bad.png",
        ),
        "hard link in a tar": Case(
            tarred(good, special(tarfile.LNKTYPE)), "refused", CorpusFault.UNSAFE_MEMBER, "bad.png"
        ),
        "symlink in a zip": Case(
            zipped(plus(_IMAGE, b"/etc/passwd"), change=of_mode(stat.S_IFLNK, _IMAGE)),
            "refused",
            CorpusFault.UNSAFE_MEMBER,
            "bad.png",
        ),
        "character device": Case(
            tarred(good, special(tarfile.CHRTYPE)), "refused", CorpusFault.UNSAFE_MEMBER, "bad.png"
        ),
        "block device": Case(
            tarred(good, special(tarfile.BLKTYPE)), "refused", CorpusFault.UNSAFE_MEMBER, "bad.png"
        ),
        "pipe in a tar": Case(
            tarred(good, special(tarfile.FIFOTYPE)), "refused", CorpusFault.UNSAFE_MEMBER, "bad.png"
        ),
        "device in a zip": Case(
            zipped(plus(_IMAGE), change=of_mode(stat.S_IFCHR, _IMAGE)),
            "refused",
            CorpusFault.UNSAFE_MEMBER,
            "bad.png",
        ),
        "zip bomb": Case(
            zipped(plus(_IMAGE, bytes(8 * _SPARE)), stored=False),
            "refused",
            CorpusFault.LIMIT,
            "max_ratio",
        ),
        "gzip bomb": Case(
            gzip.compress(tarred(plus(_IMAGE, bytes(8 * _SPARE)))),
            "refused",
            CorpusFault.LIMIT,
            "max_ratio",
        ),
        "zstd bomb": Case(
            zstandard.compress(tarred(plus(_IMAGE, bytes(8 * _SPARE)))),
            "refused",
            CorpusFault.LIMIT,
            "max_ratio",
        ),
        "size that lies": Case(
            lying_size(good, named), "refused", CorpusFault.UNSAFE_MEMBER, named
        ),
        "members that overlap": Case(
            overlapping(good), "refused", CorpusFault.UNSAFE_MEMBER, "Images/Hostile/"
        ),
        "encrypted": Case(
            patched(packed, b"PK\x01\x02", 8, b"\x01\x00"), "refused", CorpusFault.UNSAFE_MEMBER
        ),
        "name twice in a zip": Case(
            zipped(plus(f"Images/./{named.removeprefix('Images/')}")),
            "refused",
            CorpusFault.UNSAFE_MEMBER,
            "Good/named.png",
        ),
        "name twice in a tar": Case(
            tarred(plus(f"./{named}")), "refused", CorpusFault.UNSAFE_MEMBER, named
        ),
        "names that differ in case": Case(
            zipped(plus(named.upper().replace("IMAGES/", "Images/"))),
            "refused",
            CorpusFault.UNSAFE_MEMBER,
        ),
        "names that differ in composition": Case(
            zipped({**good, "Images/\u00e9.png": b"x", "Images/e\u0301.png": b"y"}),
            "refused",
            CorpusFault.UNSAFE_MEMBER,
            "Images/",
        ),
        "very long name": Case(
            zipped(plus(f"Images/{'x' * 300}.png")),
            "refused",
            CorpusFault.UNSAFE_MEMBER,
            "Images/x",
        ),
        "very long path": Case(
            tarred(plus("Images/" + "x/" * 3000 + "a.png")),
            "refused",
            CorpusFault.UNSAFE_MEMBER,
            "Images/x",
        ),
        "header of 30 MB": Case(huge_header(good), "refused", CorpusFault.DAMAGED),
        "name that is not UTF-8": Case(
            tarred(plus("Images/caf\udce9.png"), errors="surrogateescape"),
            "refused",
            CorpusFault.UNSAFE_MEMBER,
            "caf",
        ),
        "NUL in a name": Case(
            patched(zipped(plus("Images/evil@.png")), b"evil@", 4, b"\x00"),
            "refused",
            CorpusFault.UNSAFE_MEMBER,
            "evil",
        ),
        "file and folder at once": Case(
            tarred({**good, "Images/x": b"", "Images/x/y.png": b""}),
            "refused",
            CorpusFault.UNSAFE_MEMBER,
            "Images/x",
        ),
        "no corpus": Case(zipped({"readme.txt": b"hello"}), "refused", CorpusFault.LAYOUT),
        "two corpora": Case(
            zipped({f"{top}/{name}": data for top in "ab" for name, data in good.items()}),
            "refused",
            CorpusFault.LAYOUT,
        ),
        "empty file": Case(b"", "refused", CorpusFault.DAMAGED),
        "empty zip": Case(zipped({}), "refused", CorpusFault.LAYOUT),
        "a text": Case(
            b"version https://git-lfs.github.com/spec/v1\n", "refused", CorpusFault.DAMAGED
        ),
        "gzip of a text": Case(gzip.compress(b"hello"), "refused", CorpusFault.DAMAGED),
        "self-extracting zip": Case(prefixed(good), "refused", CorpusFault.DAMAGED),
        "image with a wrong checksum": Case(
            damaged(good, named), "quarantined", Reason.IMAGE_DAMAGED, named
        ),
        "questions with a wrong checksum": Case(
            damaged(good, question_file), "quarantined", Reason.FILE_DAMAGED, question_file
        ),
        "nested archive nobody names": Case(zipped(plus("Images/nested.zip", packed)), "kept"),
        "zip after a zip": Case(
            packed + zipped({"readme.txt": b"x"}), "refused", CorpusFault.LAYOUT
        ),
    }
    for tenths in range(1, 10):
        cases |= {
            f"zip cut at {tenths}/10": Case(cut(cut_zip, tenths), "refused", CorpusFault.DAMAGED),
            f"tar cut at {tenths}/10": Case(cut(cut_tar, tenths), "refused", CorpusFault.DAMAGED),
            f"tar.gz cut at {tenths}/10": Case(
                cut(gzip.compress(cut_tar), tenths), "refused", CorpusFault.DAMAGED
            ),
            f"tar.zst cut at {tenths}/10": Case(
                cut(zstandard.compress(cut_tar), tenths), "refused", CorpusFault.DAMAGED
            ),
        }
    return cases
