"""Stage report on a fake pipeline: numbers, determinism, a self-contained page, refusals."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from stages import prior, report
from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import write_json
from stages.core.params import load_params
from stages.core.yaml_files import dump_yaml, load_yaml, read_yaml
from stages.corpus.dataset.split_files import read_split
from stages.corpus.quarantine.ledger import RecordLocation, Row, read_quarantine, write_quarantine
from stages.corpus.quarantine.reasons import Reason
from stages.corpus.splitting.released_join import NONE_RELEASED
from stages.predictions.schema import LEFT_OUT
from stages.profiles.proposals.propose import with_folds
from stages.reporting import build, figures
from stages.reporting.headline import DISCLAIMER, verdict
from stages.reporting.labels import percent, signed
from stages.reporting.released import summarise_released
from stages.scoring.published.released_splits import SPLITS
from stages.scoring.tables import CELLS, Target
from stages.taxonomy import fold_slug
from tests.conftest import RunStage, change_params
from tests.fakes import (
    CHECKPOINTS,
    PROVENANCE,
    REPOSITORY,
    make_predictions,
    make_questions,
    make_training_log,
    write_predictions,
    write_project,
)
from tests.omnimedvqa import AXES

CROSSED = [
    f"{name}_{axis}.csv" for name in ("cross", "slices", "to_base", "visual_gain") for axis in AXES
]
TABLES = sorted(
    [
        *CROSSED,
        "datasets.csv",
        "in_domain.csv",
        "predictions",
        "reward_hacking.csv",
    ]
)
FIGURES = sorted(
    [
        "training.png",
        *(f"{name}{axis}.png" for name in ("", "to_base_", "visual_gain_") for axis in AXES),
    ]
)
FILES = [
    "index.html",
    "metrics.json",
    "provenance.json",
    "report.md",
    "summary.json",
    "training.csv",
]
OUTPUTS = sorted(["cards", "figures", "tables", *FILES])
FEW = ("ct", "mri", "oct", "lesion-grading")
"""Checkpoints of most projects here: a report takes as long as it has checkpoints."""
SEVERAL = ("ct", "oct", "disease-diagnosis", "lesion-grading")
"""Two checkpoints of each axis."""
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\x00\u202e\"'&amp;"


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are composed and not drawn, which takes half of a report's time."""

    def save(figure: object, path: Path, provenance: object) -> None:
        path.write_bytes(b"")

    monkeypatch.setattr(figures, "_save", save)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of few checkpoints before its report, to be read only."""
    root = tmp_path_factory.mktemp("written")
    write_project(root, per_cell=8, checkpoints=FEW)
    return root


@pytest.fixture
def project(written: Path, composed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same to be changed."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose report is made, to be read only."""
    root = tmp_path_factory.mktemp("made")
    write_project(root, per_cell=8, images=True)
    with contextlib.chdir(root):
        report.make()
    return root


def replace(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Write one checkpoint's predictions again, changed."""
    write_predictions(
        layout.predictions(name), change(make_predictions(make_questions(per_cell=8), name))
    )


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def words(self) -> str:
        return " ".join(self.text.split())


def page(root: Path = Path()) -> Page:
    return Page((root / build.PAGE).read_text(encoding="utf-8"))


def metrics_of(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / build.METRICS).read_text(encoding="utf-8")))


def test_all_outputs_are_made_and_metrics_say_where_they_come_from(made: Path) -> None:
    assert sorted(path.name for path in (made / layout.REPORT).iterdir()) == OUTPUTS
    assert sorted(path.name for path in (made / layout.REPORT / "tables").iterdir()) == TABLES
    assert sorted(path.name for path in (made / layout.REPORT / "figures").iterdir()) == FIGURES
    metrics = metrics_of(made)
    assert list(metrics) == ["summary", "base", "checkpoints", "splits", "missing", "provenance"]
    assert metrics["missing"] == []
    assert list(metrics["checkpoints"]) == list(CHECKPOINTS)
    assert metrics["provenance"]["params"] == {
        "report": load_params(made / layout.PARAMS).report.model_dump(),
        "splits.kind": "grouped",
    }


def test_beside_the_tables_stands_where_they_and_their_predictions_come_from(made: Path) -> None:
    facts = json.loads((made / build.PROVENANCE).read_text(encoding="utf-8"))
    predictions = facts.pop("predictions")
    assert facts == metrics_of(made)["provenance"]
    assert predictions == [{"checkpoints": ["base", *CHECKPOINTS], "provenance": PROVENANCE}]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_carries_its_provenance(made: Path, name: str) -> None:
    with Image.open(made / layout.REPORT / "figures" / name) as figure:
        texts = {key: value for key, value in figure.info.items() if isinstance(value, str)}
    assert list(texts) == ["provenance"]
    assert json.loads(texts["provenance"]) == json.loads(
        (made / build.PROVENANCE).read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("axis", AXES)
def test_cross_tables_agree_with_the_metrics_and_count_the_questions(made: Path, axis: str) -> None:
    metrics = metrics_of(made)
    table = pd.read_csv(
        made / layout.REPORT / "tables" / f"cross_{axis}.csv", index_col="checkpoint"
    )
    column = "by_modality" if axis == "modality" else "by_question_type"
    assert list(table.index) == ["questions", "base", *AXES[axis]]
    assert list(table.columns) == [*AXES[axis], "macro"]
    for name in ["base", *AXES[axis]]:
        found = metrics["base"][axis] if name == "base" else metrics["checkpoints"][name]
        assert table.loc[name].to_dict() == {
            cell: found[column][cell]["accuracy"] for cell in AXES[axis]
        } | {"macro": found["macro"]}
        assert table.loc["questions", list(AXES[axis])].to_dict() == {
            cell: found[column][cell]["n"] for cell in AXES[axis]
        }


def test_the_page_refers_to_nothing_outside_itself(made: Path) -> None:
    html = (made / build.PAGE).read_text(encoding="utf-8")
    tags = page(made).tags
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in tags}
    references = [
        attributes[name]
        for _, attributes in tags
        for name in ("src", "href", "srcset", "data")
        if name in attributes
    ]
    assert references
    assert all(value and value.startswith(("#", "data:")) for value in references)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "url(" not in html
    assert "@import" not in html
    assert "://" not in html


def test_the_page_can_be_walked_without_seeing_it(made: Path) -> None:
    tags = page(made).tags
    names = [tag for tag, _ in tags]
    identifiers = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert names.count("h1") == 1
    assert names.count("table") == names.count("caption")
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    labels = [
        attributes["aria-labelledby"] for _, attributes in tags if "aria-labelledby" in attributes
    ]
    links = [str(attributes["href"])[1:] for tag, attributes in tags if tag == "a"]
    assert {*labels, *links} <= set(identifiers)
    scrolls = [attributes for _, attributes in tags if attributes.get("class") == "scroll"]
    assert all(
        attributes["tabindex"] == "0" and attributes["role"] == "region" for attributes in scrolls
    )
    assert all(
        "aria-label" in attributes or "aria-hidden" in attributes
        for tag, attributes in tags
        if tag == "svg"
    )


def test_the_page_says_how_it_went(made: Path) -> None:
    summary = metrics_of(made)["summary"]
    words = page(made).words()
    assert f"13 checkpoints from one base: {verdict(summary)}." in words
    assert (
        f"{100 * summary['in_domain_base']:.1f}% before, {100 * summary['in_domain']:.1f}% after"
        in words
    )
    assert DISCLAIMER in words
    assert (
        f"{summary['beat_base']} of 13 answer more questions of their own kind correctly" in words
    )
    assert "the image cannot be used: the file is empty" in words
    assert "md5:5d41402abc4b2a76b9719d911017c592" in words


def test_two_runs_give_the_same_bytes(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    digests = []
    for _ in range(2):
        report.make()
        digests.append(
            {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(layout.REPORT.rglob("*.*"))
                if path.is_file()
            }
        )
    assert digests[0] == digests[1]


@pytest.mark.parametrize(("dataset", "synthetic"), [("Phantom", True), ("Chest CT Scan", False)])
def test_synthetic_data_is_called_so_from_the_names_of_the_data_sets(
    composed: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dataset: str,
    synthetic: bool,
) -> None:
    write_project(tmp_path, per_cell=8, dataset=dataset, checkpoints=FEW)
    monkeypatch.chdir(tmp_path)
    report.make()
    assert ("Every image behind these numbers is a drawn phantom" in page().words()) is synthetic
    assert ("Phantoms are drawn by rules" in page().words()) is synthetic
    assert page().words().count(DISCLAIMER) == 2


def test_the_blind_baseline_and_what_the_image_contributes_stand_beside_the_accuracy(
    made: Path,
) -> None:
    summary, words = metrics_of(made)["summary"], page(made).words().replace("\xa0", " ")
    blind, gain = 100 * summary["blind_baseline"], 100 * summary["visual_gain"]
    assert re.search(rf"The blind baseline, .* reaches {blind:.1f}% on the same", words)
    assert f"mean accuracy falls by {gain:.1f} points" in words
    for name, entry in metrics_of(made)["checkpoints"].items():
        own = entry["in_domain"]
        assert (
            f"{100 * own['blind_baseline']['accuracy']:.1f}"
            f" {100 * own['blind_baseline']['low']:.1f} to"
            f" {100 * own['blind_baseline']['high']:.1f}" in words
        ), name


def test_images_of_cases_are_inlined_and_described(made: Path) -> None:
    seen = page(made)
    images = [attributes for tag, attributes in seen.tags if tag == "img"]
    assert len(images) > 13
    assert all(str(each["src"]).startswith("data:image/jpeg;base64,") for each in images)
    assert all(str(each["alt"]).startswith("Image of question Phantom_") for each in images)
    assert "right only without its image" in seen.text
    assert "With another image of the modality:" in seen.text
    assert (made / build.PAGE).stat().st_size < 3_000_000


def test_images_can_be_left_out_of_the_page(project: Path) -> None:
    change_params("report", images=False)
    report.make()
    assert "data:image" not in (project / build.PAGE).read_text(encoding="utf-8")
    assert "Images are left out (report.images)" in page().words()


def test_no_published_number_stands_beside_results_for_other_questions(made: Path) -> None:
    for name in (build.PAGE, Path("report/report.md"), build.METRICS):
        assert "69.91" not in (made / name).read_text(encoding="utf-8")
    assert "No published number stands beside these" in page(made).words()


def release(root: Path, **digests: str) -> None:
    """A project with released splits, whose test files are Med-R1's but for `digests` by slug."""
    write_project(root, per_cell=8, kind="released")
    files = [
        {
            "path": f"{each.axis}/{each.slug}_test.json",
            "axis": each.axis,
            "split": each.slug,
            "part": "test",
            "questions": 1000,
            "joined": 999,
            "sha256": digests.get(each.slug, each.test_digest),
        }
        for each in SPLITS
    ]
    lost = {"file": "modality/ct_test.json", "index": 3, "fault": "image-missing"}
    unused = {"path": "modality/unknown_train.json", "questions": 1, "why": "unknown"}
    write_json(
        root / layout.RELEASED,
        NONE_RELEASED
        | {
            "folder": "theirs",
            "files": files,
            "unused": [unused],
            "records_unused": 7,
            "in_train_and_test": {"modality": {"ct": ["a", "b"]}},
            "not_joined": [lost] * len(files),
        },
    )


def test_published_numbers_stand_beside_ours_for_the_released_test_questions(
    composed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(tmp_path)
    monkeypatch.chdir(tmp_path)
    report.make()
    html = (tmp_path / build.PAGE).read_text(encoding="utf-8")
    before, after = html.split('<section id="published"')
    assert "69.91" in after
    assert "69.91" not in before
    text = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    before, after = text.split("## Published for the same test questions")
    assert "69.91" in after
    assert "69.91" not in before
    words = page().words()
    assert "The splits are released:" in words
    assert "Of 13000 released questions 12987 joined the corpus (not: image-missing 13)" in words
    assert "1 in files of no split here (modality/unknown_train.json)" in words
    assert "7 questions of the corpus are in none of the files" in words
    assert "2 of the test questions are training questions of the same split" in words
    rows = pd.read_csv(tmp_path / "report/tables/published.csv").set_index("measure")
    row = rows.loc["mean accuracy over 8 modalities"]
    checkpoints = metrics_of(tmp_path)["checkpoints"]
    own = [checkpoints[slug]["in_domain"]["accuracy"] for slug in AXES["modality"]]
    cross = pd.read_csv(tmp_path / "report/tables/cross_modality.csv").set_index("checkpoint")
    macro = cross["macro"][list(AXES["modality"])].mean()
    assert row["published"] == 69.91
    assert row["ours, in-domain"] == pytest.approx(100 * np.mean(own), abs=0.006)
    assert row["ours, all cells"] == pytest.approx(100 * macro, abs=0.006)
    row = rows.loc["cross-modality accuracy over Qwen2-VL-2B"]
    relative = 100 * (macro / cross["macro"]["base"] - 1)
    assert row["ours, all cells"] == pytest.approx(relative, abs=0.06)


@pytest.mark.parametrize(
    "change",
    [{"joined": 989}, {"part": "train"}, {"axis": "modality", "split": "endoscopy"}],
)
def test_an_axis_compares_only_if_nearly_all_of_its_tests_are_there_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    release(tmp_path)
    monkeypatch.chdir(tmp_path)
    content = json.loads(layout.RELEASED.read_text(encoding="utf-8"))
    files = content["files"]
    if "split" in change:
        files.append(files[0] | change)
    else:
        files[0] |= change
    assert summarise_released(content)["med_r1"] == ["task"]


def test_other_test_questions_on_one_axis_leave_only_the_numbers_of_the_other(
    composed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(tmp_path, oct="0" * 64)
    monkeypatch.chdir(tmp_path)
    report.make()
    rows = pd.read_csv(tmp_path / "report/tables/published.csv")
    assert list(rows["measure"]) == ["cross-task accuracy over Qwen2-VL-2B"]
    assert metrics_of(tmp_path)["splits"]["released"]["med_r1"] == ["task"]
    assert "69.91" not in (tmp_path / build.PAGE).read_text(encoding="utf-8")


def cross_validate(root: Path, folds: int) -> None:
    """The project as if each checkpoint were those of so many folds, with the same answers."""
    path = root / layout.PARAMS
    tree = read_yaml(path)
    groups = with_folds({"checkpoints": tree["checkpoints"]}, folds)
    tree["splits"]["folds"] = folds
    path.write_text(dump_yaml(tree | groups), encoding="utf-8")

    def fold_of(image: str) -> int:
        return int(hashlib.sha256(image.encode()).hexdigest(), 16) % folds + 1

    for axis, slugs in AXES.items():
        for slug in slugs:
            tested = read_split(layout.split(axis, slug, "test", "grouped"))
            write_json(layout.split(axis, slug, "train", "grouped"), [])
            for number in range(1, folds + 1):
                sides = {
                    "train": [each for each in tested if fold_of(each["image"]) != number],
                    "test": [each for each in tested if fold_of(each["image"]) == number],
                }
                for part, items in sides.items():
                    name = fold_slug(slug, number)
                    write_json(layout.split(axis, name, part, "grouped"), items)
    for name in FEW:
        table = pq.read_table(layout.predictions(name))
        of = [fold_of(image) for image in table.column("image").to_pylist()]
        for number in range(1, folds + 1):
            fold = fold_slug(name, number)
            own = table.filter(pa.array([each == number for each in of]))
            renamed = pa.array([fold] * len(own), type=own.schema.field("checkpoint").type)
            at = own.schema.get_field_index("checkpoint")
            pq.write_table(
                own.set_column(at, own.schema.field(at), renamed), layout.predictions(fold)
            )
            shutil.copy(layout.training_log(name), layout.training_log(fold))
            shutil.copy(layout.training_provenance(name), layout.training_provenance(fold))
        layout.predictions(name).unlink()


def test_the_checkpoints_of_all_folds_are_one_row(project: Path) -> None:
    report.make()
    before = metrics_of(project)
    sizes = pd.read_csv(project / "report/tables/cross_modality.csv")
    cross_validate(project, 3)
    report.make()
    after = metrics_of(project)
    for name, entry in after["checkpoints"].items():
        assert entry.pop("folds") == [fold_slug(name, number) for number in (1, 2, 3)]
    assert after["checkpoints"] == before["checkpoints"]
    assert after["summary"] == before["summary"]
    pd.testing.assert_frame_equal(pd.read_csv(project / "report/tables/cross_modality.csv"), sizes)
    assert after["splits"]["folds"] == 3
    words = page().words()
    assert "A row is 3 checkpoints." in words
    card = (project / "report/cards/ct.md").read_text(encoding="utf-8")
    assert "ct-fold-1, ct-fold-2, ct-fold-3" in card
    assert (project / "report/report.md").read_text(encoding="utf-8").count("A row is 3") == 1


def test_a_fold_of_other_settings_or_none_is_refused(project: Path) -> None:
    cross_validate(project, 2)
    path = layout.predictions("ct-fold-2")
    table = pq.read_table(path)
    other = json.dumps(PROVENANCE | {"corpus": "another"})
    pq.write_table(table.replace_schema_metadata({"provenance": other}), path)
    with pytest.raises(InputError, match=r"ct-fold-2\.parquet was made with other settings"):
        report.make()
    path.unlink()
    with pytest.raises(InputError, match=r"ct-fold-2"):
        report.make()


def test_what_small_tests_leave_open_is_said(made: Path) -> None:
    wide = [
        name
        for name, entry in metrics_of(made)["checkpoints"].items()
        if entry["in_domain"]["high"] - entry["in_domain"]["low"] > 0.1
    ]
    assert f"For {len(wide)} of 13 checkpoints the 95% interval of the gain" in page(made).words()


def test_signs_of_reward_hacking_are_shown_with_what_was_written(project: Path) -> None:
    replace("ct", lambda rows: rows.assign(output="<answer>A</answer><answer>A</answer>"))
    report.make()
    words = page().words()
    n = sum(
        metrics_of(project)["checkpoints"]["ct"]["by_modality"][slug]["n"]
        for slug in AXES["modality"]
    )
    assert f"CT: repeated tags, {n} of {n}" in words
    assert "<answer>A</answer><answer>A</answer>" in words


def test_without_ablations_visual_gains_are_missing_and_never_zero(project: Path) -> None:
    for name in ["base", *FEW]:
        write_predictions(
            layout.predictions(name),
            make_predictions(make_questions(per_cell=8), name, ablations=False),
        )
    report.make()
    assert (
        "Missing by modality: the questions were not evaluated with other images" in page().words()
    )
    assert metrics_of(project)["summary"]["visual_gain"] is None
    assert "visual gain of at least one checkpoint" in page().words()
    build.show()
    table = pd.read_csv(
        layout.REPORT / "tables" / "visual_gain_modality.csv", index_col="checkpoint"
    )
    assert table.drop("questions").isna().to_numpy().all()
    assert not (layout.REPORT / "figures" / "visual_gain_modality.png").exists()


def test_an_empty_cell_is_shown_as_missing(project: Path) -> None:
    for name in ("base", "ct"):
        rows = make_predictions(make_questions(per_cell=8), name)
        write_predictions(Path("saved", f"{name}.parquet"), rows[rows["modality"] != "oct"])
    build.rebuild(Path("saved"))
    for sheet in ("cross", "visual_gain", "to_base"):
        table = pd.read_csv(
            layout.REBUILT / "tables" / f"{sheet}_modality.csv", index_col="checkpoint"
        )
        assert table.loc["questions", "oct"] == 0
        assert table.drop("questions")[["oct", "macro"]].isna().to_numpy().all()
        assert not table[["ct", "mri"]].isna().to_numpy().any()
    assert metrics_of_rebuilt()["checkpoints"]["ct"]["by_modality"]["oct"] == {
        "accuracy": None,
        "n": 0,
    }


def metrics_of_rebuilt() -> dict[str, Any]:
    return dict(json.loads((layout.REBUILT / "metrics.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_card_tells_data_results_use_and_limits(made: Path, name: str) -> None:
    text = (made / layout.REPORT / "cards" / f"{name}.md").read_text(encoding="utf-8")
    own = metrics_of(made)["checkpoints"][name]["in_domain"]
    assert text.startswith("---\nlicense: other\nlicense_name: as-the-base\n"), (
        "which is not on record here"
    )
    assert (
        load_yaml(text.split("---")[1], Path("front matter"))["pipeline_tag"]
        == "image-text-to-text"
    )
    assert "Not for clinical use." in text
    assert "Corpus: `md5:5d41402abc4b2a76b9719d911017c592` (drawn phantoms, not patients)" in text
    train = json.loads(
        (made / layout.split(CHECKPOINTS[name], name, "train", "grouped")).read_text()
    )
    assert f"Splits: grouped; {len(train)} questions" in text
    assert (
        f"| {name} | {own['n']} | {percent(own['accuracy'])} [{percent(own['accuracy_low'])} to"
        f" {percent(own['accuracy_high'])}]" in text
    )
    assert (
        f"{percent(own['blind_baseline']['accuracy'])} [{percent(own['blind_baseline']['low'])} to"
        in text
    )
    assert f"{signed(own['gain'])} [{signed(own['low'])} to {signed(own['high'])}]" in text
    for title in (
        "## Intended use",
        "## Limits",
        "## What the base may have seen",
        "## Settings",
        "## Provenance",
    ):
        assert title in text


@pytest.mark.parametrize(
    ("source", "licence", "said"),
    [
        ("infra/base", {"license": "apache-2.0"}, "trained from scratch on drawings"),
        (
            "Qwen/Qwen2.5-VL-3B-Instruct",
            {"license": "other", "license_name": "qwen-research"},
            "arXiv 2606.10066",
        ),
    ],
)
def test_a_card_tells_what_its_base_may_have_seen_and_how_it_was_trained(
    project: Path, source: str, licence: dict[str, str], said: str
) -> None:
    base = {"source": source, "licence": licence if "Qwen" in source else {}}
    trained = {
        "corpus": "md5:0",
        "params": {"base": {"source": source}, "grpo": {"beta": 0.04}},
        "base_model": base,
    }
    layout.training_provenance("ct").write_text(json.dumps(trained), encoding="utf-8")
    report.make()
    text = (layout.REPORT / "cards" / "ct.md").read_text(encoding="utf-8")
    assert said in text
    assert f"from `{source}`" in text
    assert "grpo.beta: 0.04" in text
    assert ("base_model:" in text) is ("Qwen" in source)
    front = load_yaml(text.split("---")[1], Path("front matter"))
    assert {field: front.get(field) for field in licence} == licence, (
        "a model carries its base's licence on"
    )


def test_the_markdown_holds_what_the_page_holds(made: Path) -> None:
    text, words = (
        (made / layout.REPORT / "report.md").read_text(encoding="utf-8"),
        page(made).words(),
    )
    for title in (
        "In-domain",
        "Across domains",
        "Reward hacking",
        "Cases",
        "What not to conclude",
        "Training",
        "Data",
        "Provenance",
    ):
        assert f"\n## {title}\n" in text
        assert title in words
    for entry in metrics_of(made)["checkpoints"].values():
        own = entry["in_domain"]
        assert (
            f"{percent(own['blind_baseline']['accuracy'])} [{percent(own['blind_baseline']['low'])}"
            f" to {percent(own['blind_baseline']['high'])}]" in text
        )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.endswith(" |") for line in rows)
    assert "data:image" not in text


def test_what_a_model_wrote_stays_text_in_markdown(project: Path) -> None:
    replace("ct", lambda rows: rows.assign(output="```\n# not a title\n<script>alert(1)</script>"))
    report.make()
    assert "````text\n```\n# not a title\n<script>alert(1)</script>\n````" in (
        layout.REPORT / "report.md"
    ).read_text(encoding="utf-8")


def tables_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "tables").rglob("*.*"))}


def test_every_table_is_made_again_from_predictions_and_floors(
    composed: None, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (layout.PREDICTIONS, layout.PRIOR):
        shutil.copytree(made / folder, tmp_path / folder)
    shutil.copy(made / layout.PARAMS, tmp_path)
    monkeypatch.chdir(tmp_path)
    build.rebuild(layout.PREDICTIONS)
    assert tables_in(layout.REBUILT) == tables_in(made / layout.REPORT)
    again, metrics = (
        json.loads((layout.REBUILT / "metrics.json").read_text(encoding="utf-8")),
        metrics_of(made),
    )
    assert {name: again[name] for name in ("summary", "base", "checkpoints")} == {
        name: metrics[name] for name in ("summary", "base", "checkpoints")
    }
    assert not (layout.REPORT / "index.html").exists(), "what the pipeline made is left alone"


def test_from_predictions_alone_what_is_missing_is_said_and_the_rest_is_the_same(
    composed: None,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(made / layout.PREDICTIONS, tmp_path / "saved")
    (tmp_path / "saved" / "oct.parquet").unlink()
    shutil.copy(made / layout.PARAMS, tmp_path)
    monkeypatch.chdir(tmp_path)
    build.rebuild(Path("saved"), out=Path("out"))
    said = capsys.readouterr().out
    words = Page(Path("out/index.html").read_text(encoding="utf-8")).words()
    for part in (
        "predictions of oct",
        "blind baseline, majority letter",
        "training curves",
        "sizes and leaks of the splits",
        "refused inputs",
    ):
        assert part in said
        assert part in words
    assert "Leakage is unknown." in words
    ours, theirs = (
        pd.read_csv(folder / "tables" / "in_domain.csv", index_col=0)
        for folder in (Path("out"), made / layout.REPORT)
    )
    assert ours["blind_baseline"].isna().all(), "missing, not zero"
    shared = [
        column
        for column in ours
        if column in theirs and column not in ("p_holm", "balanced", "majority")
    ]
    assert len(shared) > 25
    pd.testing.assert_frame_equal(ours[shared], theirs.loc[ours.index, shared])
    for axis in AXES:
        ours, theirs = (
            pd.read_csv(folder / "tables" / f"visual_gain_{axis}.csv", index_col=0)
            for folder in (Path("out"), made / layout.REPORT)
        )
        pd.testing.assert_frame_equal(ours, theirs.loc[ours.index])


def test_the_predictions_are_among_the_tables_with_answer_and_correctness(made: Path) -> None:
    folder = made / layout.REPORT / "tables" / "predictions"
    assert {path.stem for path in folder.iterdir()} == {"base", *CHECKPOINTS}
    rows = pd.read_parquet(folder / "ct.parquet")
    assert (rows["correct"] == (rows["answer"] == rows["gold"])).all()
    own = rows[rows["modality_test"] & (rows["modality"] == "ct")]
    told = metrics_of(made)["checkpoints"]["ct"]["in_domain"]
    assert (len(own), round(own["correct"].mean(), 4)) == (told["n"], told["accuracy"])


def test_predictions_on_another_kind_of_split_are_refused_by_name(project: Path) -> None:
    table = make_predictions(make_questions(per_cell=8), "mri")
    write_predictions(
        layout.predictions("mri"), table, PROVENANCE | {"params": {"splits.kind": "random"}}
    )
    for make in (report.make, lambda: build.rebuild(layout.PREDICTIONS)):
        with pytest.raises(
            InputError,
            match=r"the predictions of 'mri' were made on 'random' splits, not on 'grouped'",
        ):
            make()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"saved/base\.parquet"),
        (["base"], r"^saved .*<checkpoint>\.parquet"),
        (["base", "ct", "pet"], "predictions of pet"),
    ],
)
def test_a_folder_that_is_none_of_predictions_is_refused(
    project: Path, names: list[str], message: str
) -> None:
    Path("saved").mkdir()
    for name in names:
        shutil.copy(layout.predictions("ct" if name == "pet" else name), f"saved/{name}.parquet")
    with pytest.raises(InputError, match=message):
        build.rebuild(Path("saved"))
    assert not layout.REBUILT.exists()


def test_a_checkpoint_of_another_method_stands_beside_that_of_grpo(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = build.targets_of(load_params())
    with_sft = {**targets, "sft-ct": Target("modality", "ct", "sft")}
    ordered = sorted(
        with_sft,
        key=lambda name: (
            with_sft[name].axis,
            list(AXES[with_sft[name].axis]).index(with_sft[name].cell),
        ),
    )
    write_predictions(
        layout.predictions("sft-ct"),
        make_predictions(make_questions(per_cell=8), "sft-ct", cell="ct"),
    )
    layout.training_provenance("sft-ct").write_text(json.dumps(PROVENANCE), encoding="utf-8")
    tree = read_yaml(layout.PARAMS)
    entries = load_params().model_copy(
        update={
            "checkpoints": load_params().checkpoints | {"sft-ct": load_params().checkpoints["ct"]}
        }
    )
    assert "sft-ct" not in tree["checkpoints"]
    monkeypatch.setattr(report, "load_params", lambda: entries)
    monkeypatch.setattr(build, "targets_of", lambda _: {name: with_sft[name] for name in ordered})
    report.make()
    assert list(metrics_of(project)["checkpoints"])[:2] == ["ct", "sft-ct"]
    assert metrics_of(project)["summary"]["checkpoints"] == len(FEW)
    assert "CT with GRPO against CT, SFT:" in page().words()


def seen_by_modality(root: Path, kind: str) -> tuple[int, int]:
    """Test questions with an image of train, and all of them, counted from the split files."""
    seen = total = 0
    for slug in AXES["modality"]:
        paths = [root / layout.split("modality", slug, part, kind) for part in ("train", "test")]
        train, test = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
        images = {question["image"] for question in train}
        seen += sum(question["image"] in images for question in test)
        total += len(test)
    return seen, total


def test_grouped_splits_are_said_to_be_free_of_leaks_beside_what_random_ones_leak(
    made: Path,
) -> None:
    seen, total = seen_by_modality(made, "grouped")
    assert seen == 0
    words = page(made).words()
    assert "The splits are grouped:" in words
    assert "how many others share a patient with train is unknown" in words
    assert "Ward 8 of 9" in words
    sentences = words.partition("In the splits by modality, ")[2]
    own, _, drawn = sentences.partition("With random splits, ")
    assert own.startswith(f"0 of {total} test questions (0.0%)")
    seen, total = seen_by_modality(made, "random")
    assert f" {seen} of {total} by modality ({100 * seen / total:.1f}%;" in drawn


def test_the_share_of_seen_test_images_of_random_splits_is_counted(
    composed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path, per_cell=8, kind="random", checkpoints=FEW)
    monkeypatch.chdir(tmp_path)
    report.make()
    seen, total = seen_by_modality(tmp_path, "random")
    assert seen > 0
    words = page().words()
    assert "The splits are random:" in words
    assert (
        f"In the splits by modality, {seen} of {total} test questions ({100 * seen / total:.1f}%)"
        in words
    )
    assert "With random splits" not in words


def test_metrics_hold_the_leaks_of_both_kinds(made: Path) -> None:
    splits = metrics_of(made)["splits"]
    assert splits["kind"] == "grouped"
    for axis in AXES:
        assert splits["leaks"]["grouped"][axis] | {"test": 0} == {
            "test": 0,
            "image": 0,
            "group": 0,
            "other_axis": 0,
        }
    seen, total = seen_by_modality(made, "random")
    assert (
        splits["leaks"]["random"]["modality"]["image"],
        splits["leaks"]["random"]["modality"]["test"],
    ) == (seen, total)


def test_counts_of_leaks_that_are_not_those_of_the_splits_are_refused(project: Path) -> None:
    leaks = json.loads(layout.LEAKS.read_text(encoding="utf-8"))
    leaks["grouped"]["modality"]["mri"]["image"] += 1
    layout.LEAKS.write_text(json.dumps(leaks), encoding="utf-8")
    with pytest.raises(
        InputError,
        match=r"split modality/mri has (\d+) .* 0 .*leaks\.json .*\1 and 1\b.*`dvc repro",
    ):
        report.make()


def test_what_a_model_wrote_is_shown_and_never_obeyed(project: Path) -> None:
    replace("ct", lambda rows: rows.assign(output=HOSTILE))
    report.make()
    seen = page()
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}" in seen.text
    assert not {"script", "img"} & {tag for tag, _ in seen.tags}


def test_a_long_completion_is_cut(project: Path) -> None:
    replace("ct", lambda rows: rows.assign(output="word " * 1000))
    report.make()
    assert "[4500 more characters]" in page().text


def test_fewer_checkpoints_make_a_smaller_report(project: Path) -> None:
    tree = read_yaml(layout.PARAMS)
    tree["checkpoints"] = {"ct": tree["checkpoints"]["ct"]}
    tree["evaluations"] = {
        name: tree["evaluations"][name] for name in ("base", *tree["checkpoints"])
    }
    layout.PARAMS.write_text(dump_yaml(tree), encoding="utf-8")
    report.make()
    metrics = metrics_of(project)
    assert list(metrics["checkpoints"]) == ["ct"]
    assert list(metrics["base"]) == ["modality"]


def add_joint_checkpoint() -> None:
    """A checkpoint of CT and MRI together, with what the stages before the report would write."""
    tree = read_yaml(layout.PARAMS)
    tree["splits"]["joint"] = {"cross-sectional": {"axis": "modality", "of": ["ct", "mri"]}}
    tree["checkpoints"]["cross-sectional"] = tree["checkpoints"]["ct"] | {
        "split": "cross-sectional",
        "images": "data/images",
    }
    tree["evaluations"]["cross-sectional"] = {"axis": "modality"}
    layout.PARAMS.write_text(dump_yaml(tree), encoding="utf-8")
    for part in ("train", "test"):
        items = []
        for slug in ("ct", "mri"):
            path = layout.split("modality", slug, part, "grouped")
            items += json.loads(path.read_text(encoding="utf-8"))
        target = layout.split("modality", "cross-sectional", part, "grouped")
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(items), encoding="utf-8")
    table = pq.read_table(layout.predictions("ct"))
    names = pa.array(["cross-sectional"] * len(table))
    table = table.set_column(0, table.schema.field(0), names)
    pq.write_table(table, layout.predictions("cross-sectional"))
    for path_of in (layout.training_log, layout.training_provenance):
        shutil.copy(path_of("ct"), path_of("cross-sectional"))


def test_a_joint_checkpoint_is_tested_on_the_questions_of_all_its_parts(
    project: Path, run: RunStage
) -> None:
    before = {path: path.read_bytes() for path in layout.PRIOR.rglob("*.json")}
    add_joint_checkpoint()
    run(prior)
    report.make()
    checkpoints = metrics_of(project)["checkpoints"]
    assert list(checkpoints).index("cross-sectional") == 3, "behind the modalities"
    joint, ct, mri = (checkpoints[name]["in_domain"] for name in ("cross-sectional", "ct", "mri"))
    assert joint["n"] == ct["n"] + mri["n"]
    assert joint["blind_baseline"]["accuracy"] is not None
    assert checkpoints["cross-sectional"]["joint"] == ["ct", "mri"]
    assert "Cross sectional" in page().words()
    for path, content in before.items():
        one, other = json.loads(content), json.loads(path.read_text(encoding="utf-8"))
        assert one["rules"] == other["rules"], "a union counts in no pool"


def leave_out(axis: str, slug: str) -> None:
    """Empty the split of one slug, as if it had too little data."""
    for part in ("train", "test"):
        layout.split(axis, slug, part, "grouped").write_text("[]", encoding="utf-8")
    leaks = json.loads(layout.LEAKS.read_text(encoding="utf-8"))
    leaks["grouped"][axis][slug] = dict.fromkeys(leaks["grouped"][axis][slug], 0)
    layout.LEAKS.write_text(json.dumps(leaks), encoding="utf-8")
    layout.prior(axis, slug).unlink()
    for path in layout.PREDICTIONS.glob("*.parquet"):
        table = pq.read_table(path)
        rows = table.to_pandas()
        rows.loc[rows[CELLS[axis]] == slug, f"{axis}_test"] = False
        tested = [CHECKPOINTS[path.stem]] if path.stem != "base" else [*CELLS]
        rows = rows[rows[[f"{each}_test" for each in tested]].any(axis=1)]
        metadata = table.schema.metadata
        if path.stem == slug:
            rows = rows[:0]
            metadata = {b"provenance": json.dumps({LEFT_OUT: True}).encode()}
        new = pa.Table.from_pandas(rows, schema=table.schema, preserve_index=False)
        pq.write_table(new.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(("axis", "slug"), [("modality", "oct"), ("task", "lesion-grading")])
def test_a_checkpoint_without_data_is_left_out_by_name(
    project: Path, axis: str, slug: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_project(project, per_cell=8, checkpoints=SEVERAL)
    leave_out(axis, slug)
    layout.training_log(slug).write_text("", encoding="utf-8")
    report.make()
    metrics = metrics_of(project)
    assert slug not in metrics["checkpoints"]
    assert len(metrics["checkpoints"]) == len(SEVERAL) - 1
    cells = metrics["base"][axis]["by_modality" if axis == "modality" else "by_question_type"]
    assert cells[slug] == {"accuracy": None, "n": 0}
    assert any(
        "left out, as their splits have too little data" in each for each in metrics["missing"]
    )
    assert f"(matrix in params.yaml): {slug}" in capsys.readouterr().out
    assert f"(matrix in params.yaml): {slug}" in " ".join(page().words().split())


def test_a_run_without_a_reference_has_no_kl_to_show(project: Path) -> None:
    make_training_log("ct").assign(kl=np.nan).to_csv(layout.training_log("ct"), index=False)
    report.make()
    assert page().words().count("not logged") == 1


def test_the_terminal_shows_a_row_a_checkpoint_in_100_columns(
    composed: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_project(tmp_path, per_cell=8)
    monkeypatch.chdir(tmp_path)
    report.make()
    assert capsys.readouterr().out == "report: 13 checkpoints and the base -> report/index.html\n"
    build.show()
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in shown
    for name, entry in metrics_of(tmp_path)["checkpoints"].items():
        (row,) = (line.split() for line in lines if line.split()[:1] == [name])
        own = entry["in_domain"]
        assert row[1:5] == [
            str(own["n"]),
            f"{100 * own['accuracy']:.1f}",
            f"{100 * own['base']:.1f}",
            f"{100 * own['gain']:+.1f}",
        ]
        visual = own["visual"]["shuffled"]["gain"]
        assert row[-2:] == [
            f"{100 * own['blind_baseline']['accuracy']:.1f}",
            f"{100 * visual:+.1f}",
        ]
    assert "Page: report/index.html" in lines
    sentences = " ".join(shown.split())
    assert sentences.endswith(DISCLAIMER)
    assert f"13 checkpoints: {verdict(metrics_of(tmp_path)['summary'])}; +" in sentences
    assert "Leaks by patient are unknown for" in sentences
    seen, total = seen_by_modality(tmp_path, "random")
    assert f"(at random: {seen} of {total} by modality and" in " ".join(shown.split())


def test_the_summary_is_small_enough_for_dvc_metrics_show_and_says_where_it_comes_from(
    made: Path,
) -> None:
    summary, metrics = (
        json.loads((made / build.SUMMARY).read_text(encoding="utf-8")),
        metrics_of(made),
    )
    assert summary["in_domain_gain"] == metrics["summary"]["in_domain_gain"]
    assert summary["gain"] == {
        name: entry["in_domain"]["gain"] for name, entry in metrics["checkpoints"].items()
    }
    assert summary["corpus"] == metrics["provenance"]["corpus"]


def test_show_without_a_report_says_how_to_make_one(project: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"report/metrics\.json .*`dvc repro --force report`",
    ):
        build.show()


def test_what_was_refused_is_told_by_source_set_and_reason_with_shares_and_examples(
    made: Path,
) -> None:
    html = (made / build.PAGE).read_text(encoding="utf-8")
    assert "6 were refused." in html
    read = 5 * 8  # questions of a modality, a data set each
    for name, reason, count, of in (
        ("mri", "answer-not-offered", 2, read + 2),
        ("fundus", "image-empty", 1, read),
    ):
        numbers = f'<td class="n">{count}</td>\n<td class="n">{100 * count / of:.2f}</td>'
        assert (
            f'<th scope="row">Phantom {name}</th>\n<td><code>{reason}</code></td>\n{numbers}'
            in html
        )
    assert (
        "Phantom mri.json#5 (mri-5): Spleen: gt_answer is none of the options" in page(made).words()
    )
    text = (made / layout.REPORT / "report.md").read_text(encoding="utf-8")
    assert f"| Phantom mri | answer-not-offered | 2 | {100 * 2 / (read + 2):.2f} | QA" in text
    assert "data/corpus/ct/records.jsonl" in text


def test_nothing_refused_is_said(project: Path) -> None:
    for path in layout.QUARANTINE.rglob("*.parquet"):
        account = read_quarantine(path)
        kept = [name for name, taken in account.sets.items() for _ in range(taken.kept)]
        write_quarantine(path, account.stage, account.kept, kept, [], PROVENANCE)
    report.make()
    assert "Nothing was refused." in page().words()
    assert "Nothing was refused." in (layout.REPORT / "report.md").read_text(encoding="utf-8")


def test_tests_of_the_data_and_the_light_of_images_are_shown_warnings_with_what_to_do(
    made: Path,
) -> None:
    html, words = (made / build.PAGE).read_text(encoding="utf-8"), page(made).words()
    assert "19 of 20 passed." in words
    row = (
        "<code>upscaled_images</code></th>",
        '<td><span class="down">warning</span></td>',
        '<td class="n">0.75</td>',
        '<td class="n">0.5</td>',
        "<td>share of images smaller than",
    )
    assert "\n".join(row) in html
    assert "data/images/ct/0001.png: 96 x 96 get larger sources" in words
    assert '<td class="n">80.5 \N{PLUS-MINUS SIGN} 12.2</td>' in html
    text = (made / layout.REPORT / "report.md").read_text(encoding="utf-8")
    assert "19 of 20 passed." in text
    assert "| upscaled_images | warning | 0.75 | 0.5 |" in text


def test_what_a_data_set_wrote_of_refused_records_stays_text(project: Path) -> None:
    path = layout.QUARANTINE / "download.parquet"
    account = read_quarantine(path)
    kept = [name for name, taken in account.sets.items() for _ in range(taken.kept)]
    row = Row(
        RecordLocation(HOSTILE, 0, HOSTILE), HOSTILE, HOSTILE, Reason.FIELD_EMPTY, HOSTILE, HOSTILE
    )
    write_quarantine(path, account.stage, account.kept + 1, kept, [row], PROVENANCE)
    report.make()
    assert not [tag for tag, _ in page().tags if tag in ("script", "img")]
    text = (layout.REPORT / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in text
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = {each.type for token in tokens for each in (token, *(token.children or []))}
    assert not kinds & {"html_block", "html_inline", "image", "link_open"}


def test_an_option_with_markup_stays_text_in_the_cases(project: Path) -> None:
    words = "a | b\n```\n# title\n<img src=x> `c`"
    path = layout.split("task", "lesion-grading", "test", "grouped")
    questions = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps([each | {"problem": f"What? A){words}, B)Cyst"} for each in questions]),
        encoding="utf-8",
    )
    report.make()
    assert not [tag for tag, _ in page().tags if tag == "img"]
    tokens = (
        MarkdownIt("commonmark")
        .enable("table")
        .parse((layout.REPORT / "report.md").read_text(encoding="utf-8"))
    )
    assert f"What? A){words}, B)Cyst\n" in [
        token.content for token in tokens if token.type == "fence"
    ]


def delete(path: Path) -> Callable[[], None]:
    return path.unlink


def overwrite(path: Path, text: str) -> Callable[[], object]:
    return lambda: path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            delete(layout.predictions("mri")),
            r"predictions/mri\.parquet is missing.*`dvc repro evaluate@mri`",
        ),
        (
            overwrite(layout.predictions("mri"), "no parquet"),
            r"predictions/mri\.parquet is not a parquet file",
        ),
        (
            lambda: pd.DataFrame({"a": [1]}).to_parquet(layout.predictions("mri")),
            r"mri\.parquet: .*provenance.*evaluate@mri`",
        ),
        (
            lambda: replace("mri", lambda rows: rows.assign(checkpoint="ct")),
            r"predictions/mri\.parquet: question .* checkpoint 'ct'",
        ),
        (
            lambda: replace("mri", lambda rows: rows.iloc[1:]),
            r"predictions/mri\.parquet: question .* only in the base",
        ),
        (lambda: replace("base", lambda rows: rows.iloc[1:]), r"question .* missing from the base"),
        (
            delete(layout.training_log("oct")),
            r"training/oct\.csv is missing.*`dvc repro train@oct`",
        ),
        (overwrite(layout.training_log("oct"), ""), r"training/oct\.csv is not a table of steps"),
        (
            overwrite(layout.training_log("oct"), "step,reward\n1,2\n"),
            r"training/oct\.csv: no column 'reward_accuracy'",
        ),
        (
            lambda: make_training_log("oct").assign(kl="x").to_csv(layout.training_log("oct")),
            r"oct\.csv: row 0: kl 'x' is not a number",
        ),
        (
            lambda: make_training_log("oct").iloc[:0].to_csv(layout.training_log("oct")),
            r"training/oct\.csv: no steps",
        ),
        (
            lambda: make_training_log("oct").assign(step=np.nan).to_csv(layout.training_log("oct")),
            r"oct\.csv: a row without a step",
        ),
        (
            delete(layout.split("task", "lesion-grading", "train", "grouped")),
            r"lesion-grading/train\.json is missing",
        ),
        (delete(layout.LEAKS), r"data/splits/leaks\.json is missing: run `dvc repro splits`"),
        (
            delete(layout.prior("task", "lesion-grading")),
            r"prior/task/lesion-grading\.json is missing: run `dvc repro prior`",
        ),
        (
            overwrite(layout.prior("modality", "ct"), "{}"),
            r"prior/modality/ct\.json holds no blind baseline",
        ),
        (
            lambda: replace("mri", lambda rows: rows.assign(blank_image=None)),
            r"mri\.parquet: question .* blank_output",
        ),
        (
            lambda: replace("mri", lambda rows: pd.concat([rows, rows.iloc[:1]])),
            r"mri\.parquet: question .* duplicate",
        ),
        (
            lambda: replace("mri", lambda rows: rows.assign(completion_tokens=-1)),
            r"mri\.parquet: question .* is not a number of tokens",
        ),
        (
            overwrite(layout.LEAKS, '{"grouped": {}}'),
            r"data/splits/leaks\.json is not a file of leak counts",
        ),
        (delete(layout.QUARANTINE / "resize" / "ct.parquet"), r"resize/ct\.parquet is missing"),
        (delete(layout.DATA_TESTS), r"data/data-tests\.json is missing: run `dvc repro splits`"),
        (
            overwrite(layout.DATA_TESTS, "[]"),
            r"data/data-tests\.json is not a file of data test results",
        ),
    ],
)
def test_a_bad_input_is_refused_by_name_and_nothing_is_written(
    project: Path, spoil: Callable[[], Any], message: str
) -> None:
    spoil()
    with pytest.raises(InputError, match=message):
        report.make()
    assert not layout.REPORT.exists()


def test_predictions_on_other_splits_are_refused(project: Path) -> None:
    path = layout.split("task", "lesion-grading", "test", "grouped")
    questions = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(questions[1:]), encoding="utf-8")
    with pytest.raises(
        InputError,
        match=f"question '{questions[0]['question_id']}'.*`dvc repro evaluate@",
    ):
        report.make()


WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch())
from stages import report
sys.argv = ["report"]
report.main()
assert "torch" not in sys.modules
"""


def test_the_report_is_made_where_torch_cannot_be_imported(project: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        check=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert build.METRICS.is_file()
