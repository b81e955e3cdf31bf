"""Image shards: opened by the paths of split files, deterministic, stable under small changes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
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
from stages.corpus.images.shard_writer import cut, shard_name, write_shard

FOLDER = Path("data/images/ct")


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Image.Image]:
    """Path -> image of twenty images in three shards, in the working directory."""
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir(parents=True)
    images = {f"Set [1]/größe {number}.png": noise(number) for number in range(20)}
    names = sorted(images)
    for number, part in enumerate((names[:7], names[7:8], names[8:])):
        write_shard(FOLDER / f"{number}.zip", ((name, encode(images[name])) for name in part))
    return {f"{FOLDER}/{name}": image for name, image in images.items()}


def test_every_image_opens_by_its_relative_and_absolute_path(
    stored: dict[str, Image.Image],
) -> None:
    for path, image in stored.items():
        assert store.exists(path)
        assert store.open_image(path).tobytes() == image.tobytes()
        assert store.open_image(Path.cwd() / path).tobytes() == image.tobytes()
    assert store.open_image(path).mode == "RGB"


def test_unzipping_the_shards_puts_every_image_at_its_path(
    stored: dict[str, Image.Image],
) -> None:
    for shard in FOLDER.glob("*.zip"):
        with zipfile.ZipFile(shard) as archive:
            archive.extractall(FOLDER)
    for path, image in stored.items():
        with Image.open(path) as opened:
            assert opened.tobytes() == image.tobytes()


def test_a_plain_file_is_opened_unless_a_shard_has_the_image(
    stored: dict[str, Image.Image],
) -> None:
    path = FOLDER / "plain.png"
    noise(99).save(path)
    assert store.exists(path)
    assert store.open_image(path).tobytes() == noise(99).tobytes()
    shadowed = Path(next(iter(stored)))
    shadowed.parent.mkdir(exist_ok=True)
    noise(98).save(shadowed)
    assert store.open_image(shadowed).tobytes() == stored[str(shadowed)].tobytes(), (
        "DVC tracks the shard"
    )


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("folder", [FOLDER, Path("data/images/mri")])
def test_a_missing_image_is_named_with_the_remedy(folder: Path) -> None:
    assert not store.exists(folder / "none.png")
    message = rf"{folder}/none\.png is missing, .*{folder}/\*\.zip: run `dvc repro resize`"
    with pytest.raises(InputError, match=message):
        store.open_image(folder / "none.png")


def test_the_index_of_a_replaced_folder_is_read_again(
    stored: dict[str, Image.Image], tmp_path: Path
) -> None:
    path = next(iter(stored))
    store.open_image(path)
    FOLDER.rename(tmp_path / "old")
    FOLDER.mkdir()
    assert not store.exists(path)
    write_shard(FOLDER / "x.zip", [(Path(path).relative_to(FOLDER).as_posix(), encode(noise(77)))])
    os.utime(FOLDER, ns=(1, 1))
    assert store.open_image(path).tobytes() == noise(77).tobytes()


def test_a_damaged_shard_is_named_with_the_remedy(stored: dict[str, Image.Image]) -> None:
    path = sorted(stored)[3]
    store.open_image(path)
    shard = FOLDER / "0.zip"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged in data/images/ct/0\.zip.*`find \. -samefile"):
        for each in stored:
            store.open_image(each)
    for name, location in store.list_shard(shard).items():
        content[location.header : location.header + 4] = b"none"
        shard.write_bytes(content)
        with pytest.raises(InputError, match=r"is damaged in data/images/ct/0\.zip"):
            store.read_location(location, name)
    shard.write_bytes(content[: len(content) // 2])
    os.utime(FOLDER, ns=(5, 5))
    with pytest.raises(InputError, match=r"data/images/ct/0\.zip is not a complete shard"):
        store.open_image(path)


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


def test_threads_and_forked_processes_read_concurrently(
    stored: dict[str, Image.Image],
) -> None:
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(store.open_image, [*stored] * 16))
    contents = [image.tobytes() for image in stored.values()]
    assert [image.tobytes() for image in images] == contents * 16
    # in a process of its own: another thread of this one may hold a lock that a fork would copy
    process = subprocess.run(
        [sys.executable, "-c", FORKING, *stored],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path.cwd(),
    )
    hashes = [hashlib.sha256(content).hexdigest() for content in contents]
    assert json.loads(process.stdout) == [hashes] * 8


def test_no_descriptor_stays_open(stored: dict[str, Image.Image]) -> None:
    store.open_image(next(iter(stored)))
    before = len(os.listdir("/proc/self/fd"))
    for path in stored:
        store.open_image(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_bytes_of_a_shard_depend_on_its_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [("a.png", encode(noise(1))), ("b/ü.png", encode(noise(2)))]
    write_shard(tmp_path / "one.zip", members)
    monkeypatch.setattr("time.time", lambda: 4e9)
    os.umask(os.umask(0o077))
    write_shard(tmp_path / "two.zip", iter(members))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


names_of = st.lists(st.text("abcdefgh/é ", min_size=1, max_size=12), unique=True, max_size=300)


@given(names_of)
@settings(max_examples=50, deadline=None)
def test_shards_hold_all_names_in_order_and_none_is_too_large(names: list[str]) -> None:
    parts = list(cut(sorted(names)))
    assert list(chain.from_iterable(parts)) == sorted(names)
    assert all(0 < len(part) <= shards.MOST for part in parts)


def test_an_added_or_removed_image_changes_one_shard() -> None:
    names = [f"set {number % 7}/{number:05d}.png" for number in range(20_000)]
    before = {tuple(shard) for shard in cut(sorted(names))}
    assert 0.5 * shards.MEAN < len(names) / len(before) < 2 * shards.MEAN
    for new in ("set 3/00000a.png", "set 6/99999.png", "a/first.png"):
        after = {tuple(shard) for shard in cut(sorted([*names, new]))}
        # two if the new name itself ends a shard
        assert len(after - before) <= 2
        assert len(before - after) <= 1
    fewer = {tuple(shard) for shard in cut(sorted(names)[1:])}
    assert len(fewer - before) == 1


def test_the_name_of_a_shard_is_a_hash_of_its_content() -> None:
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
