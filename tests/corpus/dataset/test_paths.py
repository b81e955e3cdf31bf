"""Paths of a corpus: safety, and the files that an image_path names."""

from __future__ import annotations

import pytest

from stages.corpus.dataset.paths import image_files, is_left_behind, unsafe_path

NAMES = ["Images/a.dcm", "Images/a/1", "Images/a/2", "Images/a/b/3", "Images/ab/1", "Images/c"]


@pytest.mark.parametrize(
    ("image_path", "files"),
    [
        ("Images/c", ["Images/c"]),
        ("Images/a", ["Images/a/1", "Images/a/2"]),
        ("Images/a.dcm", ["Images/a.dcm"]),
        ("Images/x", []),
    ],
)
def test_an_image_path_names_a_file_or_the_files_in_a_folder(
    image_path: str, files: list[str]
) -> None:
    assert image_files(NAMES, image_path) == files


def test_the_files_of_a_folder_are_in_the_order_of_the_numbers_in_their_names() -> None:
    ordered = ["a/1.png", "a/02.png", "a/2.png", "a/10.png", "a/b1 c3", "a/b1 c20", "a/b12"]
    assert image_files(sorted(ordered), "a") == ordered


UNSAFE = ["", "/a", "C:a", "a\\b", "..", "../a", "a/../b", "a/..", "a\0", "a\udc80"]


@pytest.mark.parametrize("name", UNSAFE)
def test_paths_that_leave_the_folder_or_are_not_file_names_are_unsafe(name: str) -> None:
    assert unsafe_path(name)


@pytest.mark.parametrize("name", ["a", "a/b", "..a", "a../b", "ä ö", "ab:c"])
def test_other_paths_are_safe(name: str) -> None:
    assert unsafe_path(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "._ward.csv",
        "Images/._a.png",
        "__MACOSX/Images/a.png",
        "Images/__MACOSX/a.png",
        ".DS_Store",
        "Images/CT/.DS_Store",
        "Thumbs.db",
        "Images/THUMBS.DB",
        "desktop.ini",
        "~$ward.xlsx",
        ".~lock.ward.csv#",
        "ward.csv~",
        ".ward.csv.swp",
        "#ward.csv#",
        ".#ward.csv",
        "Images/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
        "$RECYCLE.BIN/a.png",
        ".ipynb_checkpoints/ward-checkpoint.csv",
        "a.png.part",
        ".git/config",
    ],
)
def test_what_systems_and_programs_leave_behind_is_known(name: str) -> None:
    assert is_left_behind(name)


@pytest.mark.parametrize(
    "name",
    [
        "ward.csv",
        "Images/a.b.png",
        "Images/_a.png",
        "Images/.a.png",
        "Images/a~1.png",
        "Images/part/a.png",
    ],
)
def test_other_names_are_kept(name: str) -> None:
    assert not is_left_behind(name)
