"""TIFF and GIF stacks through download and resize, beside questions about their first image."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from stages import download, resize
from stages.core import layout
from stages.core.outputs import read_json_lines
from stages.corpus.dataset.image_store import read_image
from stages.corpus.quarantine.ledger import read_quarantine
from stages.corpus.quarantine.reasons import Reason
from tests.conftest import MakeCorpus, MakeRecord, Raw, RunStage, change_params
from tests.corpus.images.test_file_pages import COUNT, FILES, damaged_page

STACKS = {"Images/clip.gif": FILES["grey gif"](), "Images/oct.tif": FILES["tiff of 16 bits"]()}
OTHERS = {"Images/anim.png": FILES["animated png"](), "Images/anim.webp": FILES["animated webp"]()}
FILES_OF_ALL = {**STACKS, **OTHERS}


@pytest.fixture(autouse=True)
def _lenient(project: object) -> None:
    change_params("quarantine", max_refused_share=1.0, max_refused_share_of_set=1.0)


@pytest.fixture
def ask(make_corpus: MakeCorpus, make_record: MakeRecord, run: RunStage) -> Any:
    """Asks about images, after one question about each file, and gives the records by id."""

    def questions(
        *questions: tuple[str, list[int]], files: dict[str, bytes] = FILES_OF_ALL
    ) -> dict[str, Raw]:
        records = [make_record(question_id=path, image_path=path) for path in files]
        records += [
            make_record(question_id=f"{path} {slices}", image_path=path, slices=slices)
            for path, slices in questions
        ]
        make_corpus(records, files)
        run(download)
        run(resize, "ct")
        rows = read_json_lines(layout.records("ct"), "")
        return {row["question_id"]: row for row in rows}

    return questions


def store() -> dict[str, bytes]:
    folder = layout.images("ct")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pixels(record: Raw) -> list[bytes]:
    return [read_image(path) for path in record.get("shown", [record["image"]])]


def test_by_default_a_file_is_its_first_image(ask: Any) -> None:
    records = ask()
    assert records.keys() == FILES_OF_ALL.keys()
    plain = set(records["Images/anim.png"])
    assert {"frames", "shown", "sources"}.isdisjoint(plain)
    assert all(set(record) == plain for record in records.values())


def test_questions_may_name_frames_and_the_others_see_what_they_did(ask: Any) -> None:
    before = ask()
    firsts = {name: pixels(record) for name, record in before.items()}
    records = ask(("Images/clip.gif", [4, 2]), ("Images/oct.tif", [5]), ("Images/anim.png", [1]))
    frames = "data/images/ct/@frames"
    assert records["Images/clip.gif [4, 2]"]["shown"] == [
        f"{frames}/clip.gif/0004.png",
        f"{frames}/clip.gif/0002.png",
    ]
    assert records["Images/oct.tif [5]"]["image"] == f"{frames}/oct.tif/0005.png"
    (row,) = read_quarantine(layout.QUARANTINE / "resize" / "ct.parquet").rows
    assert (row.what, row.reason) == ("Images/anim.png", Reason.IMAGE_SLICE)
    for name in FILES_OF_ALL:
        assert pixels(records[name]) == firsts[name]
        added = {"frames"} if name in STACKS else set()
        assert {**records[name], "frames": None} == {**before[name], "frames": None}
        assert set(records[name]) - set(before[name]) == added


def test_the_settings_of_volumes_choose_frames(ask: Any) -> None:
    change_params("volume", frames=3, selection="center")
    records = ask()
    frames = "data/images/ct/@frames"
    for name in STACKS:
        record = records[name]
        stem = name.removeprefix("Images/")
        assert record["frames"] == COUNT
        assert record["shown"] == [f"{frames}/{stem}/000{number}.png" for number in (2, 3, 4)]
        assert len({*pixels(record)}) == 3
    for name in OTHERS:
        assert "frames" not in records[name]


def test_the_cache_knows_whether_a_file_was_read_as_a_stack(ask: Any) -> None:
    results: dict[int, list[tuple[dict[str, Raw], dict[str, bytes]]]] = {1: [], 3: []}
    for frames in (1, 3, 1, 3):
        change_params("volume", frames=frames)
        results[frames].append((ask(), store()))
    for frames, (first, again) in results.items():
        assert first == again
        change_params("volume", frames=frames)
        shutil.rmtree(resize.CACHE)
        assert (ask(), store()) == first, "the outputs depend on the cache"


def test_a_damaged_frame_costs_the_questions_that_could_show_it(ask: Any) -> None:
    files = {"Images/bad.tif": damaged_page(2), **STACKS}
    assert ask(files=files).keys() == files.keys()
    records = ask(("Images/bad.tif", [1]), ("Images/clip.gif", [1]), files=files)
    assert records.keys() == {*STACKS, "Images/clip.gif [1]"}
    rows = read_quarantine(layout.QUARANTINE / "resize" / "ct.parquet").rows
    assert {row.what for row in rows} == {"Images/bad.tif"}
    for row in rows:
        assert row.reason == Reason.IMAGE_DAMAGED
        assert f"frame 3 of {COUNT}" in row.why
