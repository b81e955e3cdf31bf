"""Images are decoded once: later runs take them from the cache, even after a killed run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest

from stages import download, resize
from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import read_json_lines
from stages.corpus.dataset.image_store import list_shard, open_image
from stages.corpus.images import resizer, shard_writer
from stages.corpus.images.files import decode_files
from tests.conftest import ROOT, MakeCorpus, MakeRecord, RunStage, change_params
from tests.corpus.images.test_decoders import saved, smooth
from tests.dicoms import file
from tests.hostile.dicoms import LEVELS

Tree = dict[str, bytes]


def tree() -> Tree:
    """Path -> content of all outputs of stage resize."""
    folders = (layout.images("ct"), layout.DATA / "records")
    paths = chain.from_iterable(sorted(folder.rglob("*")) for folder in folders)
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "MEAN", 4)
    monkeypatch.setattr(shard_writer, "MOST", 16)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item per image that is decoded."""
    calls: list[int] = []

    def counting(*arguments: object, **keywords: object) -> object:
        calls.append(1)
        return decode_files(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(resizer, "decode_files", counting)
    return calls


@pytest.fixture
def corpus(make_corpus: MakeCorpus, make_record: MakeRecord, run: RunStage) -> Path:
    """Downloaded: forty PNG files, two of them unusable, and a DICOM file of three frames."""
    grow(make_corpus, make_record, 40)
    run(download)
    return layout.images("ct")


def grow(make_corpus: MakeCorpus, make_record: MakeRecord, count: int) -> None:
    """A corpus of `count` PNG files and a DICOM file, each of another size, two damaged."""
    change_params("quarantine", max_refused_share=1.0, max_refused_share_of_set=1.0)
    change_params("volume", frames=2)
    images = {
        f"Images/a/{number:03d}.png": saved(smooth(30 + number, 40), "PNG")
        for number in range(count)
    }
    images |= {
        "Images/a/007.png": b"no image",
        "Images/a/008.png": images["Images/a/008.png"][:300],
    }
    images["Images/a/009.dcm"] = file(LEVELS[None].repeat(3, axis=0), Modality="CT")
    make_corpus([make_record(question_id=path, image_path=path) for path in images], images)


@pytest.mark.usefixtures("corpus", "small_shards")
def test_a_second_run_decodes_nothing_and_gives_the_same_bytes(
    run: RunStage, decoded: list[int]
) -> None:
    run(resize, "ct")
    first = tree()
    assert len(decoded) == 41
    assert len(list(layout.images("ct").iterdir())) > 3
    records = read_json_lines(layout.records("ct"), "")
    record = next(record for record in records if "frames" in record)
    assert record["frames"] == 3
    assert record["shown"] == [
        f"data/images/ct/@frames/a/009.dcm/000{number}.png" for number in (1, 3)
    ]
    decoded.clear()
    run(resize, "ct")
    assert tree() == first
    assert not decoded
    shutil.rmtree(resize.CACHE)
    run(resize, "ct")
    assert tree() == first, "the outputs depend on the cache"
    assert len(decoded) == 41


@pytest.mark.usefixtures("corpus", "small_shards")
def test_a_grown_corpus_decodes_new_images_only_and_changes_few_shards(
    run: RunStage, decoded: list[int], make_corpus: MakeCorpus, make_record: MakeRecord
) -> None:
    run(resize, "ct")
    before = {path.name for path in layout.images("ct").iterdir()}
    decoded.clear()
    grow(make_corpus, make_record, 42)
    run(download)
    run(resize, "ct")
    assert len(decoded) == 2
    grown = tree()
    after = {path.name for path in layout.images("ct").iterdir()}
    assert len(before - after) <= 1
    assert before & after
    shutil.rmtree(resize.CACHE)
    run(resize, "ct")
    assert tree() == grown


@pytest.mark.usefixtures("corpus", "small_shards")
@pytest.mark.parametrize("change", [{"size": 64}, {"resample": "lanczos"}])
def test_changed_settings_decode_all_images_again(
    run: RunStage, decoded: list[int], change: dict[str, object]
) -> None:
    run(resize, "ct")
    decoded.clear()
    change_params("resize", **change)
    run(resize, "ct")
    assert len(decoded) == 41


@pytest.mark.usefixtures("corpus", "small_shards")
def test_another_decoder_with_the_same_pixels_gives_the_same_shards(
    run: RunStage, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(resize, "ct")
    first = tree()
    decoded.clear()
    monkeypatch.setattr(resizer, "DECODER", "another one")
    run(resize, "ct")
    assert len(decoded) == 41
    assert tree() == first


@pytest.mark.usefixtures("corpus", "small_shards")
@pytest.mark.parametrize("damage", ["shard", "index", "frames", "all shards"])
def test_images_damaged_in_the_cache_are_decoded_again(
    run: RunStage, decoded: list[int], damage: str
) -> None:
    run(resize, "ct")
    first = tree()
    decoded.clear()
    shards = sorted((resize.CACHE / "shards").iterdir())
    of_frames = next(
        path for path in layout.images("ct").iterdir() if "@frames" in next(iter(list_shard(path)))
    )
    frames = resize.CACHE / "shards" / of_frames.name
    shutil.rmtree(layout.images("ct"))
    damaged = {
        "shard": shards[:1],
        "index": [resize.CACHE / "index.sqlite"],
        "frames": [frames],
        "all shards": shards,
    }
    for path in damaged[damage]:
        path.write_bytes(path.read_bytes()[:50] + bytes(50))
    run(resize, "ct")
    assert tree() == first
    assert decoded


@pytest.mark.usefixtures("corpus", "small_shards")
def test_the_remedy_for_a_shard_damaged_under_all_its_names_works(run: RunStage) -> None:
    run(resize, "ct")
    first = tree()
    image = next(read_json_lines(layout.records("ct"), ""))["image"]
    member = image.partition("/ct/")[2]
    shard = next(path for path in layout.images("ct").iterdir() if member in list_shard(path))
    times = (shard.stat().st_atime_ns, shard.stat().st_mtime_ns)
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0xFF
    shard.write_bytes(content)
    os.utime(shard, ns=times)  # a failing disk does not change times
    with pytest.raises(InputError) as error:
        for name in list_shard(shard):
            open_image(layout.images("ct") / name)
    command = str(error.value).split("`")[1]
    subprocess.run(command, shell=True, check=True)
    assert not shard.exists()
    run(resize, "ct")
    assert tree() == first


@pytest.mark.usefixtures("corpus", "small_shards")
def test_one_core_and_many_give_the_same_bytes(
    run: RunStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = []
    for cores in (1, 4):
        monkeypatch.setattr(resizer, "available_cores", lambda cores=cores: cores)
        run(resize, "ct")
        trees.append(tree())
        shutil.rmtree(resize.CACHE)
    assert trees[0] == trees[1]


@pytest.mark.usefixtures("corpus")
def test_a_killed_run_leaves_no_partial_output_and_is_resumed(run: RunStage, project: Path) -> None:
    slow = (
        "import time, sys\n"
        "from stages.corpus.images import resizer, shard_writer\n"
        "from stages import resize; shard_writer.MEAN = 4; shard_writer.MOST = 16\n"
        "encode = resizer.encode\n"
        "resizer.encode = lambda image: (time.sleep(0.05), encode(image))[1]\n"
        "sys.argv = ['resize', 'ct']; resize.main()"
    )
    command = [sys.executable, "-c", slow]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def complete() -> str:
        return subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, check=True
        ).stdout

    process = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list((resize.CACHE / "shards").glob("*.zip"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not layout.images("ct").exists()
    assert not layout.records("ct").exists()
    decoded_count = re.search(r"\((\d+) ", complete())
    assert decoded_count is not None
    assert 0 < int(decoded_count[1]) < 41
    resumed = tree()
    shutil.rmtree(resize.CACHE)
    complete()
    assert tree() == resumed
