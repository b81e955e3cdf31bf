"""Publishing: dry run, refusals with a remedy, one commit, usable without this project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from stages import evaluate, train
from stages.core import layout
from stages.core.errors import ExitCode, InputError
from stages.core.params import load_params
from stages.core.yaml_files import dump_yaml, load_yaml
from stages.publishing.bundle import gather
from stages.reporting.sources import read_predictions
from tests.commands import MED_R1, med_r1
from tests.hubs import Repository, hub_serving
from tests.workspaces import REPOSITORY, small_workspace

TOKEN = "hf_thisIsTheTokenOfTheTest"
CLEAN = {"git_commit": "0123456789abcdef0123456789abcdef01234567", "git_dirty": False}
CARD = (
    "---\nlicense: apache-2.0\n---\n\n# ct\n\n**Not a medical device. Not for clinical use.**\n\n##"
    " Limits\n\n- Phantoms are drawings.\n"
)
REPO = "me/med-r1-ct"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with ct trained, evaluated and reported on, all at one commit."""
    root = tmp_path_factory.mktemp("finished")
    small_workspace(root, images_a_modality=1)
    base = {
        "source": "owner/tiny",
        "commit": "c" * 40,
        "licence": {"license": "other", "license_name": "qwen-research"},
        "sha256": {},
    }
    (root / layout.BASE_MODEL / "base_model.json").write_text(json.dumps(base), encoding="utf-8")
    (root / layout.BASE_MODEL / "LICENSE").write_text("Read me.", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "argv", ["train", "ct"])
        train.main()
        provenance = change_json(layout.training_provenance("ct"), **CLEAN)
        patch.setattr(sys, "argv", ["evaluate", "ct"])
        evaluate.main()
    change_origin(root, **CLEAN)
    assert provenance["base_model"] == base
    rows, _ = read_predictions(root / layout.predictions("ct"), "evaluate@ct")
    own = rows[rows["modality"] == "ct"]["correct"]
    (root / "report" / "cards").mkdir(parents=True)
    (root / "report" / "cards" / "ct.md").write_text(CARD, encoding="utf-8")
    metrics = {
        "checkpoints": {
            "ct": {"in_domain": {"n": len(own), "accuracy": round(float(own.mean()), 4)}}
        }
    }
    (root / "report" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    url = "https://huggingface.co/datasets/foreverbeliever/OmniMedVQA/resolve/main/OmniMedVQA.zip"
    (root / "data.dvc").write_text(dump_yaml({"deps": [{"path": url}]}), encoding="utf-8")
    return root


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path


def change_json(path: Path, **changes: Any) -> dict[str, Any]:
    tree = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(tree), encoding="utf-8")
    return dict(tree)


def change_origin(root: Path, **changes: Any) -> None:
    path = root / layout.predictions("ct")
    table = pq.read_table(path)
    origin = json.loads(table.schema.metadata[b"provenance"]) | changes
    pq.write_table(table.replace_schema_metadata({"provenance": json.dumps(origin)}), path)


def start(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    command = [*MED_R1, "publish", "ct", *arguments]
    return subprocess.run(
        command,
        cwd=root,
        env=clean | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_yes_files_are_listed_and_nothing_is_sent(project: Path) -> None:
    process = start(project, "--repo", REPO, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)
    assert process.returncode == 0, process.stderr
    assert "Nothing was uploaded." in process.stdout
    assert f"to: hub repository {REPO}, private" in process.stdout
    size = (project / layout.model("ct") / "model.safetensors").stat().st_size
    assert re.search(rf"[0-9a-f]{{64}} +{size:,}  model.safetensors", process.stdout)
    assert "predictions/ct.parquet" in process.stdout
    assert "LICENSE" in process.stdout
    assert TOKEN not in process.stdout + process.stderr


def test_the_card_has_the_metadata_of_a_hub_and_the_text_of_the_report(project: Path) -> None:
    card = gather("ct", load_params(), REPO).card
    front = load_yaml(card.split("---\n")[1], Path("front matter"))
    assert front["base_model"] == "owner/tiny"
    licence = (front["license"], front["license_name"])
    assert licence == ("other", "qwen-research"), "inherited from the base model"
    assert front["datasets"] == ["foreverbeliever/OmniMedVQA"]
    assert front["pipeline_tag"] == "image-text-to-text"
    assert {"medical", "grpo", "ct"} <= set(front["tags"])
    assert CARD.split("---\n")[2].strip() in card
    assert REPO in card
    assert "dtype=torch.float32" in card


def test_the_card_loads_the_model_in_the_data_type_of_its_evaluation(project: Path) -> None:
    metadata = pq.read_schema(project / layout.predictions("ct")).metadata
    params = json.loads(metadata[b"provenance"])["params"]
    params["evaluate"]["dtype"] = "bfloat16"
    change_origin(project, params=params)
    assert "dtype=torch.bfloat16" in gather("ct", load_params(), REPO).card


def test_an_uploaded_checkpoint_loads_without_this_project_and_gives_the_same_answer(
    project: Path, tmp_path: Path
) -> None:
    with hub_serving() as hub:
        hub.token = TOKEN
        environment = hub.environment(tmp_path / "cache") | {"HF_TOKEN": TOKEN}
        process = start(project, "--repo", REPO, "--yes", **environment)
        assert process.returncode == 0, process.stderr
        repository = hub.repositories[REPO]
    assert repository.private
    assert len(repository.commits) == 1
    assert TOKEN not in process.stdout + process.stderr
    elsewhere = tmp_path / "elsewhere" / "model"
    for name, content in repository.files.items():
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / name).write_bytes(content)
    assert not list(elsewhere.rglob("*.bin"))
    published = pd.read_parquet(elsewhere / "predictions" / "ct.parquet")
    assert (published["correct"] == (published["answer"] == published["gold"])).all()
    row = published.iloc[0]
    questions: list[dict[str, Any]] = []
    for path in (project / layout.SPLITS).rglob("test.json"):
        if "modality" in path.parts:
            questions += json.loads(path.read_text(encoding="utf-8"))
    (item,) = [each for each in questions if each["question_id"] == row["question_id"]]
    code = re.search(r"```python\n(.*?)```", repository.files["README.md"].decode(), re.S).group(1)  # type: ignore[union-attr]
    code = code.replace(repr(REPO), repr(str(elsewhere)))
    # an import of the project fails in this process, although the environment has it installed
    code = f"import sys\nsys.modules['stages'] = sys.modules['flows'] = None\n{code}"
    code += f"\nprint(answer(Image.open({str(project / item['image'])!r}), {item['problem']!r}))\n"
    opened = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert opened.returncode == 0, opened.stderr
    assert opened.stdout.strip() == row["output"].strip()


def test_a_re_run_after_an_interrupted_upload_sends_only_the_missing_files(
    project: Path, tmp_path: Path
) -> None:
    with hub_serving() as hub:
        environment = hub.environment(tmp_path / "cache") | {"HF_TOKEN": TOKEN}
        hub.fail_uploads = 1
        broken = start(project, "--repo", REPO, "--yes", **environment)
        assert broken.returncode == ExitCode.INPUT
        assert "re-run the same command" in broken.stderr, broken.stderr
        assert not hub.repositories[REPO].commits, "all or nothing"
        process = start(project, "--repo", REPO, "--yes", **environment)
        assert process.returncode == 0, process.stderr
        # weights and predictions, once each
        assert len(hub.uploaded) == len(set(hub.uploaded)) == 2
        hub.repositories[REPO].files["model-00001-of-00002.safetensors"] = b"of an older one"
        start(project, "--repo", REPO, "--yes", **environment)
        assert "model-00001-of-00002.safetensors" not in hub.repositories[REPO].files
        assert len(hub.uploaded) == 2


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--yes", "--repo", REPO], {}, "HF_TOKEN"),
        (["--yes", "--repo", REPO], {"HF_TOKEN": "hf_anotherOne"}, "set HF_TOKEN to a valid token"),
        (["--yes", "--repo", "me/open"], {"HF_TOKEN": TOKEN}, "me/open exists and is public"),
    ],
)
def test_a_destination_that_cannot_be_used_is_named(
    arguments: list[str], environment: dict[str, str], message: str, project: Path, tmp_path: Path
) -> None:
    with hub_serving(me__open=Repository({})) as hub:
        hub.token = TOKEN
        process = start(project, *arguments, **hub.environment(tmp_path / "cache"), **environment)
    assert process.returncode == ExitCode.INPUT
    assert message in process.stderr, process.stderr
    assert TOKEN not in process.stdout + process.stderr
    assert not hub.uploaded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--yes"], "--repo OWNER/NAME"),
        (["--repo", "ct"], "is not of the form OWNER/NAME"),
        (["--remote", "nowhere"], "no remote 'nowhere'"),
    ],
)
def test_a_destination_that_names_none_is_refused_before_anything_is_sent(
    arguments: list[str], message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_dvc(project, "[core]\n    no_scm = True\n")
    assert med_r1("publish", "ct", *arguments) == ExitCode.INPUT
    assert message in capsys.readouterr().err


def configure_dvc(project: Path, text: str) -> None:
    """What `dvc init` and `dvc remote add` would leave."""
    (project / ".dvc").mkdir()
    (project / ".dvc" / "config").write_text(text, encoding="utf-8")
    (project / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n", encoding="utf-8")


def test_an_unreachable_hub_is_an_input_error(project: Path) -> None:
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": TOKEN}
    process = start(project, "--repo", REPO, "--yes", **environment)
    assert process.returncode == ExitCode.INPUT
    assert "http://127.0.0.1:9" in process.stderr
    assert "check the network" in process.stderr


def test_a_dvc_remote_receives_and_returns_the_same_files(project: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    configure_dvc(project, f"['remote \"shared\"']\n    url = {store}\n")
    process = start(project, "--remote", "shared", "--yes")
    assert process.returncode == 0, process.stderr
    pinned = project / "published" / "ct.dvc"
    assert pinned.is_file()
    shutil.rmtree(project / "published" / "ct")
    shutil.rmtree(project / ".dvc" / "cache")
    subprocess.run(["dvc", "pull", "-q", "-r", "shared", str(pinned)], cwd=project, check=True)
    folder = project / "published" / "ct"
    assert {item.name for item in gather("ct", load_params(), None).items} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    }
    weights = layout.model("ct") / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == weights.read_bytes()
    assert start(project, "--remote", "shared", "--yes").returncode == 0, "re-run"


def unfinished(root: Path) -> None:
    shutil.rmtree(root / layout.model("ct"))
    (root / layout.SCRATCH / "train" / "ct" / "0" / "checkpoint-1").mkdir(parents=True)


def truncated(root: Path) -> None:
    path = root / layout.model("ct") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def secret(root: Path) -> None:
    os.environ["ACME_API_KEY"] = "0123456789abcdef-planted"
    change_json(
        root / layout.model("ct") / "generation_config.json", note="0123456789abcdef-planted"
    )


DAMAGE: dict[str, tuple[Any, str]] = {
    "missing": (
        lambda root: shutil.rmtree(root / layout.model("ct")),
        r"models/ct is missing: `dvc repro train@ct`",
    ),
    "unfinished": (
        unfinished,
        "models/ct is unfinished: `dvc repro train@ct` resumes where it stopped",
    ),
    "no processor": (
        lambda root: (root / "models/ct/tokenizer_config.json").unlink(),
        "tokenizer_config.json is missing",
    ),
    "truncated": (truncated, r"model.safetensors has \d+ bytes instead of \d+"),
    "dirty": (
        lambda root: change_json(root / "training/ct.provenance.json", git_dirty=True),
        "--allow-dirty",
    ),
    "dirty answers": (
        lambda root: change_origin(root, git_dirty=True),
        "predictions/ct.parquet was made from uncommitted code",
    ),
    "other answers": (
        lambda root: change_origin(root, weights={"model.safetensors": "f" * 64}),
        r"predictions/ct.parquet.* models/ct: run `dvc repro evaluate@ct report`",
    ),
    "no answers": (lambda root: layout.predictions("ct").unlink(), "predictions/ct.parquet"),
    "other report": (
        lambda root: (root / "report/metrics.json").write_text(
            '{"checkpoints": {"ct": {"in_domain": {"n": 1, "accuracy": 0.5}}}}'
        ),
        "report/metrics.json .* predictions/ct.parquet: run `dvc repro report`",
    ),
    "no card": (
        lambda root: (root / "report/cards/ct.md").unlink(),
        "report/cards/ct.md is missing: run `dvc repro report`",
    ),
    "code": (
        lambda root: change_json(root / "models/ct/config.json", auto_map={"AutoModel": "own.Own"}),
        "models/ct/config.json .*auto_map",
    ),
    "secret": (secret, r"generation_config.json .*\$ACME_API_KEY"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_that_must_not_be_published_is_refused_with_the_remedy(
    damage: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_API_KEY", "")
    spoil, message = DAMAGE[damage]
    spoil(project)
    with pytest.raises(InputError, match=message):
        gather("ct", load_params(), REPO)


def test_results_of_uncommitted_code_are_published_with_allow_dirty(
    project: Path, capsys: Any
) -> None:
    change_json(project / "training/ct.provenance.json", git_commit=None, git_dirty=None)
    assert med_r1("publish", "ct", "--allow-dirty") == 0
    output = capsys.readouterr().out
    assert "Nothing was uploaded" in output
    assert "--repo or --remote" in output
