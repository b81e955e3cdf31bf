"""A base from the hub: fetched, resumed, reused offline; each failure has its own message."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from stages.core.errors import ExitCode
from stages.core.yaml_files import dump_yaml, read_yaml
from tests.hubs import COMMIT, Hub, Repository, hub_serving

REPOSITORY = Path(__file__).parents[2]
MODEL = "owner/tiny"
FETCH = (
    # a model of 4 MB instead of 4 GB, and nobody to wait for
    "import time; from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 2**16;"
    " time.sleep = lambda _: None\nimport sys; from pathlib import Path; from stages.base.hub"
    " import snapshot; from stages.core.errors import InputError\ntry: print(snapshot(sys.argv[1],"
    " sys.argv[2], Path('models/base')))\nexcept InputError as error: sys.exit(f'refused: {error}')"
)


def published() -> Repository:
    """The embedded base as published by somebody.

    With a licence, code, pickles and other formats.
    """
    files = {
        path.name: path.read_bytes()
        for path in (REPOSITORY / "infra" / "base").iterdir()
        if path.suffix != ".csv"
    }
    config = json.loads(files["config.json"]) | {"auto_map": {"AutoModel": "modeling_own.Own"}}
    card = (
        "---\nlicense: other\nlicense_name: qwen-research\nlicense_link:"
        " https://example.org/LICENSE\n---\n# Tiny\n"
    )
    files |= {
        "config.json": json.dumps(config).encode(),
        "README.md": card.encode(),
        "LICENSE": b"Read me.",
    }
    return Repository(
        files
        | {
            "modeling_own.py": b"raise SystemExit",
            "pytorch_model.bin": b"pickle",
            "onnx/config.json": b"{}",
        }
    )


def start(code: list[str], hub: Hub, root: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }
    environment |= (
        hub.environment(root / "cache")
        | {"PYTHONPATH": str(REPOSITORY), "HF_HOME": str(root / "home")}
        | more
    )
    return subprocess.run(
        [sys.executable, *code],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def fetch(
    hub: Hub, root: Path, model: str = MODEL, revision: str = COMMIT, **more: str
) -> subprocess.CompletedProcess[str]:
    return start(["-c", FETCH, model, revision], hub, root, **more)


def test_a_base_is_fetched_once_and_had_without_a_network_from_then_on(tmp_path: Path) -> None:
    tree = read_yaml(REPOSITORY / "params.yaml")
    tree["base"] |= {"source": MODEL, "revision": COMMIT, "max_pixels": 96 * 96}
    (tmp_path / "params.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    with hub_serving(owner__tiny=published()) as hub:
        first = start(["-m", "stages.base"], hub, tmp_path)
        assert first.returncode == 0, first.stderr
        asked = " ".join(hub.asked)
        assert "model.safetensors" in asked
        assert not [name for name in (".bin", ".py", "onnx") if name in asked], (
            "neither pickles, nor code, nor other formats"
        )
    assert (
        "config.json references code of owner/tiny (modeling_own.Own): removed, never run"
        in first.stderr
    )
    folder = tmp_path / "models" / "base"
    facts = json.loads((folder / "base_model.json").read_text(encoding="utf-8"))
    assert facts["commit"] == COMMIT
    assert facts["licence"] == {
        "license": "other",
        "license_name": "qwen-research",
        "license_link": "https://example.org/LICENSE",
    }
    assert set(facts["sha256"]) == {"model.safetensors"}
    assert "auto_map" not in (folder / "config.json").read_text(encoding="utf-8")
    assert (folder / "LICENSE").read_text(encoding="utf-8") == "Read me."
    assert not [
        name
        for name in ("README.md", "modeling_own.py", "pytorch_model.bin")
        if (folder / name).exists()
    ]
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        assert "lm_head.weight" not in weights.keys(), "it is tied to the embeddings"  # noqa: SIM118 - no dict
    hub.asked.clear()
    # the hub is gone
    again = fetch(hub, tmp_path)
    assert again.returncode == 0, again.stderr
    assert (Path(again.stdout.strip()) / "model.safetensors").is_file()
    assert fetch(hub, tmp_path, HF_HUB_OFFLINE="1").returncode == 0


def test_a_transfer_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    repository = published()
    size = len(repository.files["model.safetensors"])
    with hub_serving(owner__tiny=repository) as hub:
        hub.cut_at = size // 2
        stop = (
            "import huggingface_hub.file_download as d, os, time; d.time = type('T', (), {'sleep':"
            " lambda s: os._exit(9)})\n" + FETCH
        )
        assert start(["-c", stop, MODEL, COMMIT], hub, tmp_path).returncode == 9
        hub.cut_at = None
        hub.asked.clear()
        done = fetch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumes from" in done.stderr
    (resumed,) = [
        each for each in hub.asked if each.startswith("GET") and "model.safetensors" in each
    ]
    begun = int(resumed.partition("bytes=")[2].partition("-")[0])
    assert 0 < begun <= size // 2
    assert (Path(done.stdout.strip()) / "model.safetensors").read_bytes() == repository.files[
        "model.safetensors"
    ]


def test_a_connection_that_breaks_is_taken_up_again(tmp_path: Path) -> None:
    repository = published()
    with hub_serving(owner__tiny=repository) as hub:
        hub.cut_at = len(repository.files["model.safetensors"]) // 2
        done = fetch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert [each for each in hub.asked if "model.safetensors bytes=" in each]


def test_weights_that_were_cut_short_in_the_cache_are_fetched_anew(tmp_path: Path) -> None:
    repository = published()
    weights = repository.files["model.safetensors"]
    with hub_serving(owner__tiny=repository) as hub:
        folder = Path(fetch(hub, tmp_path).stdout.strip())
        (folder / "model.safetensors").resolve().write_bytes(weights[:1000])
        done = fetch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (folder / "model.safetensors").read_bytes() == weights


def test_weights_that_are_not_what_the_hub_says_are_refused(tmp_path: Path) -> None:
    repository = published()
    weights = repository.files["model.safetensors"]
    with hub_serving(owner__tiny=repository) as hub:
        spoilt = tmp_path / "cache" / "models--owner--tiny" / "blobs"
        spoilt.mkdir(parents=True)
        part = spoilt / f"{hashlib.sha256(weights).hexdigest()}.part"
        part.write_bytes(b"x" * 1000)
        done = fetch(hub, tmp_path)
        assert "model.safetensors of owner/tiny was downloaded with SHA-256" in done.stderr
        assert not part.exists()
        assert fetch(hub, tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        (
            "owner/tyni",
            COMMIT,
            (
                "has no such model that you may see. Check the spelling of the id; for a private"
                " one set HF_TOKEN"
            ),
        ),
        (MODEL, "d" * 40, "has this model, but no such revision. "),
        ("owner/gated", COMMIT, "its owner requires terms to be accepted"),
        (
            "owner/pickled",
            COMMIT,
            (
                "no *.safetensors weights, only pickled ones (pytorch_model.bin), which are never"
                " loaded"
            ),
        ),
        ("owner/ti ny", COMMIT, "is not a model id"),
    ],
)
def test_what_the_hub_does_not_give_is_told_apart(
    model: str, revision: str, message: str, tmp_path: Path
) -> None:
    pickled = Repository({"config.json": b"{}", "pytorch_model.bin": b"x"})
    with hub_serving(
        owner__tiny=published(), owner__gated=Repository({}, gated=True), owner__pickled=pickled
    ) as hub:
        done = fetch(hub, tmp_path, model, revision)
    assert done.returncode == 1
    assert message in done.stderr, done.stderr
    assert model in done.stderr
    assert revision in done.stderr or "not a model id" in done.stderr


def test_no_network_is_told_from_a_hub_that_fails_and_from_offline_mode(tmp_path: Path) -> None:
    with hub_serving(owner__tiny=published()) as hub:
        hub.status = 500
        failing = fetch(hub, tmp_path)
    gone = fetch(hub, tmp_path)
    offline = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert "failed (" in failing.stderr, failing.stderr
    assert "re-run later" in failing.stderr
    assert "is incomplete in the local cache" in gone.stderr
    assert "cannot be reached" in gone.stderr
    assert "HF_HUB_OFFLINE forbids asking the hub: unset it" in offline.stderr
    for done in (failing, gone, offline):
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].endswith(
            "or set base.source to a folder with the model and base.revision to null"
        )


def test_too_small_a_disk_is_named_before_anything_is_fetched(tmp_path: Path) -> None:
    full = (
        "import stages.core.disk_space as d; d.shutil = type('', (), {'disk_usage': lambda _:"
        " type('', (), {'free': 2**20})})\n"
    )
    with hub_serving(owner__tiny=published()) as hub:
        done = start(["-c", full + FETCH, MODEL, COMMIT], hub, tmp_path)
    assert "needs 0.3 GiB in" in done.stderr, done.stderr
    assert "where 0.0 GiB are free" in done.stderr
    assert not [each for each in hub.asked if "/resolve/" in each]


def test_the_commit_of_a_branch_can_be_asked_for(tmp_path: Path) -> None:
    with hub_serving(owner__tiny=published()) as hub:
        done = start(["-m", "flows", "base-commit", MODEL], hub, tmp_path)
        unknown = start(["-m", "flows", "base-commit", "owner/tinny"], hub, tmp_path)
    assert done.stdout.strip() == COMMIT, done.stderr
    assert "has no such model that you may see" in unknown.stderr
    for given, said in (
        (MODEL, "cannot be reached"),
        ("tiny", "is not of the form owner/name"),
        (f"{MODEL}@main", "is not of the form"),
    ):
        failed = start(["-m", "flows", "base-commit", given], hub, tmp_path)
        assert failed.returncode == ExitCode.INPUT
        assert said in failed.stderr
        assert "base.source" not in failed.stderr
