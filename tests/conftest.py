"""A project folder of its own for each test, and small corpora in OmniMedVQA's layout."""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from stages.core import machine
from stages.core.params import Resize, load_params
from stages.core.yaml_files import dump_yaml, read_yaml
from tests.core.distributed.servers import Server, serving
from tests.omnimedvqa import MODALITIES, QUESTION_TYPES

# how long an example takes says how busy the machine is, and nothing of the code
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

ROOT = Path(__file__).parents[1]

SLOW = (
    *(
        "base",
        "benchmarks",
        "end_to_end",
        "generation",
        "grpo",
        "infra",
        "pretraining",
        "publishing",
        "stages",
    ),
    *(
        "comparison/test_command.py",
        "core/distributed/test_launch.py",
        "core/distributed/test_preloaded.py",
        "core/distributed/test_preloaded_training.py",
        "core/services/test_tracking.py",
    ),
    *(
        "corpus/images/test_decoders.py",
        "corpus/images/test_resizer.py",
        "corpus/records/test_records_fuzz.py",
    ),
    *(
        "corpus/sample/test_sample.py",
        "hostile",
        "policy/test_attention.py",
        "profiles/test_profile.py",
        "profiles/test_splice.py",
    ),
    *(
        "flows/doctor",
        "flows/dvc_api/test_client.py",
        "flows/dvc_api/test_events.py",
        "flows/dvc_api/test_guard.py",
        "flows/dvc_api/test_repository.py",
        "flows/dvc_api/test_runner.py",
        "flows/planning/test_plan.py",
        "flows/registry",
    ),
    *(
        "flows/retraining",
        "flows/scheduling/test_cancel.py",
        "flows/source",
        "flows/test_dashboard.py",
        "flows/test_postgres.py",
        "flows/dvc_api/test_preloading.py",
    ),
    *(
        "flows/test_environment.py",
        "flows/reproduce",
        "flows/test_stale.py",
        "flows/workers",
    ),
)
"""Folders and files below tests/ that train, start DVC, servers or many processes: `make check`
leaves them out.
"""
QUICK = ("grpo/test_rewards.py", "stages/test_prior.py")
"""In a slow folder, and quick all the same."""

LONG = ("end_to_end", "flows", "stages", "grpo", "pretraining", "publishing", "profiles")
"""Folders of the files that take longest: these come first, so that no process is left with one."""

Raw = dict[str, Any]
MakeRecord = Callable[..., Raw]
MakeCorpus = Callable[..., Path]
RunStage = Callable[..., None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of SLOW, and put the files of LONG first."""
    for item in items:
        path = item.path.relative_to(ROOT / "tests").as_posix()
        if path not in QUICK and any(path == slow or path.startswith(f"{slow}/") for slow in SLOW):
            item.add_marker(pytest.mark.slow)
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    folder = item.path.relative_to(ROOT / "tests").parts[0]
    return LONG.index(folder) if folder in LONG else len(LONG)


@pytest.fixture(autouse=True, scope="session")
def torch_is_asked_once() -> Iterator[None]:
    """What torch sees of this machine is asked once for each environment: it takes seconds."""
    run_with_torch = machine._run_with_torch
    asked = functools.cache(lambda code, _: run_with_torch(code))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "_run_with_torch", lambda code: asked(code, _environment()))
        yield


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(each for each in os.environ.items() if each[0] != "PYTEST_CURRENT_TEST"))


_modules_frozen = 0


def pytest_runtest_logfinish() -> None:
    """Leave out of garbage collection what imports have made: it lives as long as the process.

    With torch, transformers and trl a full collection takes as long as three steps of a tiny
    policy, and every training ends with one.
    """
    global _modules_frozen
    if len(sys.modules) > _modules_frozen + 50:
        gc.collect()
        gc.freeze()
        _modules_frozen = len(sys.modules)


def pytest_unconfigure() -> None:
    """Let the interpreter end as usual."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Server]:
    """A server in whose forks trainings and evaluations run that tests start as processes."""
    # DVC finds `python` there, as in a virtual environment that is activated
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (
        tempfile.TemporaryDirectory(prefix="preloaded-") as folder,
        serving(Path(folder) / "s", PATH=path) as server,
    ):
        yield server


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, its params.yaml the repository's, as the working directory."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> RunStage:
    """`run(module, *arguments)`: a stage's main as `python -m` starts it."""

    def run_stage(module: ModuleType, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        module.main()

    return run_stage


@pytest.fixture
def make_record() -> MakeRecord:
    """`make_record(**changes)`: a valid CT record with changes; None removes a field."""

    def make(**changes: Any) -> Raw:
        record = {
            "dataset": "Chest CT Scan",
            "question_id": "Chest CT Scan_00000",
            "question_type": "Disease Diagnosis",
            "question": "What is seen?",
            "gt_answer": "Nodule",
            "image_path": "Images/Chest CT Scan/a.png",
            "option_A": "Cyst",
            "option_B": "Nodule",
            "modality_type": MODALITIES["ct"],
        } | changes
        return {field: value for field, value in record.items() if value is not None}

    return make


@pytest.fixture
def make_corpus(project: Path) -> MakeCorpus:
    """`make_corpus(records, **files)`: data/raw/corpus.zip with a valid image per image_path."""

    def make(records: list[Any], files: dict[str, bytes | None] | None = None) -> Path:
        content: dict[str, bytes | None] = {
            "QA_information/Open-access/Set.json": json.dumps(records).encode()
        }
        content |= {
            path: image()
            for record in records
            if isinstance(record, dict)
            for path in record.get("images", [record.get("image_path")])
            if isinstance(path, str)
        }
        content |= files or {}
        path = project / "data/raw/corpus.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                if data is not None:
                    archive.writestr(f"OmniMedVQA/{name}", data)
        return path

    return make


@pytest.fixture
def full_records(make_record: MakeRecord) -> list[Raw]:
    """Four records for each modality and question type: enough for every split."""
    return [
        make_record(
            question_id=f"{slug}_{kind}_{number}",
            modality_type=literal,
            question_type=QUESTION_TYPES[kind],
            image_path=f"Images/{slug}/{number}.png",
        )
        for slug, literal in MODALITIES.items()
        for kind in QUESTION_TYPES
        for number in range(4)
    ]


def change_params(group: str, **changes: Any) -> None:
    """Change settings of a group of the project's params.yaml."""
    path = Path("params.yaml")
    tree = read_yaml(path)
    tree[group] |= changes
    path.write_text(dump_yaml(tree), encoding="utf-8")


def resize_settings(**changes: Any) -> Resize:
    """The group `resize` of the repository's params.yaml, with unvalidated changes."""
    return _resize().model_copy(update=changes)


@functools.cache
def _resize() -> Resize:
    return load_params(ROOT / "params.yaml").resize


def speckled(seed: int, kind: str = "PNG", size: tuple[int, int] = (400, 420)) -> bytes:
    """An image that no data test objects to, unlike those of other seeds."""
    pixels = np.random.default_rng(seed).integers(40, 220, (*size[::-1], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def image(kind: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    """A small grey image as a file."""
    buffer = BytesIO()
    Image.new("L", size, 90).save(buffer, kind)
    return buffer.getvalue()
