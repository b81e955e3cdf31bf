"""Needs of folders on one disk are summed up, and compared with what is free there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stages.core import disk_space
from stages.core.disk_space import Shortage, disk_of, find_shortages, free_bytes, tree_size


def test_folders_that_are_not_there_yet_count_for_the_disk_of_their_parent(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") > 0
    assert disk_of(tmp_path / "not" / "yet") == tmp_path.stat().st_dev


def test_needs_on_one_disk_are_added_and_the_reserve_comes_once(
    tmp_path: Path,
) -> None:
    free = free_bytes(tmp_path)
    assert find_shortages({tmp_path / "a": free // 4, tmp_path / "b": free // 4}) == []
    needed = {tmp_path / "a": free, tmp_path / "b": free}
    (found,) = find_shortages(needed, reserve=10)
    assert (found.folders, found.needed) == (tuple(needed), 2 * free + 10)


def test_disks_are_compared_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    monkeypatch.setattr(disk_space, "disk_of", lambda path: 1 if path == small else 2)
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: 10 if path == small else 100)
    assert find_shortages({small: 20, large: 90}) == [Shortage((small,), 20, 10)]


def test_hard_links_count_once_and_symlinks_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "one").write_bytes(b"x" * 1000)
    os.link(tmp_path / "folder" / "one", tmp_path / "folder" / "deep" / "same")
    (tmp_path / "folder" / "loop").symlink_to(tmp_path / "folder")
    size = tree_size(tmp_path / "folder")
    assert size is not None
    assert size - (tmp_path / "folder" / "loop").lstat().st_size == 1000


def test_a_file_has_a_size_and_what_is_missing_has_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 7)
    assert tree_size(tmp_path / "file") == 7
    assert tree_size(tmp_path / "missing") is None
