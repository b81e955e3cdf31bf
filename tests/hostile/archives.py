"""Archives that escape, explode, lie or are corrupt, each written from a good corpus."""

from __future__ import annotations

import gzip
import io
import itertools
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import zstandard

from stages.corpus.quarantine.reasons import CorpusFault, Reason
from tests.hostile.cases import Case, harmless

Files = Mapping[str, bytes]
_IMAGE = "Images/Hostile/bad.png"
_BOMB = bytes(2**27)
"""More than the 2**24 bytes below which no ratio counts."""


def make_zip(
    files: Files,
    *,
    compress: bool = False,
    change: Callable[[zipfile.ZipInfo], None] = lambda info: None,
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            change(info)
            archive.writestr(info, data)
    return buffer.getvalue()


def make_tar(files: Files, special: tarfile.TarInfo | None = None, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **settings) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if special:
            archive.addfile(special)
    return buffer.getvalue()


def special_file(kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    """A link or device in a tar."""
    info = tarfile.TarInfo(_IMAGE)
    info.type = kind
    info.linkname = target
    return info


def set_kind(kind: int) -> Callable[[zipfile.ZipInfo], None]:
    """Make the member _IMAGE of a zip a link or device."""

    def change(info: zipfile.ZipInfo) -> None:
        if info.filename == _IMAGE:
            info.external_attr = (kind | 0o777) << 16

    return change


def truncate(content: bytes, tenths: int) -> bytes:
    return content[: len(content) * tenths // 10]


def patch(content: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """Replace bytes at `offset` from the last occurrence of a signature."""
    at = content.rindex(signature) + offset
    return content[:at] + value + content[at + len(value) :]


def understate_size(files: Files, image: str) -> bytes:
    """The last member, which a record names, declares a hundred bytes but has a megabyte."""
    others = {name: data for name, data in files.items() if name != image}
    content = make_zip({**others, image: bytes(2**20)}, compress=True)
    return patch(content, b"PK\x01\x02", 24, struct.pack("<I", 100))


def overlap(files: Files) -> bytes:
    """Two entries share one member's bytes: a zip bomb without nesting (Fifield 2019)."""
    content = make_zip(
        {**files, "Images/Hostile/a.png": b"a" * 99, "Images/Hostile/b.png": b"a" * 99}
    )
    second = content.rindex(b"PK\x01\x02")
    first = content.rindex(b"PK\x01\x02", 0, second)
    return patch(content, b"PK\x01\x02", 42, content[first + 42 : first + 46])


def corrupt_member(files: Files, name: str) -> bytes:
    """One byte of a stored member is changed, so that its checksum does not match."""
    content = bytearray(make_zip(files))
    info = zipfile.ZipFile(io.BytesIO(content)).getinfo(name)
    content[info.header_offset + 30 + len(name.encode()) + 8] ^= 0xFF
    return bytes(content)


def unsafe(content: bytes, item: str = "") -> Case:
    return Case(content, "refused", CorpusFault.UNSAFE_MEMBER, item)


def bomb(content: bytes) -> Case:
    return Case(content, "refused", CorpusFault.LIMIT, "max_ratio")


def bad_layout(content: bytes) -> Case:
    return Case(content, "refused", CorpusFault.LAYOUT)


def corrupt(content: bytes) -> Case:
    return Case(content, "refused", CorpusFault.DAMAGED)


def archives(files: Files, image: str, question_file: str) -> dict[str, Case]:
    """All cases made from a good corpus.

    `image`: one that a record names; `question_file`: one whose records are quarantined with it.
    """
    good = dict(files)
    good_zip = make_zip(good)

    def add(name: str, data: bytes = b"x") -> dict[str, bytes]:
        return {**good, name: data}

    return {
        "zip slip": unsafe(make_zip(add("../../evil.png")), "evil.png"),
        "zip slip inside": unsafe(make_zip(add("Images/../../evil.png")), "evil.png"),
        "tar slip": unsafe(make_tar(add("../../evil.png")), "evil.png"),
        "absolute path in a zip": unsafe(make_zip(add("/tmp/evil.png")), "evil.png"),
        "absolute path in a tar": unsafe(make_tar(add("/tmp/evil.png")), "evil.png"),
        "drive letter": unsafe(make_zip(add("C:/evil.png")), "evil.png"),
        "backslashes": unsafe(make_tar(add("Images\\..\\..\\evil.png")), "evil.png"),
        "symlink in a tar": unsafe(make_tar(good, special_file(tarfile.SYMTYPE)), "bad.png"),
        "symlink upwards in a tar": unsafe(
            make_tar(good, special_file(tarfile.SYMTYPE, "../../..")), "bad.png"
        ),
        "hard link in a tar": unsafe(make_tar(good, special_file(tarfile.LNKTYPE)), "bad.png"),
        "symlink in a zip": unsafe(
            make_zip(add(_IMAGE, b"/etc/passwd"), change=set_kind(stat.S_IFLNK)), "bad.png"
        ),
        "character device": unsafe(make_tar(good, special_file(tarfile.CHRTYPE)), "bad.png"),
        "block device": unsafe(make_tar(good, special_file(tarfile.BLKTYPE)), "bad.png"),
        "pipe in a tar": unsafe(make_tar(good, special_file(tarfile.FIFOTYPE)), "bad.png"),
        "device in a zip": unsafe(make_zip(add(_IMAGE), change=set_kind(stat.S_IFCHR)), "bad.png"),
        "zip bomb": bomb(make_zip(add(_IMAGE, _BOMB), compress=True)),
        "gzip bomb": bomb(gzip.compress(make_tar(add(_IMAGE, _BOMB)))),
        "zstd bomb": bomb(zstandard.compress(make_tar(add(_IMAGE, _BOMB)))),
        "understated size": unsafe(understate_size(good, image), image),
        "overlapping members": unsafe(overlap(good), "Images/Hostile/"),
        "encrypted": unsafe(patch(good_zip, b"PK\x01\x02", 8, b"\x01\x00")),
        "duplicate name in a zip": unsafe(
            make_zip(add(f"Images/./{image.removeprefix('Images/')}")), "Good/named.png"
        ),
        "duplicate name in a tar": unsafe(make_tar(add(f"./{image}")), image),
        "names that differ in case": unsafe(
            make_zip(add(image.upper().replace("IMAGES/", "Images/")))
        ),
        "names that differ in composition": unsafe(
            make_zip({**good, "Images/\u00e9.png": b"x", "Images/e\u0301.png": b"y"}), "Images/"
        ),
        "very long name": unsafe(make_zip(add(f"Images/{'x' * 300}.png")), "Images/x"),
        "very long path": unsafe(make_tar(add("Images/" + "x/" * 3000 + "a.png")), "Images/x"),
        "header of 30 MB": corrupt(
            make_tar(add("Images/" + "x" * 30_000_000, b""), format=tarfile.PAX_FORMAT)
        ),
        "name that is not UTF-8": unsafe(
            make_tar(add("Images/caf\udce9.png"), errors="surrogateescape"), "caf"
        ),
        "NUL in a name": unsafe(
            patch(make_zip(add("Images/evil@.png")), b"evil@", 4, b"\x00"), "evil"
        ),
        "file and folder at once": unsafe(
            make_tar({**good, "Images/x": b"", "Images/x/y.png": b""}), "Images/x"
        ),
        "no corpus": bad_layout(make_zip({"readme.txt": b"hello"})),
        "two corpora": bad_layout(
            make_zip({f"{top}/{name}": good[name] for top, name in itertools.product("ab", good)})
        ),
        "empty file": corrupt(b""),
        "empty zip": bad_layout(make_zip({})),
        "a text": corrupt(b"version https://git-lfs.github.com/spec/v1\n"),
        "gzip of a text": corrupt(gzip.compress(b"hello")),
        "self-extracting zip": corrupt(b"#!/bin/sh\nexit 1\n" + good_zip),
        "image with a wrong checksum": Case(
            corrupt_member(good, image), "quarantined", Reason.IMAGE_DAMAGED, image
        ),
        "questions with a wrong checksum": Case(
            corrupt_member(good, question_file), "quarantined", Reason.FILE_DAMAGED, question_file
        ),
        "nested archive that no record names": harmless(
            make_zip(add("Images/nested.zip", good_zip))
        ),
        "zip after a zip": bad_layout(good_zip + make_zip({"readme.txt": b"x"})),
        **truncated_archives(good),
    }


def truncated_archives(good: Files) -> dict[str, Case]:
    # the last member is longer than a tar's padding, which may be missing
    files = {**good, "Images/last.bin": bytes(range(256)) * 400}
    tar = make_tar(files)
    contents = {
        "zip": make_zip(files),
        "tar": tar,
        "tar.gz": gzip.compress(tar),
        "tar.zst": zstandard.compress(tar),
    }
    return {
        f"{kind} truncated at {tenths}/10": corrupt(truncate(contents[kind], tenths))
        for tenths, kind in itertools.product(range(1, 10), contents)
    }
