"""`dvc plots` renders the table of training curves with the repository's template."""

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd

from stages.core.yaml_files import dump_yaml, read_yaml
from stages.reporting import build
from stages.reporting.sheets import write_training
from stages.reporting.sources import LOG_COLUMNS
from tests.fakes import REPOSITORY, make_training_log


def test_a_value_that_was_not_logged_has_no_row(tmp_path: Path) -> None:
    without = make_training_log("mri", steps=2).assign(kl=float("nan"))
    logs = {"ct": make_training_log("ct", steps=3), "mri": without}
    write_training(tmp_path / "training.csv", logs)
    table = pd.read_csv(tmp_path / "training.csv")
    assert list(table) == ["checkpoint", "step", "metric", "value"]
    assert not table.isna().to_numpy().any()
    counts = {name: rows["metric"].value_counts() for name, rows in table.groupby("checkpoint")}
    assert counts["ct"].to_dict() == dict.fromkeys(LOG_COLUMNS[1:], 3)
    assert counts["mri"].to_dict() == {name: 2 for name in LOG_COLUMNS[1:] if name != "kl"}


def test_dvc_fills_the_template_with_the_table(tmp_path: Path) -> None:
    (tmp_path / build.TRAINING).parent.mkdir()
    write_training(tmp_path / build.TRAINING, {"ct": make_training_log("ct", steps=3)})
    plots = read_yaml(REPOSITORY / "dvc.yaml")["plots"]
    (own,) = [each for each in plots if isinstance(each, dict)]
    (tmp_path / "dvc.yaml").write_text(dump_yaml({"plots": [own]}), encoding="utf-8")
    subprocess.run(["dvc", "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    shutil.copytree(REPOSITORY / ".dvc" / "plots", tmp_path / ".dvc" / "plots")
    output = subprocess.check_output(["dvc", "plots", "show", "--json"], cwd=tmp_path)
    tree = json.loads(output)
    assert not tree.get("errors")
    ((plot,),) = tree["data"].values()
    spec = plot["content"]
    rows = spec["data"].pop("values")
    assert "DVC_METRIC" not in json.dumps(spec)
    assert len(rows) == 3 * len(LOG_COLUMNS[1:])
    *calculations, smoothing = spec["transform"]
    (mean,) = smoothing["window"]
    assert {mean["field"], *smoothing["groupby"]} <= {*rows[0], "y"}
    fields = {*rows[0], mean["as"], *(each["as"] for each in calculations)}
    assert {each["field"] for each in spec["encoding"].values()} <= fields
    calculated = [each["calculate"] for each in calculations]
    assert calculated == ["toNumber(datum['step'])", "toNumber(datum['value'])"]
