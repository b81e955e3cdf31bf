"""Stage evaluate on a small workspace: one row a question, the same however it is batched."""

import ast
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from stages import evaluate
from stages.core import layout
from stages.core.distributed.ranks import PROCESSES
from stages.core.errors import ExitCode, InputError
from stages.core.outputs import write_json
from stages.core.yaml_files import dump_yaml, read_yaml
from stages.corpus.dataset.split_files import read_split
from stages.generation import generate
from stages.generation.answer_cache import AnswerCache
from stages.generation.items import read_items
from stages.generation.windows import Key
from stages.policy import loading as policy
from stages.predictions.schema import ABLATIONS, SCHEMA
from stages.reporting.sources import read_predictions
from stages.taxonomy import fold_slug
from tests.core.distributed.servers import Server, finish, kill, start
from tests.omnimedvqa import AXES
from tests.workspaces import REPOSITORY, small_workspace

PARTS = f"{layout.ANSWER_CACHE}/*/*.json"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_workspace(tmp_path, images_a_modality=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_evaluate(monkeypatch: pytest.MonkeyPatch, checkpoint: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", checkpoint])
    evaluate.main()


def test_the_base_answers_every_test_question_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_evaluate(monkeypatch, "base")
    table = pd.read_parquet(layout.predictions("base"))
    assert list(table.columns) == SCHEMA.names
    assert len(table) == 8 * 6
    assert table["question_id"].is_unique
    assert table["question_id"].is_monotonic_increasing
    assert table["modality_test"].all()
    assert table["task_test"].all()
    assert (table["options"].map(len) >= 2).all()
    assert (table["completion_tokens"] > 0).all()


def test_answers_do_not_depend_on_the_batch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    text = (root / "params.yaml").read_text(encoding="utf-8")
    for size in (16, 5):
        (root / "params.yaml").write_text(
            text.replace("batch_size: 16", f"batch_size: {size}"), encoding="utf-8"
        )
        run_evaluate(monkeypatch, "base")
        outputs.append(pd.read_parquet(layout.predictions("base"))["output"].tolist())
    assert outputs[0] == outputs[1]


def test_a_checkpoint_is_tested_on_its_own_axis(root: Path) -> None:
    first = read_items("all", "grouped")[0]
    removed, path = (
        first["question_id"],
        layout.split("task", first["question_type"], "test", "grouped"),
    )
    path.write_text(path.read_text(encoding="utf-8").replace(removed, "other"), encoding="utf-8")
    modality = {item["question_id"]: item for item in read_items("modality", "grouped")}
    task = {item["question_id"]: item for item in read_items("task", "grouped")}
    assert removed in modality
    assert not modality[removed]["task_test"]
    assert removed not in task
    assert task["other"]["task_test"]
    assert not task["other"]["modality_test"]


def test_a_checkpoint_of_a_fold_is_tested_on_its_fold_and_the_base_on_all(root: Path) -> None:
    everything = {item["question_id"] for item in read_items("modality", "grouped")}
    for axis, slugs in AXES.items():
        for slug in slugs:
            tested = read_split(layout.split(axis, slug, "test", "grouped"))
            for number in (1, 2):
                own = [each for each in tested if len(each["image"]) % 2 == number % 2]
                write_json(layout.split(axis, fold_slug(slug, number), "test", "grouped"), own)
    first, second = (
        {item["question_id"] for item in read_items("modality", "grouped", number)}
        for number in (1, 2)
    )
    assert first
    assert second
    assert first | second == everything
    assert not first & second
    assert len(read_items("modality", "grouped")) == len(everything)


def test_an_untrained_checkpoint_is_named_with_the_command_that_trains_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"models/ct is missing: run `dvc repro train@ct`"):
        run_evaluate(monkeypatch, "ct")


def test_an_image_that_does_not_open_is_named_and_nothing_is_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (layout.images("oct") / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"data/images/oct/0.png is not a readable image"):
        run_evaluate(monkeypatch, "base")
    assert not layout.predictions("base").exists()


def test_every_question_is_asked_of_a_black_image_and_of_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_workspace(tmp_path, images_a_modality=3)
    monkeypatch.chdir(tmp_path)
    run_evaluate(monkeypatch, "base")
    table = pd.read_parquet(layout.predictions("base"))
    assert (table["shuffled_image"] != table["image"]).all()
    assert (
        table["shuffled_image"].map(lambda path: Path(path).parent.name) == table["modality"]
    ).all()
    pairs = table[["image", "shuffled_image"]].drop_duplicates()
    assert pairs["image"].is_unique
    assert set(pairs["image"]) == set(pairs["shuffled_image"]), "every image is lent once"
    assert (table["blank_image"] == "").all()
    for variant in ABLATIONS:
        assert (table[f"{variant}_completion_tokens"] > 0).all()
    assert (table["shuffled_output"] != table["output"]).any()
    assert (table["blank_output"] != table["output"]).any()


def test_ablations_can_be_turned_off_and_change_no_answer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_evaluate(monkeypatch, "base")
    with_ablations = pd.read_parquet(layout.predictions("base"))
    assert with_ablations["shuffled_output"].isna().all(), (
        "one image a modality has none to be exchanged with"
    )
    text = (root / "params.yaml").read_text(encoding="utf-8")
    (root / "params.yaml").write_text(
        text.replace("ablations: true", "ablations: false"), encoding="utf-8"
    )
    run_evaluate(monkeypatch, "base")
    without = pd.read_parquet(layout.predictions("base"))
    assert without["blank_output"].isna().all()
    assert without["output"].equals(with_ablations["output"])


@pytest.mark.parametrize(
    ("said", "computed"), [(None, torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_answers_are_computed_in_what_is_asked_for(
    root: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, computed: torch.dtype
) -> None:
    change_settings(root, "evaluate", dtype=said)
    seen = []
    opened = policy.load_policy

    def load(*given: Any, **more: Any) -> Any:
        made = opened(*given, **more)
        seen.append(made.dtype)
        return made

    monkeypatch.setattr(policy, "load_policy", load)
    run_evaluate(monkeypatch, "base")
    assert seen == [computed]
    rows, _ = read_predictions(layout.predictions("base"), "evaluate@base")
    assert rows["answer"].notna().mean() > 0.9, "it answers all the same"


def change_settings(root: Path, group: str, **changes: Any) -> None:
    tree = read_yaml(root / "params.yaml")
    tree[group] |= changes
    (root / "params.yaml").write_text(dump_yaml(tree), encoding="utf-8")


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int = 2) -> None:
    """Run until so many windows are kept."""
    add, left = AnswerCache.add, [None] * after

    def add_or_stop(
        self: AnswerCache, key: str, rows: list[Key], answers: generate.Answers
    ) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        add(self, key, rows, answers)

    with monkeypatch.context() as inside:
        inside.setattr(AnswerCache, "add", add_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run_evaluate(monkeypatch, "base")


def generated(monkeypatch: pytest.MonkeyPatch, checkpoint: str = "base") -> list[Key]:
    """Evaluate; the rows that were not in the cache."""
    add = AnswerCache.add
    keys: list[Key] = []

    def recorded(self: AnswerCache, key: str, rows: list[Key], answers: generate.Answers) -> None:
        keys.extend(rows)
        add(self, key, rows, answers)

    with monkeypatch.context() as inside:
        inside.setattr(AnswerCache, "add", recorded)
        run_evaluate(monkeypatch, checkpoint)
    return keys


def test_an_evaluation_that_is_killed_goes_on_to_the_same_rows(
    root: Path, monkeypatch: pytest.MonkeyPatch, preloaded: Server
) -> None:
    change_settings(root, "evaluate", batch_size=1)
    assert len(generated(monkeypatch)) == 2 * 8 * 6
    undisturbed = pq.read_table(layout.predictions("base"))
    layout.predictions("base").unlink()
    shutil.rmtree(layout.ANSWER_CACHE)
    process = start(root, "evaluate", "base", server=preloaded)
    while len(parts := [*root.glob(PARTS)]) < 3 and process.poll() is None:
        time.sleep(0.01)
    kill(process, preloaded)
    assert process.returncode == -signal.SIGKILL
    assert not layout.predictions("base").exists()
    before = {part: part.read_bytes() for part in root.glob(PARTS)}
    assert len(before) >= len(parts)
    known = sum(len(json.loads(content)["answers"]) for content in before.values())
    assert 0 < known < 2 * 8 * 6
    assert len(generated(monkeypatch)) == 2 * 8 * 6 - known
    assert {part: part.read_bytes() for part in before} == before
    assert pq.read_table(layout.predictions("base")).equals(undisturbed)


@pytest.mark.parametrize("changed", ["checkpoint", "settings", "style", "question", "image"])
def test_answers_kept_of_anything_else_are_never_used(
    root: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    run_evaluate(monkeypatch, "base")
    parts = [*root.glob(PARTS)]
    assert len(parts) == 8, "a window per modality"
    for part in parts:
        content = json.loads(part.read_text(encoding="utf-8"))
        content["answers"] = [["stale", ids] for _, ids in content["answers"]]
        part.write_text(json.dumps(content), encoding="utf-8")
    if changed == "checkpoint":
        path = layout.model("base") / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif changed == "settings":
        change_settings(root, "evaluate", max_new_tokens=11)
    elif changed == "style":
        change_settings(root, "prompt", style="think")
    elif changed == "question":
        for axis in ("modality", "task"):
            for split in (
                (root / layout.split(axis, "ct", "test", "grouped")).parents[1].glob("*/test.json")
            ):
                split.write_text(
                    split.read_text(encoding="utf-8").replace(" A)", "  A)"), encoding="utf-8"
                )
    else:
        shutil.copy(layout.images("oct") / "0.png", layout.images("ct") / "0.png")
    run_evaluate(monkeypatch, "base")
    table = pd.read_parquet(layout.predictions("base"))
    reused = table.loc[table["output"] == "stale", "modality"]
    # an image of CT concerns the questions about CT only
    assert set(reused) == (set(table["modality"]) - {"ct"} if changed == "image" else set())


def test_kept_answers_are_used_where_nothing_has_changed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch)
    part, *_ = sorted(root.glob(PARTS))
    content = json.loads(part.read_text(encoding="utf-8"))
    content["answers"][0][0] = "kept"
    part.write_text(json.dumps(content), encoding="utf-8")
    run_evaluate(monkeypatch, "base")
    table = pd.read_parquet(layout.predictions("base"))
    assert (table[["output", "blank_output"]] == "kept").to_numpy().sum() == 1


def add_question(root: Path, slug: str, question_id: str) -> None:
    """Copy the first test question of a modality under another id, with another text."""
    path = root / layout.split("modality", slug, "test", "grouped")
    items = json.loads(path.read_text(encoding="utf-8"))
    added = items[0] | {"question_id": question_id, "problem": f"Again: {items[0]['problem']}"}
    for axis, cell in (("modality", slug), ("task", items[0]["question_type"])):
        split = root / layout.split(axis, cell, "test", "grouped")
        before = json.loads(split.read_text(encoding="utf-8"))
        split.write_text(json.dumps([*before, added]), encoding="utf-8")


def test_new_questions_leave_the_answers_to_others_as_they_are(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(generated(monkeypatch)) == 2 * 8 * 6
    before = pd.read_parquet(layout.predictions("base")).set_index("question_id")
    assert generated(monkeypatch) == [], "nothing is new"
    add_question(root, "oct", "a")
    add_question(root, "ct", "b")
    keys = generated(monkeypatch)
    assert len(keys) == 2 * 2 * 7, "the windows of two modalities, of 7 questions each"
    table = pd.read_parquet(layout.predictions("base")).set_index("question_id")
    assert len(table) == 8 * 6 + 2
    others = before[~before["modality"].isin(["ct", "oct"])]
    pd.testing.assert_frame_equal(table.loc[others.index], others)
    shutil.rmtree(layout.ANSWER_CACHE)
    run_evaluate(monkeypatch, "base")
    afresh = pd.read_parquet(layout.predictions("base")).set_index("question_id")
    pd.testing.assert_frame_equal(table, afresh)


def test_another_policy_of_the_same_weights_shares_the_answers(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_evaluate(monkeypatch, "base")
    base = pd.read_parquet(layout.predictions("base"))
    shutil.copytree(layout.model("base"), layout.model("ct"))
    (layout.model("ct") / "README.md").write_text("a card", encoding="utf-8")
    assert generated(monkeypatch, "ct") == []
    ct = pd.read_parquet(layout.predictions("ct"))
    pd.testing.assert_frame_equal(ct.drop(columns="checkpoint"), base.drop(columns="checkpoint"))


def test_the_cache_keeps_to_its_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_settings(root, "cache", answers_gb=1e-6)  # 1,000 bytes
    run_evaluate(monkeypatch, "base")
    assert layout.predictions("base").exists()
    assert sum(part.stat().st_size for part in root.glob(PARTS)) <= 1000


def test_several_processes_share_the_questions_to_the_same_rows(
    root: Path, monkeypatch: pytest.MonkeyPatch, preloaded: Server
) -> None:
    change_settings(root, "evaluate", batch_size=5)
    run_evaluate(monkeypatch, "base")
    alone = pq.read_table(layout.predictions("base"))
    shutil.rmtree(layout.ANSWER_CACHE)
    interrupt(monkeypatch)  # begun by one, finished by two
    code, out, said = finish(root, "evaluate", "base", server=preloaded, **{PROCESSES: "2"})
    assert code == 0, said
    assert out == f"base: 48 questions answered -> {layout.predictions('base')}\n"
    assert re.search(r"base: (\d+) of 96 answers are in .scratch/answers", said)
    shared = pq.read_table(layout.predictions("base"))
    assert shared.equals(alone)
    assert json.loads(shared.schema.metadata[b"provenance"])["batch_sizes"] == [5]


def test_a_share_that_fails_says_why_and_the_stage_fails(root: Path, preloaded: Server) -> None:
    change_settings(root, "evaluate", batch_size=5)
    (layout.images("oct") / "0.png").write_bytes(b"no image")
    code, _, said = finish(root, "evaluate", "base", server=preloaded, **{PROCESSES: "2"})
    assert code == ExitCode.INPUT
    assert "data/images/oct/0.png is not a readable image" in said
    assert "error: process " in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not layout.predictions("base").exists()


def test_a_gpu_that_was_promised_and_is_not_there_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(InputError, match=r"CUDA_VISIBLE_DEVICES=0, but torch .* sees no GPU"):
        run_evaluate(monkeypatch, "base")
    assert not layout.predictions("base").exists()


def imported(module: str) -> set[str]:
    """Modules of `stages` in a module's import closure, imports in functions included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = REPOSITORY / name.replace(".", "/")
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not source.is_file():
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import | ast.ImportFrom)
                else []
            )
            if isinstance(node, ast.ImportFrom):
                # `from stages.grpo import generate` imports the package and may import a module of
                # it
                names = [f"{node.module}", *(f"{node.module}.{each}" for each in names)]
            waiting += [each for each in names if each.partition(".")[0] == "stages"]
    return seen


def test_evaluating_imports_neither_the_answer_rule_nor_scoring() -> None:
    modules = imported("stages.evaluate")
    assert {"stages.predictions.schema", "stages.generation.generate"} <= modules
    assert "stages.answers.extraction" in imported("stages.report"), (
        "the search finds what is there"
    )
    assert not [
        name
        for name in modules
        if name.startswith(("stages.scoring", "stages.grpo.rewards", "stages.reporting"))
    ]
