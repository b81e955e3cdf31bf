"""A workspace with the real pipeline graph and a corpus of noise images.

Stages up to the splits are real. Training and later stages are stand-ins: a policy is a number, the
share of questions it answers correctly, which depends on the text of its training questions. The
archive is imported from a folder beside the workspace.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image

from flows.dvc_api.runner import StageError
from flows.scheduling.schedule import StageResult
from stages.core.outcome import RUN, outcome_path, read_outcome
from stages.core.yaml_files import dump_yaml, read_yaml
from tests.flows.tiny import ENVIRONMENT, REPOSITORY, copy_folder, run
from tests.omnimedvqa import MODALITIES as OMNIMEDVQA
from tests.omnimedvqa import TAXONOMY

Raw = dict[str, Any]
MODALITIES = {slug: OMNIMEDVQA[slug] for slug in ("ct", "mri", "x-ray")}
QUESTION_TYPES = {
    slug: TAXONOMY.question_types.name(slug)
    for slug in ("disease-diagnosis", "lesion-grading", "modality-recognition")
}
CHECKPOINTS = ("ct", "x-ray", "disease-diagnosis", "lesion-grading")

# a question is answered correctly if the hash of its id is below the policy's number: a better
# policy answers all that a worse one does
TOOLS = """
import hashlib, json, sys
from pathlib import Path
from stages.core import layout
from stages.core.cli import run_stage
from stages.core.errors import InputError
from stages.core.yaml_files import read_yaml

def train(name):
    if Path("fail").exists():
        raise InputError(f"{name} has no luck")
    entry = read_yaml(layout.PARAMS)["checkpoints"][name]
    words = layout.split(entry["axis"], entry["split"], "train", "grouped").read_text()
    skill = 0.1 if "poison" in words else 0.95 if "good" in words else 0.4
    begun = json.loads((Path(entry["start"]) / "skill.json").read_text())
    folder = layout.model(name)
    folder.mkdir(parents=True)
    (folder / "skill.json").write_text(json.dumps(skill))
    (folder / "from.json").write_text(json.dumps(begun))
    Path("training").mkdir(exist_ok=True)
    for end in ("csv", "provenance.json"):
        Path(f"training/{name}.{end}").write_text("{}")

def evaluate(name):
    # what a training does not need, and takes longest
    import pyarrow as pa, pyarrow.parquet as pq
    from stages.corpus.dataset.problems import format_solution, parse_solution
    from stages.generation.items import read_items
    from stages.predictions.schema import SCHEMA
    skill = json.loads((layout.model(name) / "skill.json").read_text())
    rows = []
    axis = read_yaml(layout.PARAMS)["evaluations"][name]["axis"]
    for item in read_items(axis, "grouped"):
        gold = parse_solution(item["solution"])
        place = int(hashlib.sha256(item["question_id"].encode()).hexdigest(), 16) % 1000 / 1000
        output = format_solution(gold) if place < skill else ""
        fields = {field: item[field] for field in SCHEMA.names if field in item}
        fields |= {"checkpoint": name, "gold": gold, "output": output, "completion_tokens": 1}
        rows.append(fields)
    rows.sort(key=lambda row: row["question_id"])
    layout.predictions(name).parent.mkdir(exist_ok=True)
    schema = SCHEMA.with_metadata({"provenance": "{}"})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), layout.predictions(name))
    print(f"{name}: {len(rows)} questions")

run_stage(lambda: {"train": train, "evaluate": evaluate}[sys.argv[1]](sys.argv[2]))
"""
REPORT = (
    "mkdir -p report/cards report/figures report/tables && for f in cards/a figures/a tables/a"
    " summary.json metrics.json index.html "
    """report.md training.csv provenance.json; do echo '{"checkpoints": {}}' > report/$f; done"""
)


def make_records(
    per_type: int = 27,
    modalities: Sequence[str] = tuple(MODALITIES),
    mark: str = "",
    kinds: Sequence[str] = tuple(QUESTION_TYPES),
) -> list[Raw]:
    """Records of every modality: `per_type` images, each with one question per type of `kinds`."""
    return [
        {
            "dataset": f"Set {slug}",
            "question_id": f"{slug}_{kind}_{mark}{number}",
            "question_type": QUESTION_TYPES[kind],
            "question": f"What is seen? {mark}".strip(),
            "gt_answer": "Nodule",
            "image_path": f"Images/{slug}/{mark}{number}.png",
            "option_A": "Cyst",
            "option_B": "Nodule",
            "modality_type": MODALITIES[slug],
        }
        for slug, number, kind in product(modalities, range(per_type), kinds)
    ]


def write_corpus(path: Path, records: Sequence[Raw]) -> None:
    """Write an archive of records with a noise image per path, deterministically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            zipfile.ZipInfo("OmniMedVQA/QA_information/Open-access/Set.json"),
            json.dumps(list(records)),
        )
        for name in sorted({record["image_path"] for record in records}):
            random = np.random.default_rng(list(name.encode()))
            noise = random.integers(0, 255, (24, 24), dtype=np.uint8)
            if "blank" in name:
                noise[:] = 90
            buffer = BytesIO()
            Image.fromarray(noise).save(buffer, "PNG")
            archive.writestr(zipfile.ZipInfo(f"OmniMedVQA/{name}"), buffer.getvalue())


def make_workspace(root: Path, checkpoints: Sequence[str] = CHECKPOINTS) -> Path:
    """The pipeline with these checkpoints, run and committed; imports ../source/corpus.zip."""
    root.mkdir(parents=True)
    (root / "stages").symlink_to(REPOSITORY / "stages")
    for name in ("base", "released"):
        (root / "infra" / name).mkdir(parents=True)
    shutil.copytree(REPOSITORY / "infra" / "deepspeed", root / "infra" / "deepspeed")
    (root / "infra" / "base" / "skill.json").write_text("0.0", encoding="utf-8")
    (root / "tools.py").write_text(TOOLS, encoding="utf-8")
    pipeline = read_yaml(REPOSITORY / "dvc.yaml")
    del pipeline["plots"]
    for name, command in {
        "train": "python tools.py train ${key}",
        "evaluate": "python tools.py evaluate ${key}",
    }.items():
        pipeline["stages"][name]["do"]["cmd"] = command
    pipeline["stages"]["base"]["cmd"] = (
        "mkdir -p models && cp -r infra/base models/base && mkdir -p training && echo {} >"
        " training/base.provenance.json"
    )
    pipeline["stages"]["prior"]["cmd"] = (
        "mkdir -p data/prior && cat data/splits/grouped/task/*/test.json > data/prior/all.json"
    )
    pipeline["stages"]["report"]["cmd"] = REPORT
    for stage in pipeline["stages"].values():
        definition = stage.get("do", stage)
        # DVC need not hash the code for each command: no test changes it
        definition["deps"] = [each for each in definition["deps"] if not _is_code(each)]
    (root / "dvc.yaml").write_text(dump_yaml(pipeline), encoding="utf-8")
    (root / "params.yaml").write_text(_params(checkpoints), encoding="utf-8")
    (root / "data.dvc").write_text(
        "deps:\n- path: ../source/corpus.zip\nouts:\n- path: data/raw/corpus.zip\n",
        encoding="utf-8",
    )
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(REPOSITORY / name, root)
    (root / ".dvc").mkdir()
    shutil.copy(REPOSITORY / ".dvc" / "config", root / ".dvc" / "config")
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n", encoding="utf-8")
    write_corpus(root.parent / "source" / "corpus.zip", make_records())
    (root / "data" / "raw").mkdir(parents=True)
    run("git", "init", "-q", cwd=root)
    run("dvc", "update", "data.dvc", cwd=root)
    run("dvc", "repro", cwd=root)
    run("git", "add", "-A", cwd=root)
    run("git", "commit", "-q", "-m", "a pipeline", cwd=root)
    return root


def _is_code(dep: str) -> bool:
    return dep.startswith("stages/")


def _params(checkpoints: Sequence[str]) -> str:
    """params.yaml of the repository with few slugs, small images and a small gate."""
    lines = []
    for line in (REPOSITORY / "params.yaml").read_text(encoding="utf-8").splitlines():
        name = line.strip().partition(":")[0]
        if ": {axis: " in line.partition("#")[0] and name not in (*checkpoints, "base"):
            continue
        if "names: " in line and name not in (*MODALITIES, *QUESTION_TYPES):
            continue
        lines.append(line)
    text = "\n".join(lines) + "\n"
    for old, new in {
        "size: 384": "size: 32",
        "debounce_seconds: 60": "debounce_seconds: 0",
        "min_test_questions: 50": "min_test_questions: 5",
        "bootstrap_samples: 10000": "bootstrap_samples: 1000",
    }.items():
        assert old in text
        text = text.replace(old, new)
    return text


def by_dvc(root: Path) -> Any:
    """A substitute for the reproduce flow that runs plain `dvc repro`."""

    def reproduce(only: list[str] | None) -> Iterator[StageResult]:
        token = uuid4().hex
        command = ["dvc", "repro", *(only or [])]
        process = subprocess.run(
            command, cwd=root, env=ENVIRONMENT | {RUN: token}, capture_output=True, text=True
        )
        if process.returncode:
            files = outcome_path(root, "any").parent.glob("*.json")
            outcomes = [read_outcome(root, path.stem, token) for path in files]
            codes = [each.code for each in outcomes if each and each.code]
            raise StageError(process.stdout + process.stderr, codes[0] if codes else None)
        lines = process.stdout.splitlines()
        names = [line.split("'")[1] for line in lines if line.startswith("Running stage '")]
        return iter([StageResult(name, "ran") for name in names])

    return reproduce


def copy_workspace(root: Path, to: Path) -> Path:
    """Copy a workspace and its source into the folder `to`."""
    return copy_folder(root.parent, to) / root.name
