"""Stage report where some questions have several images or context, and where none has."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from stages import report
from stages.core import layout
from stages.core.errors import InputError
from stages.predictions.schema import IMAGE_PARTS, OPTIONAL, VARIANTS
from stages.reporting import build, figures
from stages.reporting.labels import VARIANT_LABELS, percent, signed
from stages.scoring.contributions import KINDS
from stages.scoring.predictions import add_answers
from tests.conftest import change_params
from tests.fakes import write_project
from tests.several_images import context_of, give_parts, raw_rows, raw_table
from tests.stages.test_report import FEW, HOSTILE, Page, leave_out, metrics_of, page

PER_CELL = 10


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project before its report, most of whose questions have several images or context."""
    root = tmp_path_factory.mktemp("written")
    write_project(root, per_cell=PER_CELL, checkpoints=FEW)
    give_parts(root, ["base", *FEW])
    return root


def compose_only(patch: pytest.MonkeyPatch) -> None:
    """Compose figures and do not draw them, which takes long and depends on no part."""

    def save(figure: object, path: Path, provenance: object) -> None:
        path.write_bytes(b"")

    patch.setattr(figures, "_save", save)


@pytest.fixture(scope="module")
def made(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with images and its report, to be read only."""
    root = tmp_path_factory.mktemp("made")
    shutil.copytree(written, root, dirs_exist_ok=True)
    base = pd.read_parquet(root / layout.predictions("base"))
    lists = [*base["images"].dropna(), *base["shuffled_images"].dropna()]
    image = io.BytesIO()
    Image.new("L", (8, 8)).save(image, "PNG")
    for path in {str(path) for paths in lists for path in paths}:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(image.getvalue())
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        compose_only(patch)
        report.make()
    return root


@pytest.fixture
def project(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same to be changed."""
    compose_only(monkeypatch)
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_columns_without_a_value_leave_every_byte_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path, per_cell=8, checkpoints=FEW)
    monkeypatch.chdir(tmp_path)
    compose_only(monkeypatch)
    report.make()
    before = contents(layout.REPORT)
    assert "contributions" not in metrics_of(tmp_path)
    assert "tables/contributions.csv" not in before
    for words in ("Contribution of each part", "strip", "context"):
        assert words not in (layout.REPORT / "report.md").read_text(encoding="utf-8")
        assert words not in build.PAGE.read_text(encoding="utf-8")
    for name in ["base", *FEW]:
        table = pq.read_table(layout.predictions(name))
        rows = raw_table(raw_rows(add_answers(table).to_pandas()), OPTIONAL.names)
        pq.write_table(
            rows.replace_schema_metadata(table.schema.metadata), layout.predictions(name)
        )
    report.make()
    after = contents(layout.REPORT)
    scored = [name for name in before if name.startswith("tables/predictions/")]
    assert len(scored) == 1 + len(FEW)
    for name in scored:
        columns = pd.read_parquet(layout.REPORT / name)
        assert columns[OPTIONAL.names].isna().to_numpy().all()
        del before[name], after[name]
    assert after == before


def test_each_part_has_a_row_on_the_page_in_markdown_and_csv(made: Path) -> None:
    found = metrics_of(made)["contributions"]
    assert list(metrics_of(made)) == [
        *("summary", "base", "checkpoints", "contributions", "splits", "missing", "provenance")
    ]
    text = (made / "report/report.md").read_text(encoding="utf-8")
    table = pd.read_csv(made / "report/tables/contributions.csv")
    keys = ["checkpoint", "questions", "comparison", "variant"]
    assert not table.duplicated(keys).any()
    lines = {tuple(line[key] for key in keys): line for line in table.to_dict("records")}
    seen = set()
    for name, kinds in found["checkpoints"].items():
        for kind, own in kinds.items():
            for variant, part in own["parts"].items():
                seen.add(variant)
                line = lines[name, kind, "parts", variant]
                assert (line["n"], line["gain"]) == (part["n"], part["gain"])
                words = {"several_images": "several images"}.get(kind, kind)
                gain = f"{signed(part['gain'])} [{signed(part['low'])} to {signed(part['high'])}]"
                shares = f"{percent(part['accuracy'])} | {percent(part['other'])}"
                assert (
                    f"| {name} | {words} | {VARIANT_LABELS[variant]} | {part['n']} | {shares} |"
                    f" {gain} |" in text
                )
    assert seen == set(VARIANTS)
    words = page(made).words()
    for variant in VARIANTS:
        assert VARIANT_LABELS[variant] in words
    assert set(found["means"]) == set(KINDS)


def test_a_card_has_the_parts_of_its_own_questions_alone(made: Path) -> None:
    text = (made / "report/cards/ct.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ct | several images")]
    assert len(rows) == len(KINDS["several_images"].parts) + 2
    assert "| mri |" not in text
    assert "several images and other languages were not tested" not in text


def test_the_terminal_says_what_the_parts_add(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.make()
    build.show()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    words = " ".join(shown.split())
    mean = metrics_of(project)["contributions"]["means"]["several_images"]
    gain = mean["to_base"]["as_asked"]
    assert (
        f"Questions with several images (4 checkpoints): {signed(gain['gain'])}"
        f" [{signed(gain['low'])} to {signed(gain['high'])}] points over the base," in words
    )
    order = mean["parts"]["reordered"]
    assert f"images reordered {signed(order['gain'])} [" in words
    assert "Questions with context (4 checkpoints): " in words


def strips(root: Path) -> list[list[dict[str, str | None]]]:
    """The images of each strip of the page."""
    found: list[list[dict[str, str | None]]] = []
    for tag, attributes in page(root).tags:
        if attributes.get("class") == "strip":
            found.append([])
        elif tag == "img" and not str(attributes["alt"]).startswith("Image of question"):
            found[-1].append(attributes)
    return found


def test_several_images_are_a_strip_numbered_in_order_with_the_context_above(made: Path) -> None:
    seen = page(made)
    found = strips(made)
    assert found
    assert {len(each) for each in found} <= {1, 2, 4, 5, 8}
    assert max(map(len, found)) == 8
    for images in found:
        for attributes in images:
            assert str(attributes["src"]).startswith("data:image/jpeg;base64,")
    ordered = [
        [str(attributes["alt"]).split()[1] for attributes in images]
        for images in found
        if "of the question" in str(images[0]["alt"])
    ]
    assert ["1", "4", "6", "9", "12", "15", "17", "20"] in ordered
    assert all(numbers == sorted(numbers, key=int) for numbers in ordered)
    assert "and 12 more between them" in seen.words()
    assert len({attributes.get("aria-label") for _, attributes in seen.tags}) > 3
    html = (made / build.PAGE).read_text(encoding="utf-8")
    case = next(part for part in html.split("<article>") if '<p class="context">' in part)
    assert case.index("<strong>Context</strong> Age: 61 years.") < case.index("A)")


def test_a_page_with_strips_can_be_walked_without_seeing_it(made: Path) -> None:
    seen = page(made)
    identifiers = [attributes["id"] for _, attributes in seen.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    names = [tag for tag, _ in seen.tags]
    assert names.count("table") == names.count("caption")
    assert all(attributes.get("alt") for tag, attributes in seen.tags if tag == "img")
    lists = [attributes for _, attributes in seen.tags if attributes.get("class") == "strip"]
    assert all(each["role"] == "list" and each["aria-label"] for each in lists)
    assert (made / build.PAGE).stat().st_size < 3_000_000


def test_without_images_the_report_has_no_context_either(project: Path) -> None:
    change_params("report", images=False)
    report.make()
    known = context_of("").partition("patient")[0]
    assert known in str(pq.read_table(layout.predictions("ct"))["context"].to_pylist())
    for path in layout.REPORT.rglob("*"):
        if path.suffix in (".html", ".md", ".json", ".csv"):
            assert known not in path.read_text(encoding="utf-8"), path
        elif path.suffix == ".parquet":
            assert known not in str(pq.read_table(path).to_pylist()), path
    words = page().words()
    assert "left out (report.images)" in words
    assert "Context left out (report.images)" in words
    assert "data:image" not in build.PAGE.read_text(encoding="utf-8")
    assert "Context left out." in (layout.REPORT / "report.md").read_text(encoding="utf-8")


def test_predictions_without_their_contexts_make_the_same_numbers(project: Path) -> None:
    change_params("report", images=False)
    report.make()
    before = metrics_of(project)
    build.rebuild(layout.REPORT / "tables" / "predictions")
    after = json.loads((layout.REBUILT / "metrics.json").read_text(encoding="utf-8"))
    assert after["contributions"] == before["contributions"]
    change_params("report", images=True)
    build.rebuild(layout.REPORT / "tables" / "predictions")
    words = Page((layout.REBUILT / "index.html").read_text(encoding="utf-8")).words()
    assert "Context left out" in words


def rewrite(name: str, change: Any) -> None:
    """Write one checkpoint's predictions again, each row changed."""
    table = pq.read_table(layout.predictions(name))
    rows = [change(row) for row in table.to_pylist()]
    new = pa.Table.from_pylist(rows, schema=table.schema)
    pq.write_table(new, layout.predictions(name))


def test_what_is_known_of_a_patient_stays_text(project: Path) -> None:
    rewrite(
        "ct",
        lambda row: (
            row
            | {key: HOSTILE for key in ("context", "other_context_context") if row[key] is not None}
        ),
    )
    report.make()
    assert HOSTILE.split("{{")[0] in page().text
    assert not [tag for tag, _ in page().tags if tag in ("script", "img")]
    text = (layout.REPORT / "report.md").read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = {each.type for token in tokens for each in (token, *(token.children or []))}
    assert not kinds & {"html_block", "html_inline", "image"}


def test_one_checkpoint_alone_with_such_questions_opens_its_tables(project: Path) -> None:
    plain = dict.fromkeys(OPTIONAL.names)
    for name in ("base", *FEW):
        if name != "oct":
            rewrite(name, lambda row: row | plain)
    report.make()
    found = metrics_of(project)["contributions"]
    assert list(found["checkpoints"]) == ["oct"]
    html = build.PAGE.read_text(encoding="utf-8")
    assert "<details open>\n<summary>By checkpoint</summary>" in html
    assert "Means over checkpoints of gains" not in html
    text = (layout.REPORT / "report.md").read_text(encoding="utf-8")
    assert "Questions with several images (1 checkpoint): " in text
    assert "several images" not in (layout.REPORT / "cards/ct.md").read_text(
        encoding="utf-8"
    ).replace("open questions, several images and other languages were not tested", "")


def test_a_checkpoint_that_is_left_out_has_no_parts(project: Path) -> None:
    leave_out("modality", "oct")
    layout.training_log("oct").write_text("", encoding="utf-8")
    report.make()
    found = metrics_of(project)["contributions"]
    assert "oct" not in found["checkpoints"]
    assert found["means"]["context"]["to_base"]["as_asked"]["checkpoints"] == len(FEW) - 1


def test_an_incomplete_variant_is_refused_by_name(project: Path) -> None:
    rewrite("mri", lambda row: row | {"reordered_images": None})
    with pytest.raises(InputError, match=r"mri\.parquet: question .* reordered_images"):
        report.make()
    assert not layout.REPORT.exists()


def test_a_single_question_about_several_images_has_no_interval(project: Path) -> None:
    rows = pq.read_table(layout.predictions("ct")).to_pylist()
    kept = next(row["question_id"] for row in rows if row["images"] and row["modality"] == "ct")
    dropped = ("images", "shuffled_images", *(f"{variant}_" for variant in IMAGE_PARTS))

    def single(row: dict[str, Any]) -> dict[str, Any]:
        if row["question_id"] == kept:
            return row
        return {key: None if key.startswith(dropped) else value for key, value in row.items()}

    for name in ("base", *FEW):
        rewrite(name, single)
    report.make()
    own = metrics_of(project)["contributions"]["checkpoints"]["ct"]["several_images"]
    assert own["n"] == 1
    assert own["parts"]["removed"]["low"] is None
    assert " [- to -] |" in (layout.REPORT / "report.md").read_text(encoding="utf-8")
    table = pd.read_csv(layout.REPORT / "tables/contributions.csv")
    assert table.loc[table["n"] == 1, ["low", "high"]].isna().to_numpy().all()
