"""Image shards: deterministic, stable under small changes, opened by the path in split files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.core.errors import InputError
from stages.corpus.dataset import image_store as store
from stages.corpus.images import shard_writer as shards
from stages.corpus.images.decoding import encode
from stages.corpus.images.rw_lock import ReadWriteLock
from stages.corpus.images.shard_writer import cut, shard_name, write_shard

FOLDER = Path("data/images/ct")


def drawn(number: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    )


def pixels(image: Image.Image) -> bytes:
    return image.tobytes()


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Image.Image]:
    """Twenty images in three shards, in the working directory; path -> image."""
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir(parents=True)
    images = {f"Set [1]/größe {number}.png": drawn(number) for number in range(20)}
    names = sorted(images)
    for number, part in enumerate((names[:7], names[7:8], names[8:])):
        write_shard(FOLDER / f"{number}.zip", ((name, encode(images[name])) for name in part))
    return {f"{FOLDER}/{name}": image for name, image in images.items()}


def test_every_image_opens_as_it_was_put_in(stored: dict[str, Image.Image]) -> None:
    for path, image in stored.items():
        assert store.exists(path)
        assert pixels(store.open_image(path)) == pixels(image)
        assert pixels(store.open_image(Path.cwd() / path)) == pixels(image)
    assert store.open_image(path).mode == "RGB"


def test_unpacked_by_any_program_images_lie_where_their_paths_say(
    stored: dict[str, Image.Image],
) -> None:
    for shard in FOLDER.glob("*.zip"):
        with zipfile.ZipFile(shard) as archive:
            archive.extractall(FOLDER)
    for path, image in stored.items():
        with Image.open(path) as opened:
            assert pixels(opened) == pixels(image)


def test_a_plain_file_is_opened_where_no_shard_has_it(stored: dict[str, Image.Image]) -> None:
    path = FOLDER / "plain.png"
    drawn(99).save(path)
    assert store.exists(path)
    assert pixels(store.open_image(path)) == pixels(drawn(99))
    shadowed = Path(next(iter(stored)))
    shadowed.parent.mkdir(exist_ok=True)
    drawn(98).save(shadowed)
    assert pixels(store.open_image(shadowed)) == pixels(stored[str(shadowed)]), (
        "the shard is what DVC keeps"
    )


def test_what_is_missing_is_named_with_the_remedy(stored: dict[str, Image.Image]) -> None:
    assert not store.exists(FOLDER / "none.png")
    with pytest.raises(
        InputError,
        match=(
            r"data/images/ct/none\.png is missing, in data/images/ct/\*\.zip too: run `dvc repro"
            r" resize`"
        ),
    ):
        store.open_image(FOLDER / "none.png")
    with pytest.raises(InputError, match=r"data/images/mri/none\.png is missing"):
        store.open_image("data/images/mri/none.png")


def test_a_folder_that_was_made_anew_is_looked_at_anew(
    stored: dict[str, Image.Image], tmp_path: Path
) -> None:
    path = next(iter(stored))
    store.open_image(path)
    FOLDER.rename(tmp_path / "old")
    FOLDER.mkdir()
    assert not store.exists(path)
    write_shard(FOLDER / "x.zip", [(Path(path).relative_to(FOLDER).as_posix(), encode(drawn(77)))])
    os.utime(FOLDER, ns=(1, 1))
    assert pixels(store.open_image(path)) == pixels(drawn(77))


def test_a_damaged_shard_is_named_and_not_shown(stored: dict[str, Image.Image]) -> None:
    path = sorted(stored)[3]
    store.open_image(path)
    shard = FOLDER / "0.zip"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(
        InputError,
        match=(
            r"is damaged in data/images/ct/0\.zip: delete that under all its names, `find \."
            r" -samefile"
        ),
    ):
        for each in stored:
            store.open_image(each)
    places = store.list_shard(shard)
    for name, place in places.items():
        content[place.header : place.header + 4] = b"none"
        shard.write_bytes(content)
        with pytest.raises(InputError, match=r"is damaged in data/images/ct/0\.zip"):
            store.read_location(place, name)
    shard.write_bytes(content[: len(content) // 2])
    os.utime(FOLDER, ns=(5, 5))
    with pytest.raises(InputError, match=r"data/images/ct/0\.zip is not a complete shard"):
        store.open_image(path)


def _hash_all(paths: list[str]) -> list[bytes]:
    return [pixels(store.open_image(path)) for path in paths]


FORKING = f"""
import hashlib, json, multiprocessing, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from stages.corpus.dataset.image_store import open_image

def read(paths):
    return [hashlib.sha256(open_image(path).tobytes()).hexdigest() for path in paths]

paths = sys.argv[1:]
open_image(paths[0])  # opened before the fork, as in a DataLoader
with multiprocessing.get_context("fork").Pool(4) as processes:
    print(json.dumps(processes.map(read, [paths] * 8)))
"""


def test_threads_and_forked_processes_read_beside_each_other(
    stored: dict[str, Image.Image],
) -> None:
    wanted = [pixels(image) for image in stored.values()]
    with ThreadPoolExecutor(8) as pool:
        assert all(
            found == wanted for found in pool.map(lambda _: _hash_all(list(stored)), range(16))
        )
    # in a process of its own: what else runs in this one may hold a lock that a fork would copy
    done = subprocess.run(
        [sys.executable, "-c", FORKING, *stored],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path.cwd(),
    )
    assert json.loads(done.stdout) == [[hashlib.sha256(each).hexdigest() for each in wanted]] * 8


def test_no_file_stays_open(stored: dict[str, Image.Image]) -> None:
    store.open_image(next(iter(stored)))
    before = len(os.listdir("/proc/self/fd"))
    for path in stored:
        store.open_image(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_shard_has_the_same_bytes_whenever_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [("a.png", encode(drawn(1))), ("b/ü.png", encode(drawn(2)))]
    write_shard(tmp_path / "one.zip", members)
    monkeypatch.setattr("time.time", lambda: 4e9)
    os.umask(os.umask(0o077))
    write_shard(tmp_path / "two.zip", iter(members))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


names_of = st.lists(st.text("abcdefgh/é ", min_size=1, max_size=12), unique=True, max_size=300)


@given(names_of)
@settings(max_examples=50, deadline=None)
def test_shards_are_all_names_in_order_and_none_is_too_large(names: list[str]) -> None:
    found = list(cut(sorted(names)))
    assert [name for shard in found for name in shard] == sorted(names)
    assert all(0 < len(shard) <= shards.MOST for shard in found)


def test_an_image_more_changes_the_shard_it_falls_into_and_no_other() -> None:
    names = [f"set {number % 7}/{number:05d}.png" for number in range(20_000)]
    before = {tuple(shard) for shard in cut(sorted(names))}
    assert 0.5 * shards.MEAN < len(names) / len(before) < 2 * shards.MEAN
    for new in ("set 3/00000a.png", "set 6/99999.png", "a/first.png"):
        after = {tuple(shard) for shard in cut(sorted([*names, new]))}
        # one, or two where the new name is itself an end
        assert len(after - before) <= 2
        assert len(before - after) <= 1
    fewer = {tuple(shard) for shard in cut(sorted(names)[1:])}
    assert len(fewer - before) == 1


def test_a_shards_name_is_what_is_in_it() -> None:
    members = [("a.png", "1"), ("b.png", "2")]
    names = {
        shard_name(each)
        for each in (
            members,
            members[:1],
            [("a.png", "1"), ("b.png", "3")],
            [("a.pn", "g1"), ("b.png", "2")],
            [],
        )
    }
    assert len(names) == 5
    assert shard_name(iter(members)) in names


def test_who_is_alone_is_alone_and_nobody_waits_for_ever() -> None:
    lock, there, alone = ReadWriteLock(), [0], []
    guard = threading.Lock()

    def share() -> None:
        for _ in range(200):
            with lock.shared(), guard:
                there[0] += 1
            with guard:
                there[0] -= 1

    def take() -> None:
        for _ in range(50):
            with lock.exclusive():
                alone.append(lock._readers)

    threads = [threading.Thread(target=work) for work in (share, share, share, take, take)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert alone == [0] * 100
