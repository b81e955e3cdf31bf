"""Archives: members are listed and read in place; unsafe or damaged ones are refused."""

from __future__ import annotations

import contextlib
import itertools
import stat
import tarfile
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core.errors import InputError
from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError
from tests.corpus.raw_archives import GOOD, KINDS, opened_at, write, write_tar, write_zip


@pytest.mark.parametrize("name", [*KINDS, "c"])
@pytest.mark.parametrize("top", ["", "OmniMedVQA/", "./OmniMedVQA/"])
def test_files_are_listed_sorted_and_read_relative_to_the_corpus_folder(
    tmp_path: Path, name: str, top: str
) -> None:
    with opened_at(write(tmp_path / name, GOOD | {"README.txt": b""}, top)) as corpus:
        assert corpus.names == sorted([*GOOD, "README.txt"])
        assert dict(corpus.read(GOOD)) == GOOD
        assert all(corpus.size(name) == len(data) for name, data in GOOD.items())
        assert "Images/none.png" not in corpus


def test_the_kind_of_an_archive_is_detected_by_content_not_by_suffix(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "c.tar.gz", GOOD).rename(tmp_path / "corpus.zip")
    with opened_at(path) as corpus:
        assert len(corpus.names) == len(GOOD)


def test_shadow_folders_of_macos_are_ignored(tmp_path: Path) -> None:
    files = {f"OmniMedVQA/{name}": data for name, data in GOOD.items()}
    shadows = {f"__MACOSX/OmniMedVQA/{name}": b"shadow" for name in GOOD}
    with opened_at(write_zip(tmp_path / "c.zip", files | shadows, "")) as corpus:
        assert corpus.names == sorted(GOOD)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.zst"])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/etc/passwd", "an absolute path"),
        ("C:/Windows/x", "an absolute path"),
        ("OmniMedVQA/../../x", "leads out"),
        ("..", "leads out"),
        ("OmniMedVQA\\x", "a backslash"),
        ("OmniMedVQA/Images/./B [x]/größe.png", "duplicate"),
    ],
)
def test_unsafe_names_refuse_the_archive(tmp_path: Path, suffix: str, name: str, why: str) -> None:
    files = {f"OmniMedVQA/{good}": data for good, data in GOOD.items()} | {name: b"x"}
    with (
        pytest.raises(InputError, match=why) as caught,
        opened_at(write(tmp_path / f"c{suffix}", files, "")),
    ):
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
    info.type = kind
    info.linkname = "/etc/passwd"
    with (
        pytest.raises(InputError, match=f"evil.png.*{why}"),
        opened_at(write_tar(tmp_path / "c.tar", GOOD, extra=info)),
    ):
        pass


@pytest.mark.parametrize(("kind", "why"), [(stat.S_IFLNK, "a link"), (stat.S_IFCHR, "a device")])
def test_links_and_devices_in_a_zip_refuse_it(tmp_path: Path, kind: int, why: str) -> None:
    path = write_zip(tmp_path / "c.zip", GOOD)
    with zipfile.ZipFile(path, "a") as file:
        info = zipfile.ZipInfo("OmniMedVQA/Images/evil.png")
        info.external_attr = (kind | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match=f"evil.png.*{why}"), opened_at(path):
        pass


def test_an_encrypted_member_refuses_the_archive(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "c.zip", GOOD)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"B\.json.*encrypted"), opened_at(path):
        pass


def test_a_name_that_is_a_file_and_a_folder_refuses_the_archive(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="Images/B/x.*file and a folder"),
        opened_at(
            write_zip(tmp_path / "c.zip", GOOD | {"Images/B/x": b"", "Images/B/x/y/z.png": b""})
        ),
    ):
        pass


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5])
def test_a_truncated_archive_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = write(tmp_path / name, GOOD)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with (
        pytest.raises(InputError, match=rf"{name} is not a complete zip, .*download it again"),
        opened_at(path),
    ):
        pass


def test_a_tar_gz_without_its_last_bytes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.tar.gz", GOOD)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match="truncated"), opened_at(path):
        pass


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\x1f\x8b", b"hello", bytes(9), b"<html>not found</html>"]
)
def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "corpus.zip"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"corpus\.zip is not a complete zip"), opened_at(path):
        pass


def test_a_tar_with_a_damaged_header_is_refused_rather_than_read_up_to_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "c.tar", GOOD)
    content = bytearray(path.read_bytes())
    at = content.index(b"OmniMedVQA/Images/A/")
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no end mark after 2 members"), opened_at(path):
        pass


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """An uncompressed zip of GOOD, so that a test can change the bytes of members."""
    path = tmp_path / "c.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in GOOD.items():
            file.writestr(name, data)
    return path


def test_a_damaged_member_is_named_and_the_others_are_read(stored: Path) -> None:
    stored.write_bytes(stored.read_bytes().replace(b"other", b"ether"))
    with opened_at(stored) as corpus:
        with pytest.raises(DamagedMemberError, match="CRC") as caught:
            corpus.fetch("Images/B [x]/größe.png")
        assert caught.value.name == "Images/B [x]/größe.png"
        others = [name for name in GOOD if "größe" not in name]
        assert dict(corpus.read(others)) == {name: GOOD[name] for name in others}


@pytest.mark.parametrize("at", [0, 3, 30, 32])
def test_a_damaged_local_header_is_detected(stored: Path, at: int) -> None:
    content = bytearray(stored.read_bytes())
    content[content.index(b"PK\x03\x04", 1) + at] ^= 1  # the second member's mark or name
    stored.write_bytes(content)
    with (
        opened_at(stored) as corpus,
        pytest.raises(DamagedMemberError, match=r"A\.json.*header"),
    ):
        list(corpus.read(corpus.names))


def test_damaged_compressed_bytes_are_detected(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "c.zip", GOOD)
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("OmniMedVQA/Images/A/29.1.Blur fundus/6045cb817f5b..JPG")
    content = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(info.filename.encode())
    content[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with opened_at(path) as corpus, pytest.raises(DamagedMemberError, match="6045cb817f5b"):
        list(corpus.read(corpus.names))


def test_a_member_larger_than_the_limit_refuses_the_archive(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "c.zip", GOOD | {"Images/big.png": bytes(2**20 + 1)})
    with (
        pytest.raises(InputError, match=r"big\.png' has 1 MiB, .*corpus\.limits\.max_member_mb"),
        opened_at(path, max_member_mb=1),
    ):
        pass


def test_a_decompression_bomb_refuses_the_archive(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "c.zip", GOOD | {"Images/bomb.png": bytes(40 * 2**20)})
    with (
        pytest.raises(InputError, match=r"Images/bomb\.png' .* more than 200 times.*max_ratio"),
        opened_at(path),
    ):
        pass


def test_an_all_black_image_is_not_a_bomb(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "c.zip", GOOD | {"Images/black.bmp": bytes(3 * 2**20)})
    with opened_at(path) as corpus:
        assert len(corpus.fetch("Images/black.bmp")) == 3 * 2**20


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED])
def test_a_member_is_not_decompressed_beyond_its_declared_size(tmp_path: Path, method: int) -> None:
    path = tmp_path / "c.zip"
    bomb = bytes(30 * 2**20)
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in (GOOD | {"Images/lie.png": bomb}).items():
            file.writestr(name, data)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"Images/lie.png") - 46 + 24  # unpacked size in the central directory
    content[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    with opened_at(path) as corpus:
        tracemalloc.start()
        with pytest.raises(RefusedDataError, match=r"lie\.png' is refused: .*1000 bytes") as caught:
            corpus.fetch("Images/lie.png")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert caught.value.fault == CorpusFault.UNSAFE_MEMBER
    assert not isinstance(caught.value, DamagedMemberError), "the whole archive is refused"
    assert method == zipfile.ZIP_STORED or peak < 2**20


def test_a_member_shorter_than_its_declared_size_is_damaged(stored: Path) -> None:
    content = bytearray(stored.read_bytes())
    at = content.rindex("Images/B [x]/größe.png".encode()) - 46 + 24
    content[at : at + 4] = (6).to_bytes(4, "little")
    stored.write_bytes(content)
    with (
        opened_at(stored) as corpus,
        pytest.raises(DamagedMemberError, match="5 bytes of the declared 6"),
    ):
        corpus.fetch("Images/B [x]/größe.png")


def test_overlapping_members_refuse_the_archive(stored: Path) -> None:
    with zipfile.ZipFile(stored) as file:
        infos = file.infolist()
    content = bytearray(stored.read_bytes())
    # the second member's position becomes that of the first
    at = content.rindex(infos[1].filename.encode()) - 46 + 42
    content[at : at + 4] = infos[0].header_offset.to_bytes(4, "little")
    stored.write_bytes(content)
    with pytest.raises(InputError, match="is refused: .*overlaps"), opened_at(stored):
        pass


def test_a_member_that_overlaps_the_central_directory_refuses_the_archive(stored: Path) -> None:
    content = bytearray(stored.read_bytes())
    at = content.rindex("Images/B [x]/größe.png".encode()) - 46 + 20  # its compressed size
    content[at : at + 4] = (500).to_bytes(4, "little")
    stored.write_bytes(content)
    with pytest.raises(InputError, match="is refused: .*overlaps"), opened_at(stored):
        pass


@pytest.mark.parametrize("method", [9, 14, 93, 97])
def test_an_unsupported_compression_method_is_named(stored: Path, method: int) -> None:
    content = bytearray(stored.read_bytes())
    content[content.index(b"PK\x01\x02") + 10] = method
    stored.write_bytes(content)
    with (
        pytest.raises(InputError, match=rf"B\.json' is refused: .*method {method}"),
        opened_at(stored),
    ):
        pass


def test_undeclared_utf_8_names_are_read_and_others_refused(stored: Path) -> None:
    content = stored.read_bytes()
    content = content.replace(b"\x00\x08", b"\x00\x00")  # the flag of UTF-8
    stored.write_bytes(content)
    with opened_at(stored) as corpus:
        assert corpus.fetch("Images/B [x]/größe.png") == b"other"
    stored.write_bytes(content.replace("größe".encode(), b"gr\xf6\xf6\xdf\xdfe"))
    with pytest.raises(InputError, match="a name that is not UTF-8"), opened_at(stored):
        pass


def test_a_name_in_a_tar_that_is_not_utf_8_refuses_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "c.tar", GOOD | {"Images/xxxx.png": b""})
    content = path.read_bytes()
    info = tarfile.TarInfo("OmniMedVQA/Images/xxxx.png")
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[18:22] = b"\xff\xfe\xff\xfe"
    raw[148:156] = b" " * 8
    raw[148:156] = f"{sum(raw):06o}\0 ".encode()
    path.write_bytes(content.replace(info.tobuf(tarfile.DEFAULT_FORMAT), bytes(raw)))
    with pytest.raises(InputError, match="a name that is not UTF-8"), opened_at(path):
        pass


def test_a_sparse_file_in_a_tar_refuses_it(tmp_path: Path) -> None:
    info = tarfile.TarInfo("OmniMedVQA/Images/holes.png")
    info.type = tarfile.GNUTYPE_SPARSE
    with (
        pytest.raises(InputError, match="holes.png' is refused: a (sparse file|device)"),
        opened_at(write_tar(tmp_path / "c.tar", GOOD, extra=info)),
    ):
        pass


def test_a_tar_member_of_negative_size_is_refused_instead_of_an_endless_loop(
    tmp_path: Path,
) -> None:
    info = tarfile.TarInfo("OmniMedVQA/Images/loop.png")
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = b"\xff" * 10 + (-1024).to_bytes(2, "big", signed=True)  # its size, in base 256
    raw[148:156] = b" " * 8
    raw[148:156] = f"{sum(raw):06o}\0 ".encode()
    path = write_tar(tmp_path / "c.tar", GOOD, extra=info)
    path.write_bytes(path.read_bytes().replace(info.tobuf(tarfile.DEFAULT_FORMAT), bytes(raw)))
    with pytest.raises(InputError, match="not a complete zip.*loop.png"), opened_at(path):
        pass


@pytest.mark.parametrize("field", ["size", "GNU.sparse.size", "GNU.sparse.map"])
def test_a_tar_header_that_is_not_a_number_is_damage(tmp_path: Path, field: str) -> None:
    info = tarfile.TarInfo("OmniMedVQA/Images/odd.png")
    info.pax_headers = {
        field: "many",
        "GNU.sparse.size" if field.endswith("map") else "comment": "1",
    }
    with tarfile.open(tmp_path / "c.tar", "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(info)
    with pytest.raises(InputError, match=r"c\.tar"), opened_at(tmp_path / "c.tar"):
        pass


def test_a_zip_member_that_begins_before_the_file_is_refused(stored: Path) -> None:
    content = bytearray(stored.read_bytes())
    at = content.rindex(b"PK\x05\x06") + 16  # where the central directory is declared to begin
    declared = int.from_bytes(content[at : at + 4], "little")
    content[at : at + 4] = (declared + 50).to_bytes(4, "little")
    stored.write_bytes(content)
    with pytest.raises(InputError, match="is refused: .*before the beginning"), opened_at(stored):
        pass


def test_an_empty_zip_has_no_corpus(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"c\.zip: expected one folder .*found .*nothing"),
        opened_at(write_zip(tmp_path / "c.zip", {})),
    ):
        pass


def test_a_tar_header_of_a_gigabyte_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "c.tar"
    info = tarfile.TarInfo("././@LongLink")
    info.type = tarfile.GNUTYPE_LONGNAME
    info.size = 2**30
    with path.open("wb") as out:
        out.write(info.tobuf(tarfile.GNU_FORMAT))
        out.truncate(2**30 + 10_240)  # sparse: takes no space on the disk
    with pytest.raises(InputError, match="a header of 1073741824 bytes"), opened_at(path):
        pass


@pytest.mark.parametrize("name", ["c.tar.gz", "c.tar.zst"])
def test_unpacking_a_bomb_stops_at_the_limits(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / name, GOOD | {"Images/bomb.png": bytes(60 * 2**20)})
    with (
        pytest.raises(InputError, match=r"more than 200 bytes unpacked per byte.*max_ratio"),
        opened_at(path),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"more than 5 MiB unpacked.*max_total_mb"),
        opened_at(path, max_total_mb=5, max_ratio=100_000),
    ):
        pass
    assert not list((tmp_path / "scratch").glob("*tar*")), "no partial copy remains"


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"max_members": 3}, "more than 3 members.*max_members"),
        ({"max_total_mb": 2}, "more than 2 MiB unpacked, up to member.*max_total_mb"),
    ],
)
@pytest.mark.parametrize("name", ["c.zip", "c.tar", "c"])
def test_limits_on_the_whole_source_refuse_it(
    tmp_path: Path, name: str, limits: dict[str, int], why: str
) -> None:
    path = write(tmp_path / name, GOOD | {"Images/big.png": bytes(3 * 2**20)})
    with pytest.raises(InputError, match=why), opened_at(path, **limits):
        pass


@pytest.mark.parametrize("name", [*KINDS, "c"])
@pytest.mark.parametrize(
    ("other", "why"),
    [
        ("Images/B [x]/GRÖSSE.png", "cannot distinguish from"),  # ß in capitals
        ("Images/B [x]/größe.PNG", "cannot distinguish from"),
        (unicodedata.normalize("NFD", "Images/B [x]/größe.png"), "cannot distinguish from"),
        (f"Images/{'ö' * 120}.png", "a name longer than 240 bytes"),
        (f"Images/{'/'.join(['x' * 100] * 11)}.png", "a path longer than 1024 bytes"),
    ],
)
def test_names_that_are_not_portable_are_refused(
    tmp_path: Path, name: str, other: str, why: str
) -> None:
    with (
        pytest.raises(InputError, match=why) as caught,
        opened_at(write(tmp_path / name, GOOD | {other: b"x"})),
    ):
        pass
    escaped = (ascii(other)[1:-1], ascii("größe")[1:-1])
    assert any(name in str(caught.value) for name in escaped)


@pytest.mark.parametrize("name", [*KINDS, "c"])
def test_an_archive_inside_the_corpus_is_an_ordinary_file(tmp_path: Path, name: str) -> None:
    inner = write_zip(tmp_path / "inner.zip", GOOD).read_bytes()
    with opened_at(write(tmp_path / name, GOOD | {"Images/inner.zip": inner})) as corpus:
        assert corpus.fetch("Images/inner.zip") == inner
        assert len(corpus.names) == len(GOOD) + 1


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data(), st.sampled_from(["c.zip", "c.tar"]))
def test_changed_bytes_raise_nothing_but_input_errors(
    tmp_path: Path, data: st.DataObject, name: str
) -> None:
    content = bytearray(write(tmp_path / name, GOOD).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(content)
    with contextlib.suppress(InputError), opened_at(tmp_path / name) as corpus:
        for each in corpus.names:
            with contextlib.suppress(DamagedMemberError):
                assert len(corpus.fetch(each)) == corpus.size(each)


@pytest.mark.parametrize(
    ("files", "content"),
    [
        ({"notes/readme.md": b""}, "found at the top: notes"),
        ({"QA_information/Open-access/A.json": b"[]"}, "found at the top: QA_information"),
        (
            {f"{top}/{name}": b"" for top, name in itertools.product(("one", "two"), GOOD)},
            "found 2 corpora, in 'one/', 'two/'",
        ),
    ],
)
def test_an_archive_must_hold_exactly_one_corpus(
    tmp_path: Path, files: dict[str, bytes], content: str
) -> None:
    with (
        pytest.raises(InputError, match=content),
        opened_at(write_zip(tmp_path / "c.zip", files, "")),
    ):
        pass
