"""Cache of resized images: lookups, its size limit, and damage that must not stop a stage."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from stages.corpus.images.image_cache import ImageCache
from stages.corpus.images.shard_writer import write_shard

FACTS = {"source_size": [3, 4], "pixel_hash": "ü"}


def shard(folder: Path, name: str, size: int = 1000) -> Path:
    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    write_shard(folder / name, [("a.png", content), ("b.png", content[::-1])])
    return folder / name


def add(cache: ImageCache, path: Path) -> None:
    """Add a shard with the images <stem>-a and <stem>-b."""
    images = [(f"{path.stem}-{each}", f"{each}.png", FACTS | {"letter": each}) for each in "ab"]
    cache.add_shard(path, images)


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache", 10**6)


def test_a_lookup_gives_facts_and_bytes(cache: ImageCache, tmp_path: Path) -> None:
    path = shard(tmp_path, "one.zip")
    add(cache, path)
    cache.add_refusals([("bad", {"why": "the file is empty", "reason": "image-empty"})])
    cache.close()
    with closing(ImageCache(tmp_path / "cache", 10**6)) as again:
        images = again.lookup(["one-a", "one-b", "bad", "none"])
        assert set(images) == {"one-a", "one-b", "bad"}
        assert images["one-b"].facts == FACTS | {"letter": "b"}
        assert (images["bad"].shard, images["bad"].facts["reason"]) == (None, "image-empty")
        content = again.read(images["one-a"])
        assert content is not None
        assert again.read(images["one-b"]) == content[::-1]
        assert len(again.lookup([f"one-a{number}" for number in range(5000)] + ["one-a"])) == 1


def test_threads_that_add_and_link_at_the_same_time_lose_nothing(
    cache: ImageCache, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [shard(tmp_path, f"{number}.zip", 100) for number in range(64)]
    threads = 8
    keys = {path: [f"{path.stem}-{number}" for number in range(200)] for path in paths}
    barrier = threading.Barrier(threads)

    def work(start: int) -> None:
        barrier.wait()
        for path in paths[start::threads]:
            cache.add_shard(path, [(key, "a.png", FACTS) for key in keys[path]])
            assert cache.link_shard(path.name, tmp_path / f"again-{path.name}")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert "cannot be used" not in capfd.readouterr().err
    assert len(cache.lookup(list(chain.from_iterable(keys.values())))) == 64 * 200


def test_a_linked_shard_shares_its_bytes_with_the_cache(cache: ImageCache, tmp_path: Path) -> None:
    path = shard(tmp_path, "one.zip")
    content = path.read_bytes()
    add(cache, path)
    path.unlink()
    assert cache.link_shard("one.zip", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == content
    assert (tmp_path / "again.zip").stat().st_ino == (
        tmp_path / "cache" / "shards" / "one.zip"
    ).stat().st_ino
    assert not cache.link_shard("none.zip", tmp_path / "none.zip")
    assert not (tmp_path / "none.zip").exists()


def test_a_shard_changed_under_its_other_name_is_not_linked(
    cache: ImageCache, tmp_path: Path
) -> None:
    path = shard(tmp_path, "one.zip")
    add(cache, path)
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    assert not cache.link_shard("one.zip", tmp_path / "again.zip")
    assert not (tmp_path / "again.zip").exists()
    assert cache.lookup(["one-a"]) == {}


def test_a_shard_that_was_only_touched_is_linked(cache: ImageCache, tmp_path: Path) -> None:
    path = shard(tmp_path, "one.zip")
    add(cache, path)
    path.touch()
    assert cache.link_shard("one.zip", tmp_path / "again.zip")


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_the_images_of_a_damaged_shard_are_removed_from_the_index(
    cache: ImageCache, tmp_path: Path, damage: str
) -> None:
    add(cache, shard(tmp_path, "one.zip"))
    inside = tmp_path / "cache" / "shards" / "one.zip"
    image = cache.lookup(["one-a"])["one-a"]
    inside.unlink()
    if damage == "truncated":
        inside.write_bytes(b"PK")
    assert cache.read(image) is None
    assert cache.lookup(["one-a", "one-b"]) == {}


def test_the_least_recently_used_shards_are_deleted_first(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for name in ("one.zip", "two.zip", "three.zip"):
        with closing(ImageCache(folder, 10**6)) as cache:
            add(cache, shard(tmp_path, name, 1000))
    with closing(ImageCache(folder, 10**6)) as cache:
        assert cache.link_shard("one.zip", tmp_path / "used.zip")
    with closing(ImageCache(folder, 5000)) as cache:
        add(cache, shard(tmp_path, "four.zip", 1000))
    assert sorted(path.name for path in (folder / "shards").iterdir()) == ["four.zip", "one.zip"]
    assert sum(path.stat().st_size for path in (folder / "shards").iterdir()) <= 5000
    with closing(ImageCache(folder, 10**6)) as cache:
        assert set(cache.lookup(["one-a", "two-a", "three-a", "four-a"])) == {"one-a", "four-a"}


def test_a_shard_larger_than_the_limit_is_not_added(tmp_path: Path) -> None:
    with closing(ImageCache(tmp_path / "cache", 100)) as cache:
        add(cache, shard(tmp_path, "one.zip"))
        assert cache.lookup(["one-a"]) == {}
    assert not list((tmp_path / "cache" / "shards").iterdir())


def test_the_cache_may_be_deleted_while_it_is_in_use(cache: ImageCache, tmp_path: Path) -> None:
    add(cache, shard(tmp_path, "one.zip"))
    shutil.rmtree(tmp_path / "cache")
    add(cache, shard(tmp_path, "two.zip"))
    assert not cache.link_shard("one.zip", tmp_path / "again.zip")
    cache.lookup(["one-a", "two-a"])
    cache.close()
    with closing(ImageCache(tmp_path / "cache", 10**6)) as again:
        assert again.lookup(["one-a"]) == {}
        add(again, shard(tmp_path, "three.zip"))
        assert again.lookup(["three-a"])


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\x00" + bytes(500)])
def test_a_corrupt_index_is_replaced(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    with closing(ImageCache(folder, 10**6)) as cache:
        add(cache, shard(tmp_path, "one.zip"))
    (folder / "index.sqlite").write_bytes(content)
    with closing(ImageCache(folder, 10**6)) as cache:
        assert cache.lookup(["one-a"]) == {}
        add(cache, shard(tmp_path, "two.zip"))
    with closing(ImageCache(folder, 10**6)) as cache:
        add(cache, shard(tmp_path, "three.zip"))
        assert cache.lookup(["three-a"])
    assert "one.zip" not in [path.name for path in (folder / "shards").iterdir()]
    assert ("cannot be used" in capsys.readouterr().err) == bool(content)


def test_two_stages_use_the_cache_at_the_same_time(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with closing(ImageCache(folder, 10**6)) as one, closing(ImageCache(folder, 10**6)) as two:
        for number in range(20):
            add(one if number % 2 else two, shard(tmp_path, f"{number}.zip"))
        assert len(one.lookup([f"{number}-a" for number in range(20)])) == 20
        add(two, tmp_path / "1.zip")
    with closing(sqlite3.connect(folder / "index.sqlite")) as index:
        assert index.execute("SELECT count(*) FROM images").fetchone() == (40,)
        assert index.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_cache_folder_that_cannot_be_written_disables_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file")
    with closing(ImageCache(tmp_path / "cache", 10**6)) as cache:
        add(cache, shard(tmp_path, "one.zip"))
        assert cache.lookup(["one-a"]) == {}
        assert not cache.link_shard("one.zip", tmp_path / "again.zip")
    assert f"{tmp_path / 'cache'} cannot be used" in capsys.readouterr().err
