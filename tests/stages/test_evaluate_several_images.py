"""Stage evaluate on questions about several images and with context, beside plain ones."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from stages import evaluate
from stages.core import layout
from stages.core.distributed.ranks import PROCESSES
from stages.core.errors import InputError
from stages.predictions.schema import (
    ABLATIONS,
    CONTEXT_PARTS,
    IMAGE_PARTS,
    OPTIONAL,
    SCHEMA,
    VARIANTS,
)
from tests.stages.test_evaluate import change_settings, interrupt, run_evaluate
from tests.workspaces import small_workspace

CONTEXTS = (None, "63-year-old woman.", "Fell from a ladder.")
"""Of the questions about each image, in turn."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_workspace(tmp_path, images_a_modality=3)
    change_settings(tmp_path, "evaluate", max_new_tokens=8)
    for path in split_files(tmp_path):  # two modalities are enough
        items = json.loads(path.read_text(encoding="utf-8"))
        few = [item for item in items if item["modality"] in ("ct", "oct")]
        path.write_text(json.dumps(few), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def split_files(root: Path) -> list[Path]:
    """The test questions of both axes."""
    patterns = [layout.split(axis, "*", "test", "grouped") for axis in ("modality", "task")]
    return [path for pattern in patterns for path in sorted(root.glob(pattern.as_posix()))]


def change_questions(root: Path, change: Callable[[int, dict[str, Any]], None]) -> None:
    """Change the test questions about CT of both axes, given their number within the modality."""
    numbers: dict[str, int] = {}
    for path in split_files(root):
        items = json.loads(path.read_text(encoding="utf-8"))
        for item in items:
            if item["modality"] == "ct":
                change(numbers.setdefault(item["question_id"], len(numbers)), item)
        path.write_text(json.dumps(items), encoding="utf-8")


def with_images_and_context(number: int, item: dict[str, Any]) -> None:
    """Two of the three images of CT for two questions in three; two contexts and none."""
    folder = Path(item["image"]).parent
    own = int(Path(item["image"]).stem)
    if number % 6 > 1:
        item["images"] = [str(folder / f"{(own + more) % 3}.png") for more in range(2)]
        item["image"] = item["images"][1]
    if (context := CONTEXTS[number % 3]) is not None:
        item["context"] = context


def table() -> pd.DataFrame:
    return pd.read_parquet(layout.predictions("base")).set_index("question_id")


def test_predictions_tell_what_each_variant_showed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_evaluate(monkeypatch, "base")
    plain = table()
    assert pq.read_schema(layout.predictions("base")).names == SCHEMA.names
    change_questions(root, with_images_and_context)
    run_evaluate(monkeypatch, "base")
    assert set(pq.read_schema(layout.predictions("base")).names) == {*SCHEMA.names, *OPTIONAL.names}
    rows = table()
    others = rows["modality"] != "ct"
    pd.testing.assert_frame_equal(rows.loc[others, plain.columns], plain[plain["modality"] != "ct"])
    assert rows.loc[others, [name for name in OPTIONAL.names if name in rows]].isna().all(axis=None)
    several = rows[rows["images"].notna()]
    single = rows[~others & rows["images"].isna()]
    assert (len(several), len(single)) == (12, 6)
    for _, row in several.iterrows():
        images = list(row["images"])
        assert row["image"] == images[1]
        assert row["blank_image"] == ""
        assert list(row["shuffled_images"]) != images
        assert row["shuffled_image"] == row["shuffled_images"][1]
        assert [row["removed_images"][0]] in ([images[0]], [images[1]])
        assert list(row["reordered_images"]) == images[::-1]
        assert list(row["middle_images"]) == [images[1]]
        assert all(row[f"{part}_completion_tokens"] > 0 for part in (*ABLATIONS, *IMAGE_PARTS))
    for part in IMAGE_PARTS:
        assert single[[f"{part}_output", f"{part}_images"]].isna().all(axis=None)
    assert single["shuffled_images"].isna().all()
    assert (single["shuffled_image"] != single["image"]).all()
    told = rows[rows["context"].notna()]
    assert set(told["context"]) == set(CONTEXTS) - {None}
    assert (told["other_context_context"] != told["context"]).all()
    assert set(told["other_context_context"]) == set(told["context"])
    for part in CONTEXT_PARTS:
        assert told[f"{part}_output"].notna().all()
        assert rows.loc[rows["context"].isna(), f"{part}_output"].isna().all()


def test_without_ablations_only_the_question_itself_is_asked(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_questions(root, with_images_and_context)
    run_evaluate(monkeypatch, "base")
    ablated = table()
    change_settings(root, "evaluate", ablations=False)
    run_evaluate(monkeypatch, "base")
    names = pq.read_schema(layout.predictions("base")).names
    assert names == [*SCHEMA.names, "images", "context"]
    rows = table()
    assert rows["output"].equals(ablated["output"])
    for variant in VARIANTS:
        assert f"{variant}_output" not in rows or rows[f"{variant}_output"].isna().all()


def test_interrupted_and_shared_evaluations_give_the_same_rows(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_settings(root, "evaluate", batch_size=5)
    change_questions(root, with_images_and_context)
    run_evaluate(monkeypatch, "base")
    alone = pq.read_table(layout.predictions("base"))
    layout.predictions("base").unlink()
    shutil.rmtree(layout.ANSWER_CACHE)
    interrupt(monkeypatch, after=3)

    def run_in_turn(command: list[str], ranks: int, _: Callable[[], None]) -> None:
        assert ranks == 2
        for rank in range(ranks):
            monkeypatch.setattr(
                sys, "argv", [*command, "--rank", str(rank), "--world-size", str(ranks)]
            )
            evaluate.main()

    monkeypatch.setattr(evaluate, "run_ranks", run_in_turn)
    monkeypatch.setattr(evaluate, "check_still_wanted", lambda: None)
    monkeypatch.setenv(PROCESSES, "2")
    run_evaluate(monkeypatch, "base")
    assert pq.read_table(layout.predictions("base")).equals(alone)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_an_image_of_several_that_does_not_open_is_named_with_its_question(
    root: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    change_questions(root, with_images_and_context)
    folder = layout.images("ct")
    for path in split_files(root):
        text = path.read_text(encoding="utf-8")
        pair = f'["{folder}/0.png", "{folder}/1.png"]'
        path.write_text(text.replace(pair, pair.replace("1.png", "new.png")), encoding="utf-8")
    if damage == "damaged":
        (root / folder / "new.png").write_bytes(b"no image")
    message = r"data/images/ct/new\.png is (missing|not a readable).*\(an image of the question '"
    with pytest.raises(InputError, match=message):
        run_evaluate(monkeypatch, "base")
    assert not layout.predictions("base").exists()


def test_an_image_token_in_a_context_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(number: int, item: dict[str, Any]) -> None:
        item["context"] = "Seen before: <|image_pad|>"

    change_questions(root, told)
    with pytest.raises(InputError, match=r"2 image tokens, expected 1: remove <\|image_pad\|>"):
        run_evaluate(monkeypatch, "base")
