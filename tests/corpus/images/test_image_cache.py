"""What is remembered of resized images: found again, kept within its limit, and never in the way."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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


def kept(cache: ImageCache, path: Path) -> None:
    cache.keep(
        path,
        [(f"{path.stem}-{letter}", f"{letter}.png", FACTS | {"letter": letter}) for letter in "ab"],
    )


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache", 10**6)


def test_an_image_is_found_again_with_its_facts_and_bytes(
    cache: ImageCache, tmp_path: Path
) -> None:
    path = shard(tmp_path, "one.zip")
    kept(cache, path)
    cache.keep_refusals([("bad", {"why": "the file is empty", "reason": "image-empty"})])
    cache.close()
    with closing(ImageCache(tmp_path / "cache", 10**6)) as again:
        found = again.known(["one-a", "one-b", "bad", "none"])
        assert set(found) == {"one-a", "one-b", "bad"}
        assert found["one-b"].facts == FACTS | {"letter": "b"}
        assert (found["bad"].shard, found["bad"].facts["reason"]) == (None, "image-empty")
        a, b = again.read(found["one-a"]), again.read(found["one-b"])
        assert a is not None
        assert b == a[::-1]
        assert len(again.known([f"one-a{number}" for number in range(5000)] + ["one-a"])) == 1


def test_threads_that_keep_and_take_beside_each_other_lose_nothing(
    cache: ImageCache, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [shard(tmp_path, f"{number}.zip", 100) for number in range(64)]
    threads = 8
    together = threading.Barrier(threads)

    def work(start: int) -> None:
        together.wait()
        for path in paths[start::threads]:
            cache.keep(path, [(f"{path.stem}-{number}", "a.png", FACTS) for number in range(200)])
            assert cache.take(path.name, tmp_path / f"again-{path.name}")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert "cannot be used" not in capfd.readouterr().err
    assert (
        len(cache.known([f"{path.stem}-{number}" for path in paths for number in range(200)]))
        == 64 * 200
    )


def test_a_shard_is_taken_whole_and_shares_its_bytes(cache: ImageCache, tmp_path: Path) -> None:
    path = shard(tmp_path, "one.zip")
    content = path.read_bytes()
    kept(cache, path)
    path.unlink()
    assert cache.take("one.zip", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == content
    assert (tmp_path / "again.zip").stat().st_ino == (
        tmp_path / "cache" / "shards" / "one.zip"
    ).stat().st_ino
    assert not cache.take("none.zip", tmp_path / "none.zip")
    assert not (tmp_path / "none.zip").exists()


def test_a_shard_that_was_changed_under_its_other_name_is_not_taken(
    cache: ImageCache, tmp_path: Path
) -> None:
    path = shard(tmp_path, "one.zip")
    kept(cache, path)
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    assert not cache.take("one.zip", tmp_path / "again.zip")
    assert not (tmp_path / "again.zip").exists()
    assert cache.known(["one-a"]) == {}


def test_a_shard_that_was_only_touched_is_looked_through_and_taken(
    cache: ImageCache, tmp_path: Path
) -> None:
    path = shard(tmp_path, "one.zip")
    kept(cache, path)
    path.touch()
    assert cache.take("one.zip", tmp_path / "again.zip")


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_an_image_whose_shard_is_damaged_is_forgotten(
    cache: ImageCache, tmp_path: Path, damage: str
) -> None:
    kept(cache, shard(tmp_path, "one.zip"))
    inside = tmp_path / "cache" / "shards" / "one.zip"
    known = cache.known(["one-a"])["one-a"]
    inside.unlink()
    if damage == "cut":
        inside.write_bytes(b"PK")
    assert cache.read(known) is None
    assert cache.known(["one-a", "one-b"]) == {}


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for name in ("one.zip", "two.zip", "three.zip"):
        with closing(ImageCache(folder, 10**6)) as cache:
            kept(cache, shard(tmp_path, name, 1000))
    with closing(ImageCache(folder, 10**6)) as cache:
        assert cache.take("one.zip", tmp_path / "used.zip")
    with closing(ImageCache(folder, 5000)) as cache:
        kept(cache, shard(tmp_path, "four.zip", 1000))
    assert sorted(path.name for path in (folder / "shards").iterdir()) == ["four.zip", "one.zip"]
    assert sum(path.stat().st_size for path in (folder / "shards").iterdir()) <= 5000
    with closing(ImageCache(folder, 10**6)) as cache:
        assert set(cache.known(["one-a", "two-a", "three-a", "four-a"])) == {"one-a", "four-a"}


def test_what_is_larger_than_the_limit_is_not_kept_at_all(tmp_path: Path) -> None:
    with closing(ImageCache(tmp_path / "cache", 100)) as cache:
        kept(cache, shard(tmp_path, "one.zip"))
        assert cache.known(["one-a"]) == {}
    assert not list((tmp_path / "cache" / "shards").iterdir())


def test_it_may_be_deleted_while_it_is_in_use(cache: ImageCache, tmp_path: Path) -> None:
    kept(cache, shard(tmp_path, "one.zip"))
    shutil.rmtree(tmp_path / "cache")
    kept(cache, shard(tmp_path, "two.zip"))
    assert not cache.take("one.zip", tmp_path / "again.zip")
    cache.known(["one-a", "two-a"])
    cache.close()
    with closing(ImageCache(tmp_path / "cache", 10**6)) as again:
        assert again.known(["one-a"]) == {}
        kept(again, shard(tmp_path, "three.zip"))
        assert again.known(["three-a"])


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\x00" + bytes(500)])
def test_a_damaged_index_is_begun_anew(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    with closing(ImageCache(folder, 10**6)) as cache:
        kept(cache, shard(tmp_path, "one.zip"))
    (folder / "index.sqlite").write_bytes(content)
    with closing(ImageCache(folder, 10**6)) as cache:
        assert cache.known(["one-a"]) == {}
        kept(cache, shard(tmp_path, "two.zip"))
    with closing(ImageCache(folder, 10**6)) as cache:
        kept(cache, shard(tmp_path, "three.zip"))
        assert cache.known(["three-a"])
    assert "one.zip" not in [path.name for path in (folder / "shards").iterdir()]
    assert ("cannot be used" in capsys.readouterr().err) == bool(content)


def test_two_stages_use_it_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with closing(ImageCache(folder, 10**6)) as one, closing(ImageCache(folder, 10**6)) as two:
        for number in range(20):
            kept(one if number % 2 else two, shard(tmp_path, f"{number}.zip"))
        assert len(one.known([f"{number}-a" for number in range(20)])) == 20
        kept(two, tmp_path / "1.zip")
    with closing(sqlite3.connect(folder / "index.sqlite")) as index:
        assert index.execute("SELECT count(*) FROM images").fetchone() == (40,)
        assert index.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file")
    with closing(ImageCache(tmp_path / "cache", 10**6)) as cache:
        kept(cache, shard(tmp_path, "one.zip"))
        assert cache.known(["one-a"]) == {}
        assert not cache.take("one.zip", tmp_path / "again.zip")
    assert "images are made anew" in capsys.readouterr().err
