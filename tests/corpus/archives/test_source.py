"""Corpora of every kind and layout: file names, in-place reading, unpacked copies."""

from __future__ import annotations

import os
import shutil
import socket
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.core.errors import DiskFullError, InputError
from stages.corpus.archives.archive import DamagedMemberError
from stages.corpus.archives.source import open_corpus
from tests.corpus.raw_archives import (
    GOOD,
    KINDS,
    LIMITS,
    opened_at,
    write,
    write_folder,
    write_tar,
    write_zip,
)

TABLE = {
    "questions.csv": b"image,question",
    "ct/a.png": b"a",
    "deep/er/b.png": b"b",
    "notes.txt": b"",
}


@pytest.mark.parametrize("name", [*KINDS, "c"])
def test_question_files_are_json_of_open_access_and_tables_at_the_root(
    tmp_path: Path, name: str
) -> None:
    others = {
        "QA_information/Restricted-access/C.json": b"",
        "QA_information/Open-access/deep/D.json": b"",
        "more.CSV": b"",
        "Images/labels.csv": b"",
    }
    with opened_at(write(tmp_path / name, GOOD | others)) as corpus:
        assert corpus.question_files == [
            "QA_information/Open-access/A.json",
            "QA_information/Open-access/B.json",
            "more.CSV",
        ]


@pytest.mark.parametrize("name", [*KINDS, "c"])
@pytest.mark.parametrize("top", ["", "my data/", "a/b/"])
def test_images_beside_a_table_are_named_as_if_they_lay_under_images(
    tmp_path: Path, name: str, top: str
) -> None:
    with opened_at(write(tmp_path / name, TABLE | {"Images/c.png": b"c"}, top)) as corpus:
        assert corpus.names == [
            "Images/c.png",
            "Images/ct/a.png",
            "Images/deep/er/b.png",
            "Images/notes.txt",
            "questions.csv",
        ]
        assert corpus.question_files == ["questions.csv"]
        assert corpus.fetch("Images/deep/er/b.png") == b"b"


def test_two_files_that_would_get_the_same_name_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"'Images/ct/a\.png' names two files"),
        opened_at(write_folder(tmp_path / "c", TABLE | {"Images/ct/a.png": b""})),
    ):
        pass


@pytest.mark.parametrize("files", [{}, {"a.png": b""}, {"one/q.csv": b"", "two/a.png": b""}])
def test_a_folder_without_questions_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "c").mkdir()
    with (
        pytest.raises(InputError, match=r"QA_information/Open-access/ and Images/ .*\*\.csv"),
        opened_at(write_folder(tmp_path / "c", files)),
    ):
        pass


def test_archives_beside_each_other_are_one_corpus(tmp_path: Path) -> None:
    names = list(GOOD)
    (tmp_path / "c").mkdir()
    write_zip(tmp_path / "c" / "questions.zip", {names[0]: GOOD[names[0]]}, "OmniMedVQA/")
    write_tar(tmp_path / "c" / "more.tar", {names[1]: GOOD[names[1]]}, "")
    write_tar(tmp_path / "c" / "part1.tar.gz", {names[2]: GOOD[names[2]]}, "part 1/")
    write_tar(tmp_path / "c" / "part2.tar.zst", {names[3]: GOOD[names[3]]}, "./")
    (tmp_path / "c" / "SHA256SUMS").write_text("")
    with opened_at(tmp_path / "c") as corpus:
        assert corpus.names == sorted([*GOOD, "SHA256SUMS"])
        assert dict(corpus.read(GOOD)) == GOOD


def test_a_table_beside_archives_of_its_images_is_one_corpus(tmp_path: Path) -> None:
    write_folder(tmp_path / "c", {"questions.csv": b""})
    write_zip(tmp_path / "c" / "images.zip", {"ct/a.png": b"a"}, "")
    with opened_at(tmp_path / "c") as corpus:
        assert corpus.names == ["Images/ct/a.png", "questions.csv"]


@pytest.mark.parametrize("second", ["Images/B [x]/größe.png", "Images/B [x]/größe.PNG"])
def test_a_name_in_two_archives_is_refused_and_both_are_named(tmp_path: Path, second: str) -> None:
    (tmp_path / "c").mkdir()
    write_zip(tmp_path / "c" / "one.zip", GOOD)
    write_zip(tmp_path / "c" / "two.zip", {second: b""}, "")
    with (
        pytest.raises(InputError, match=r"two\.zip: member 'Images/B \[x\]/gr.*in one\.zip"),
        opened_at(tmp_path / "c"),
    ):
        pass


def test_a_damaged_archive_among_several_is_named(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    write_zip(tmp_path / "c" / "one.zip", GOOD)
    (tmp_path / "c" / "two.zip").write_bytes(b"PK")
    with (
        pytest.raises(InputError, match=r"two\.zip is not a complete zip"),
        opened_at(tmp_path / "c"),
    ):
        pass


def test_archives_in_a_folder_with_a_layout_are_not_opened(tmp_path: Path) -> None:
    write_folder(tmp_path / "c", GOOD)
    write_zip(tmp_path / "c" / "download.zip", GOOD)
    with opened_at(tmp_path / "c") as corpus:
        assert "download.zip" in corpus
        assert len(corpus.names) == len(GOOD) + 1


@pytest.mark.parametrize("target", ["/etc", "/etc/passwd", "Images/B [x]/größe.png", "nowhere"])
def test_a_link_in_a_folder_is_refused_and_not_followed(tmp_path: Path, target: str) -> None:
    path = write_folder(tmp_path / "c", GOOD)
    (path / "Images" / "link").symlink_to(target)
    with (
        pytest.raises(InputError, match=r"member 'Images/link' is refused: a link"),
        opened_at(path),
    ):
        pass


def test_a_pipe_and_a_socket_in_a_folder_are_refused_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_folder(tmp_path / "c", GOOD)
    os.mkfifo(path / "Images" / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png' is refused: a pipe"), opened_at(path):
        pass
    (path / "Images" / "pipe.png").unlink()
    monkeypatch.chdir(path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("Images/s.png")
        with pytest.raises(InputError, match=r"s\.png' is refused: a socket"), opened_at(path):
            pass


def test_a_file_that_was_replaced_after_listing_is_not_read(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "c", GOOD)
    name = "Images/B [x]/größe.png"
    with opened_at(path) as corpus:
        (path / name).unlink()
        with pytest.raises(DamagedMemberError, match="No such file"):
            corpus.fetch(name)
        (tmp_path / "secret").write_bytes(b"12345")
        (path / name).symlink_to(tmp_path / "secret")
        with pytest.raises(DamagedMemberError, match="symbolic links"):
            corpus.fetch(name)
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(DamagedMemberError, match="no longer a regular file"):
            corpus.fetch(name)
        (path / name).unlink()
        (path / name).write_bytes(b"others")
        with pytest.raises(DamagedMemberError, match="its size has changed from 5 bytes"):
            corpus.fetch(name)


def test_missing_permissions_are_reported_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_folder(tmp_path / "c", GOOD)

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    with opened_at(path) as corpus:
        monkeypatch.setattr(os, "open", refuse)  # chmod would not stop root
        with pytest.raises(InputError, match=r"permission .*größe\.png: run `chmod u\+r"):
            corpus.fetch("Images/B [x]/größe.png")
    monkeypatch.undo()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"permission .*: run `chmod -R"), opened_at(path):
        pass


def test_a_name_in_a_folder_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "c", GOOD)
    (path / "Images" / os.fsdecode(b"\xff\xfe.png")).write_bytes(b"")
    with pytest.raises(InputError, match="a name that is not UTF-8"), opened_at(path):
        pass


def test_a_missing_path_raises_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_corpus(tmp_path / "none", LIMITS, tmp_path):
        pass


@pytest.mark.parametrize("name", ["c.zip", "c.tar", "c"])
def test_zips_tars_and_folders_are_not_copied(tmp_path: Path, name: str) -> None:
    with opened_at(write(tmp_path / name, GOOD)) as corpus:
        list(corpus.read(corpus.names))
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("name", ["c.tar.gz", "c.tar.zst"])
def test_a_compressed_tar_is_unpacked_once_and_only_the_newest_is_kept(
    tmp_path: Path, name: str
) -> None:
    path = write_tar(tmp_path / name, GOOD)
    scratch = tmp_path / "scratch"
    with opened_at(path):
        (first,) = scratch.glob("*.tar")
    unpacked_at = first.stat().st_mtime_ns
    with opened_at(path) as corpus:
        assert dict(corpus.read(GOOD)) == GOOD
        write_tar(tmp_path / f"new.{name}", GOOD | {"Images/new.png": b"new"}).replace(path)
        assert first.stat().st_mtime_ns == unpacked_at, "the copy is reused"
        with opened_at(path) as newer:
            assert newer.fetch("Images/new.png") == b"new"
        assert dict(corpus.read(GOOD)) == GOOD, "an open copy stays readable"
    (second,) = scratch.glob("*.tar")
    assert second != first
    second.unlink()
    with opened_at(path) as corpus:
        assert corpus.fetch("Images/new.png") == b"new", "a deleted copy is created again"


def test_a_partial_copy_of_a_killed_run_is_deleted(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "c.tar.gz", GOOD)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / ".abc.tar.incomplete").write_bytes(b"half")
    with opened_at(path) as corpus:
        assert dict(corpus.read(GOOD)) == GOOD
    assert not (scratch / ".abc.tar.incomplete").exists()


def test_too_little_disk_space_is_reported_before_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "c.tar.gz", GOOD)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with (
        pytest.raises(DiskFullError, match=r"c\.tar\.gz .*: 0 MiB are free .*as a zip"),
        opened_at(path),
    ):
        pass
    monkeypatch.undo()
    assert not list((tmp_path / "scratch").glob("*tar*"))


@pytest.mark.parametrize("name", [*KINDS, "c"])
def test_concurrent_reads_from_many_threads(tmp_path: Path, name: str) -> None:
    files = GOOD | {
        f"Images/{number}.png": bytes([number]) * (1000 + 3000 * number) for number in range(60)
    }
    with opened_at(write(tmp_path / name, files)) as corpus, ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert dict(zip(files, pool.map(corpus.fetch, files), strict=True)) == files


@pytest.mark.parametrize("name", [*KINDS, "c"])
def test_contents_are_not_cached_in_memory(tmp_path: Path, name: str) -> None:
    files = GOOD | {f"Images/{number}.png": os.urandom(2**20) for number in range(24)}
    with opened_at(write(tmp_path / name, files)) as corpus:
        tracemalloc.start()
        for each, content in corpus.read(corpus.names):
            assert len(content) == corpus.size(each)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 6 * 2**20


def test_files_are_read_in_the_order_of_storage(tmp_path: Path) -> None:
    names = ["Images/z.png", "Images/a.png", "QA_information/Open-access/A.json"]
    with opened_at(write_tar(tmp_path / "c.tar", dict.fromkeys(names, b""))) as corpus:
        assert [name for name, _ in corpus.read(sorted(names))] == names
        assert corpus.names == sorted(names)


def test_the_fingerprint_changes_with_the_content_and_a_tar_has_none(tmp_path: Path) -> None:
    name = "Images/B [x]/größe.png"
    for kind in ("c.zip", "c"):
        fingerprints = []
        for content in (b"other", b"ether", b"other"):
            shutil.rmtree(tmp_path / "c", ignore_errors=True)
            with opened_at(write(tmp_path / kind, GOOD | {name: content}, "")) as corpus:
                fingerprints.append(corpus.fingerprint(name))
        assert fingerprints[0] != fingerprints[1]
        assert kind == "c" or fingerprints[0] == fingerprints[2]
    with opened_at(write(tmp_path / "c.tar", GOOD)) as corpus:
        assert corpus.fingerprint(name) == ""
