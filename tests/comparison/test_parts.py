"""Parts of questions in two runs: gains as in the report, and their paired differences."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.comparison import command as compare
from stages.comparison.pairs import RunPredictions
from stages.comparison.parts import MEAN, PartComparison, compare_parts
from stages.scoring.contributions import AS_ASKED, KINDS, contributions
from stages.scoring.statistics import cluster_interval
from stages.scoring.tables import Target
from tests.comparison.test_command import write
from tests.comparison.test_pairs import PROPERTIES, flipped
from tests.fakes import CHECKPOINTS, make_predictions, make_questions
from tests.omnimedvqa import AXES
from tests.several_images import scored, with_parts

QUESTIONS = make_questions(per_cell=10)
SAMPLES = 200


def predictions(knows: float, seed: int | None) -> dict[str, pd.DataFrame]:
    found = {}
    for name in ["base", *CHECKPOINTS]:
        rows = scored(with_parts(make_predictions(QUESTIONS, name), knows=knows))
        found[name] = rows if seed is None else flipped(rows, seed)
    return found


FIRST = predictions(0.5, None)
SECOND = predictions(0.8, 7)


def run(rows: dict[str, pd.DataFrame], source: str = "a") -> RunPredictions:
    return RunPredictions(source, rows, PROPERTIES)


def compared(
    first: dict[str, pd.DataFrame] = FIRST, second: dict[str, pd.DataFrame] = SECOND
) -> list[PartComparison]:
    return compare_parts(run(first), run(second, "b"), "modality", AXES["modality"], SAMPLES, 3)


def without(rows: dict[str, pd.DataFrame], *columns: str) -> dict[str, pd.DataFrame]:
    return {
        name: each.drop(columns=[c for c in each if str(c).startswith(columns)])
        for name, each in rows.items()
    }


def test_the_gains_of_each_run_are_those_of_its_report() -> None:
    targets = {slug: Target("modality", slug) for slug in AXES["modality"]}
    reports = [contributions(rows, targets, list(targets), SAMPLES, 3) for rows in (FIRST, SECOND)]
    own = [part for part in compared() if part.trained != MEAN and part.variant != AS_ASKED]
    assert {part.kind for part in own} == set(KINDS)
    for part in own:
        for report, gain in zip(reports, (part.first, part.second), strict=True):
            assert report is not None
            assert gain is not None
            known = report["checkpoints"][part.trained][part.kind]["parts"][part.variant]
            assert (part.n, *gain) == (known["n"], known["gain"], known["low"], known["high"])


def test_differences_are_paired_question_by_question() -> None:
    for part in compared():
        if part.trained == MEAN:
            continue
        rows = [
            run[run["modality_test"] & (run["modality"] == part.trained)]
            .set_index("question_id")
            .sort_index()
            for run in (FIRST[part.trained], SECOND[part.trained])
        ]
        column = KINDS[part.kind].column
        kept = rows[0][column].notna()
        gains = []
        for each in rows:
            gain = each[kept]["correct"].astype(float)
            if part.variant != AS_ASKED:
                gain = gain - each[kept][f"{part.variant}_correct"].astype(float)
            gains.append(gain)
        values = gains[0] - gains[1]
        known = values.notna()
        images = rows[0][kept]["image"]
        assert part.difference is not None
        assert part.difference.value == pytest.approx(values[known].mean())
        if images[known].nunique() > 1:
            interval = cluster_interval(values[known], images[known], SAMPLES, 3)
            assert part.difference[1:] == pytest.approx(interval)
        assert part.n == known.sum()


def test_means_are_over_the_checkpoints() -> None:
    parts = compared()
    means = [part for part in parts if part.trained == MEAN]
    assert parts[: len(means)] == means
    for mean in means:
        own = [
            part
            for part in parts
            if (part.kind, part.variant) == (mean.kind, mean.variant) and part.trained != MEAN
        ]
        assert mean.n == sum(part.n for part in own)
        assert mean.difference is not None
        values = [part.difference.value for part in own if part.difference is not None]
        assert mean.difference.value == pytest.approx(np.mean(values))
        assert mean.difference.low is not None
        assert mean.difference.high is not None
        assert mean.difference.low <= mean.difference.value <= mean.difference.high


def test_what_one_run_was_not_asked_is_unknown() -> None:
    parts = compared(second=without(SECOND, "middle_"))
    middle = [part for part in parts if part.variant == "middle"]
    assert middle
    assert all(part.first is not None for part in middle)
    assert all(part.second is None and part.difference is None for part in middle)
    neither = compared(without(FIRST, "middle_"), without(SECOND, "middle_"))
    assert "middle" not in {part.variant for part in neither}


def test_of_one_image_no_interval_is_known() -> None:
    def narrowed(rows: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        own = rows["ct"]
        own = own[own["modality_test"] & (own["modality"] == "ct") & own["images"].notna()]
        return {"ct": own[own["image"] == own["image"].iloc[0]]}

    parts = compared(narrowed(FIRST), narrowed(SECOND))
    assert parts
    for part in parts:
        assert part.images == 1
        assert part.difference is not None
        assert part.difference[1:] == (None, None)


def test_plain_questions_have_no_parts() -> None:
    plain = {name: make_predictions(QUESTIONS, name) for name in ["base", "ct"]}
    assert compared(plain, plain) == []


def test_tables_and_files_have_parts_only_if_questions_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs: dict[str, Any] = {}
    for kind, runs in (("parts", (FIRST, SECOND)), ("plain", None)):
        for side, seed in (("a", None), ("b", 7)):
            for name in ["base", *CHECKPOINTS]:
                rows = make_predictions(QUESTIONS, name)
                if runs:
                    rows = runs[side == "b"][name]
                elif seed:
                    rows = flipped(rows, seed)
                write(tmp_path / kind / side / f"{name}.parquet", rows, "no-think")
        folder = tmp_path / kind
        compare.run(
            folder / "a",
            folder / "b",
            json_file=folder / "out.json",
            csv_folder=folder / "out",
            samples=SAMPLES,
            seed=3,
        )
        outputs[kind] = capsys.readouterr().out
    assert "several images and context" not in outputs["plain"]
    assert not (tmp_path / "plain/out/parts.csv").exists()
    plain = json.loads((tmp_path / "plain/out.json").read_text(encoding="utf-8"))
    assert all(set(each) == {"cells", "means"} for each in plain["axes"].values())
    assert "several images and context" in outputs["parts"]
    lines = outputs["parts"].splitlines()
    assert max(len(line) for line in lines if not line.startswith(("A: ", "B: "))) <= compare.WIDTH
    found = json.loads((tmp_path / "parts/out.json").read_text(encoding="utf-8"))
    with (tmp_path / "parts/out/parts.csv").open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert {row["axis"] for row in written} == set(AXES)
    by_axis = [row for axis in found["axes"].values() for row in axis["parts"]]
    assert [float(row["difference"]) for row in written] == [row["difference"] for row in by_axis]
