"""The raw archive: what is listed and read, and what is refused before anything is written."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from stages.corpus import archive
from stages.corpus.archive import open_archive
from stages.errors import InputError

GOOD = {
    "QA_information/Open-access/B.json": b"[]",
    "QA_information/Open-access/A.json": b"[1]",
    "Images/A/29.1.Blur fundus/6045cb817f5b..JPG": b"picture" * 1000,
    "Images/B [x]/größe.png": b"other",
}


def write_zip(path: Path, files: dict[str, bytes], top: str = "OmniMedVQA/") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(top + name, data)
    return path


def write_tar(path: Path, files: dict[str, bytes], top: str = "OmniMedVQA/", extra: tarfile.TarInfo | None = None) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        if extra:
            file.addfile(extra)
    return path


def write(path: Path, files: dict[str, bytes], top: str = "OmniMedVQA/") -> Path:
    return write_zip(path, files, top) if path.suffix == ".zip" else write_tar(path, files, top)


@pytest.mark.parametrize("name", ["c.zip", "c.tar", "c.tar.gz"])
@pytest.mark.parametrize("top", ["", "OmniMedVQA/", "./OmniMedVQA/"])
def test_files_are_listed_sorted_and_read_relative_to_the_corpus_folder(tmp_path: Path, name: str, top: str) -> None:
    with open_archive(write(tmp_path / name, GOOD | {"README.txt": b""}, top)) as opened:
        assert opened.names == sorted([*GOOD, "README.txt"])
        assert dict(opened.read(GOOD)) == GOOD
        assert all(opened.size(name) == len(data) for name, data in GOOD.items())
        assert "Images/none.png" not in opened


def test_a_members_kind_is_told_by_its_first_bytes_not_by_its_name(tmp_path: Path) -> None:
    with open_archive(write_tar(tmp_path / "c.tar.gz", GOOD).rename(tmp_path / "corpus.zip")) as opened:
        assert len(opened.names) == len(GOOD)


def test_what_stands_beside_the_corpus_is_left_alone(tmp_path: Path) -> None:
    shadow = {f"__MACOSX/OmniMedVQA/{name}": b"shadow" for name in GOOD}
    with open_archive(write_zip(tmp_path / "c.zip", {f"OmniMedVQA/{name}": data for name, data in GOOD.items()} | shadow, "")) as opened:
        assert opened.names == sorted(GOOD)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/etc/passwd", "an absolute path"),
        ("C:/Windows/x", "an absolute path"),
        ("OmniMedVQA/../../x", "leads out"),
        ("..", "leads out"),
        ("OmniMedVQA\\x", "a backslash"),
        ("OmniMedVQA/Images/./B [x]/größe.png", "twice"),
    ],
)
def test_unsafe_names_refuse_the_archive(tmp_path: Path, suffix: str, name: str, why: str) -> None:
    files = {f"OmniMedVQA/{good}": data for good, data in GOOD.items()} | {name: b"x"}
    with pytest.raises(InputError, match=why) as caught, open_archive(write(tmp_path / f"c{suffix}", files, "")):
        pass
    assert ascii(name) in str(caught.value)
    assert f"c{suffix}" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
    ],
)
def test_links_and_devices_in_a_tar_refuse_it(tmp_path: Path, kind: bytes, why: str) -> None:
    info = tarfile.TarInfo("OmniMedVQA/Images/evil.png")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(InputError, match=f"evil.png.*{why}"), open_archive(write_tar(tmp_path / "c.tar", GOOD, extra=info)):
        pass


@pytest.mark.parametrize(("kind", "why"), [(stat.S_IFLNK, "a link"), (stat.S_IFCHR, "a device")])
def test_links_and_devices_in_a_zip_refuse_it(tmp_path: Path, kind: int, why: str) -> None:
    path = write_zip(tmp_path / "c.zip", GOOD)
    with zipfile.ZipFile(path, "a") as file:
        info = zipfile.ZipInfo("OmniMedVQA/Images/evil.png")
        info.external_attr = (kind | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match=f"evil.png.*{why}"), open_archive(path):
        pass


def test_an_encrypted_member_refuses_the_archive(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "c.zip", GOOD)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"B\.json.*encrypted"), open_archive(path):
        pass


def test_a_name_that_is_a_file_and_a_folder_refuses_the_archive(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="Images/B/x.*file and a folder"),
        open_archive(write_zip(tmp_path / "c.zip", GOOD | {"Images/B/x": b"", "Images/B/x/y/z.png": b""})),
    ):
        pass


@pytest.mark.parametrize("name", ["c.zip", "c.tar", "c.tar.gz"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5])
def test_a_truncated_archive_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = write(tmp_path / name, GOOD)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match=r"not a whole zip, tar or tar\.gz.*fetch it again"), open_archive(path):
        pass


def test_a_tar_gz_that_lacks_its_last_bytes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.tar.gz", GOOD)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="cut short"), open_archive(path):
        pass


@pytest.mark.parametrize("content", [b"", b"PK", b"\x1f\x8b", b"hello", bytes(9), b"<html>not found</html>"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "corpus.zip"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"corpus\.zip is not a whole zip"), open_archive(path):
        pass


def test_a_tar_with_a_damaged_header_is_refused_rather_than_read_up_to_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "c.tar", GOOD)
    content = bytearray(path.read_bytes())
    at = content.index(b"OmniMedVQA/Images/A/")
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no end mark after 2 members"), open_archive(path):
        pass


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in GOOD.items():
            file.writestr(name, data)
    path.write_bytes(path.read_bytes().replace(b"other", b"ether"))
    with open_archive(path) as opened, pytest.raises(InputError, match=r"member 'Images/B \[x\]/größe\.png' cannot be read.*CRC"):
        list(opened.read(opened.names))


def test_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST_MEMBER", 5000)
    with open_archive(write_zip(tmp_path / "c.zip", GOOD)) as opened, pytest.raises(InputError, match=r"6045cb817f5b\.\.JPG"):
        list(opened.read(opened.names))


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"notes/readme.md": b""}, "found at the top: notes"),
        ({"QA_information/Open-access/A.json": b"[]"}, "found at the top: QA_information"),
        ({f"{top}/{name}": b"" for top in ("one", "two") for name in GOOD}, "found 2 corpora, in 'one/', 'two/'"),
    ],
)
def test_an_archive_must_hold_one_corpus(tmp_path: Path, files: dict[str, bytes], found: str) -> None:
    with pytest.raises(InputError, match=found), open_archive(write_zip(tmp_path / "c.zip", files, "")):
        pass
