"""Images are made once: what was made before is found, whatever became of the run that made it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages import download, resize
from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import read_json_lines
from stages.corpus.dataset.image_store import list_shard, open_image
from stages.corpus.images import resizer as maker
from stages.corpus.images import shard_writer as shards
from stages.corpus.images.decoding import decode_files
from tests.conftest import ROOT, MakeCorpus, MakeRecord, RunStage, change_params
from tests.corpus.images.test_decoders import saved, smooth
from tests.dicoms import file
from tests.hostile.dicoms import LEVELS

Tree = dict[str, bytes]


def tree() -> Tree:
    folders = (layout.images("ct"), layout.frames("ct"), layout.DATA / "records")
    return {
        str(path): path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MEAN", 4)
    monkeypatch.setattr(shards, "MOST", 16)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often an image is decoded."""
    seen: list[int] = []

    def told(*arguments: object, **more: object) -> object:
        seen.append(1)
        return decode_files(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(maker, "decode_files", told)
    return seen


@pytest.fixture
def corpus(make_corpus: MakeCorpus, make_record: MakeRecord, run: RunStage) -> Path:
    """Forty images, two of them unusable, one of them a DICOM file of three frames, downloaded."""
    grow(make_corpus, make_record, 40)
    run(download)
    return layout.images("ct")


def grow(make_corpus: MakeCorpus, make_record: MakeRecord, number: int) -> None:
    change_params("quarantine", max_refused_share=1.0, max_refused_share_of_set=1.0)
    images = {
        f"Images/a/{each:03d}.png": saved(smooth(30 + each, 40), "PNG") for each in range(number)
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
    assert (len(decoded), len(list(layout.images("ct").iterdir())) > 3) == (41, True)
    record = next(each for each in read_json_lines(layout.records("ct"), "") if "frames" in each)
    assert record["frames"] == [f"data/frames/ct/a/009.dcm/000{number}.png" for number in (1, 2, 3)]
    decoded.clear()
    run(resize, "ct")
    assert tree() == first
    assert not decoded
    shutil.rmtree(resize.CACHE)
    run(resize, "ct")
    assert tree() == first, "it is there to save time, and nothing else"
    assert len(decoded) == 41


@pytest.mark.usefixtures("corpus", "small_shards")
def test_of_a_corpus_that_grew_only_what_is_new_is_decoded_and_few_shards_change(
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
def test_other_settings_are_other_images(
    run: RunStage, decoded: list[int], change: dict[str, object]
) -> None:
    run(resize, "ct")
    decoded.clear()
    change_params("resize", **change)
    run(resize, "ct")
    assert len(decoded) == 41


@pytest.mark.usefixtures("corpus", "small_shards")
def test_another_decoder_that_sees_the_same_leaves_the_shards_as_they_were(
    run: RunStage, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(resize, "ct")
    first = tree()
    decoded.clear()
    monkeypatch.setattr(maker, "DECODER", "another one")
    run(resize, "ct")
    assert len(decoded) == 41
    assert {path: content for path, content in tree().items() if "/frames/" not in path} == {
        path: content for path, content in first.items() if "/frames/" not in path
    }


@pytest.mark.usefixtures("corpus", "small_shards")
@pytest.mark.parametrize("damage", ["shard", "index", "frames", "all shards"])
def test_what_is_damaged_in_the_cache_is_made_anew(
    run: RunStage, decoded: list[int], damage: str
) -> None:
    run(resize, "ct")
    first = tree()
    decoded.clear()
    kept = sorted((resize.CACHE / "shards").iterdir())
    frames = resize.CACHE / "shards" / next(layout.frames("ct").iterdir()).name
    shutil.rmtree(layout.images("ct"))
    shutil.rmtree(layout.frames("ct"))
    for path in {
        "shard": kept[:1],
        "index": [resize.CACHE / "index.sqlite"],
        "frames": [frames],
        "all shards": kept,
    }[damage]:
        path.write_bytes(path.read_bytes()[:50] + bytes(50))
    run(resize, "ct")
    assert tree() == first
    assert decoded


@pytest.mark.usefixtures("corpus", "small_shards")
def test_a_shard_damaged_under_all_its_names_is_mended_as_the_error_says(run: RunStage) -> None:
    run(resize, "ct")
    first = tree()
    path = next(each["image"] for each in read_json_lines(layout.records("ct"), ""))
    shard = next(
        each
        for each in layout.images("ct").iterdir()
        if path.partition("/ct/")[2] in list_shard(each)
    )
    times = (shard.stat().st_atime_ns, shard.stat().st_mtime_ns)
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0xFF
    shard.write_bytes(content)
    os.utime(shard, ns=times)  # a disk that loses bytes changes no times
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
    found = []
    for cores in (1, 4):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        run(resize, "ct")
        found.append(tree())
        shutil.rmtree(resize.CACHE)
    assert found[0] == found[1]


@pytest.mark.usefixtures("corpus")
def test_a_run_that_is_killed_leaves_nothing_half_and_is_gone_on_with(
    run: RunStage, project: Path
) -> None:
    slow = (
        "import time, sys\n"
        "from stages.corpus.images import resizer as maker, shard_writer as shards\n"
        "from stages import resize; shards.MEAN = 4; shards.MOST = 16\n"
        "real = maker.encode\n"
        "maker.encode = lambda image: (time.sleep(0.05), real(image))[1]\n"
        "sys.argv = ['resize', 'ct']; resize.main()"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", slow], cwd=project, env=environment, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list((resize.CACHE / "shards").glob("*.zip"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not layout.images("ct").exists()
    assert not layout.records("ct").exists()
    done = subprocess.run(
        [sys.executable, "-c", slow],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    fresh = int(done.stdout.partition("(")[2].partition(" of them")[0])
    assert 0 < fresh < 41
    resumed = tree()
    shutil.rmtree(resize.CACHE)
    subprocess.run(
        [sys.executable, "-c", slow], cwd=project, env=environment, capture_output=True, check=True
    )
    assert tree() == resumed
